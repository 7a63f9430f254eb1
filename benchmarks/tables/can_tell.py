"""Can the benchmark show a loss? What cold runs lose with half of their steps.

If they lost nothing, "fewer steps" would beat every cache, and no comparison on this model would mean anything. Details
are matched one by one with those of the same request with all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench_wan import details
from bench_wan.captions import sample_caption

from .. import metrics, report
from ..samples import Bench, of
from ..systems import BenchWan, Request
from .hits import OTHER_TAKE, kept_share

SEED = 41
FULL, QUICK = {50: 16, 20: 48, 4: 96}, {20: 16, 4: 16}


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by step count: the loss from the full number to half of it, of alignment absolute, of the rest relative."""
    wan, rows = bench.of(BenchWan()), []
    for steps, count in (FULL if full else QUICK).items():
        requests = _requests(count, steps)
        whole = wan.each(requests, wan.sample)
        half = wan.each([_with_steps(r, steps // 2) for r in requests], wan.sample)
        reference = wan.each([Request(**{**vars(r), "seed": r.seed + OTHER_TAKE}) for r in requests], wan.sample)
        features = [np.array([s["features"] for s in part]) for part in (whole, half, reference)]
        kept, wanted = np.array([_details(wan, *pair) for pair in zip(whole, half, strict=True)]).T
        rows.append(
            {
                "steps": f"{steps} → {steps // 2}",
                "n": count,
                "alignment": report.estimate(of(whole, "alignment")),
                "alignment loss": report.combined(_difference, of(whole, "alignment"), of(half, "alignment")),
                "objects too many": report.estimate(of(whole, "copies")),
                "details loss": report.combined(lambda a, b: 1.0 - kept_share(a, b), kept, wanted),
                "object error rise": _relative(whole, half, "error", -1),
                "sharpness loss": _relative(whole, half, "sharpness"),
                "flicker rise": _relative(whole, half, "flicker", -1),
                "Fréchet distance": report.over_halves(metrics.frechet_distance, features[0], features[2]),
                "its rise": report.over_halves(_rise, *features),
            }
        )
    return report.Result(
        name="can_tell",
        title="What cold runs lose at half the steps",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
    )


def _requests(count: int, steps: int) -> list[Request]:
    """Held-out prompts."""
    rng = np.random.default_rng(SEED)
    captions = [sample_caption(rng, held_out=True) for _ in range(count)]
    return [Request(c.text, 10_000 * SEED + i, steps, caption=c) for i, c in enumerate(captions)]


def _with_steps(request: Request, steps: int) -> Request:
    return Request(**{**vars(request), "steps": steps})


def _details(wan: Bench, whole: dict, half: dict) -> tuple[int, int]:
    """(details of the run with all steps that the one with half of them shows, details that it could show)."""
    frames = wan.frames(half)
    wanted = details.visible(details.find(wan.frames(whole)), frames)
    return details.matched(wanted, details.find(frames)), len(wanted)


def _difference(whole: np.ndarray, half: np.ndarray) -> float:
    return float(whole.mean() - half.mean())


def _relative(whole: Sequence[dict], half: Sequence[dict], name: str, sign: int = 1) -> dict:
    return report.combined(lambda a, b: float(sign * (1 - b.mean() / a.mean())), of(whole, name), of(half, name))


def _rise(whole: np.ndarray, half: np.ndarray, reference: np.ndarray) -> float:
    """By what factor the distance grows at half the steps, less 1."""
    return metrics.frechet_distance(half, reference) / metrics.frechet_distance(whole, reference) - 1
