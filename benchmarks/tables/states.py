"""Which states of a run to keep: the error of a state that is interpolated between kept ones.

The error is the root mean square in units of the noise's deviation, for every state of the first 75 % of the schedule;
given is the mean over runs of each run's worst state. The kept states lie at even distances raised to a power, from
the first to the last; the final latent is always kept. Nothing is compressed here. Chosen on the tuning half.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from chorus.reuse.profiles import PROFILES
from chorus.reuse.trajectory import Trajectory

from .. import report
from ..pairs import TUNED, cold_requests
from ..samples import Bench
from ..systems import Request
from .size import KEEP

COUNTS = (1, 2, 3, 4, 6, 8)
SPACINGS = (1.0, 1.5, 2.0)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps, number of states and spacing."""
    rows = []
    for steps in (4, 20, 50) if full else (4, 20):
        runs = [kept_run(bench, source) for source in cold_requests(16 if full else 3, TUNED, steps)]
        for count, spacing in itertools.product(COUNTS, SPACINGS):
            chosen, errors = [], []
            for run, sigmas in runs:
                profile = replace(PROFILES["small"], states=count, spacing=spacing)
                chosen = profile.kept(sigmas, KEEP, noise_drawn=False)
                errors.append(_worst(run, chosen))
            rows.append(
                {
                    "steps": steps,
                    "states": count,
                    "spacing": spacing,
                    "after step": ", ".join(str(runs[-1][1].index(sigma)) for sigma in chosen),
                    "worst error": report.estimate(errors),
                }
            )
    return report.Result("states", "States kept, and those between", list(rows[0]), rows, [TUNED])


def kept_run(bench: Bench, source: Request) -> tuple[dict[float, torch.Tensor], list[float]]:
    """(c of a small-Wan run by σ, as it was, with the final latent at 0; the schedule's σ)."""
    caches = bench.host.host.module("chorus.comfy.caches")
    import comfy.latent_formats  # once the host has started

    cache = caches.open_cache(bench.cache_of(source, "fp32"))
    (entry,) = cache.entries()
    into = comfy.latent_formats.Wan21().process_in
    names = caches.stored_states(entry)
    tensors = cache.load(entry.id, names.values())
    return {s: into(tensors[n]) if n == "final" else tensors[n] for s, n in names.items()}, list(entry.sigmas)


def _worst(run: dict[float, torch.Tensor], chosen: list[float]) -> float:
    """run: σ as its entry names them, six digits; chosen: the schedule's own."""
    kept = {s: c for s, c in run.items() if s == 0.0 or any(abs(s - other) < 1e-5 for other in chosen)}
    zero = torch.zeros(1)
    between = Trajectory(zero, kept)
    errors = [between.at(s) - (1.0 - s) * c.float() for s, c in run.items() if s > 0.0]
    return max(float(error.square().mean().sqrt()) for error in errors)
