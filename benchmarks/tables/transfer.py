"""Sources that the look-up refuses (other LoRAs with another number of steps, another size): what would they give?

The source's clean component is taken from the cache, composed with the target's own noise, resized where the target is
of another size, and given to core's SamplerCustom with the σ that a hit would have. The result shows whether the
refusal is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from chorus.reuse.calibration import calibration_of
from chorus.reuse.schedule import stretched
from tools.demo_graph import Graph, only

from .. import report
from ..pairs import REPORTED, Pair, hit_pairs
from ..samples import Bench, code_digest, of
from ..systems import COLD, EARLY_START, Request, System, graph

SMALLER = 80  # pixels a side, against the 96 that the small Wan was trained on


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by kind of source and K1: alignment against a source of the request's own kind."""
    count = 24 if full else 6
    rows = []
    cases = [
        ("50 steps → 20 steps", 20, replace_steps(50), (5, 10)),
        ("50 steps → 4 steps, distilled", 4, replace_steps(50), (1, 2)),
        (f"{SMALLER} px → 96 px, 20 steps", 20, replace_size(SMALLER), (5, 10)),
    ]
    for name, steps, other, cuts in cases if full else cases[1:2]:
        pairs = hit_pairs(count, REPORTED, steps)
        cold = [bench.sample(p.target, COLD) for p in pairs]
        for k in cuts:
            for start in (calibration_of("conditioning").start().of(steps), 1.0):
                own = System("own kind", k1=k, start=start, selective=False, strength=0.0)
                same = [bench.sample(p.target, own, p.source) for p in pairs]
                crossed = [_crossed(bench, p, other(p.source), k, start) for p in pairs]
                rows.append(
                    {
                        "source → target": name,
                        "K1": k,
                        "state taken at": f"{start:g}" if start < 1 else "K1",
                        "n": count,
                        "loss, source of its own kind": report.estimate(of(cold, "alignment") - of(same, "alignment")),
                        "loss, this source": report.estimate(of(cold, "alignment") - of(crossed, "alignment")),
                        "details, own kind": report.estimate(of(same, "details")),
                        "details, this source": report.estimate(of(crossed, "details")),
                    }
                )
    return report.Result(
        name="transfer",
        title="Sources of another kind",
        columns=list(rows[0]),
        rows=rows,
        seeds=[REPORTED],
    )


def replace_steps(steps: int):
    return lambda source: replace(source, steps=steps)


def replace_size(size: int):
    return lambda source: replace(source, size=size)


def _crossed(bench: Bench, pair: Pair, source: Request, k: int, start: float) -> dict:
    parts = repr([pair.target, source, k, start, code_digest(bench.subject, pair.target)])
    name = "transfer " + hashlib.sha256(parts.encode()).hexdigest()[:24]
    return bench.once(name, lambda: bench.measured(_sampled(bench, pair.target, source, k, start), pair.target))


def _sampled(bench: Bench, target: Request, source: Request, k: int, start: float) -> np.ndarray:
    schedule = _sigmas(target.steps)
    path = stretched(schedule, k, max(_shifted(1 - start), schedule[k]))[k:]
    made = graph(bench.subject, target, replace(EARLY_START), cache=None, mode="off")
    host = bench.host.host
    caches = host.module("chorus.comfy.caches")
    import comfy.latent_formats
    import comfy.sample

    wan = comfy.latent_formats.Wan21()
    cells = (target.size or bench.subject.size) // 8
    noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 4, cells, cells), target.seed)
    cache = caches.open_cache(bench.cache_of(source))
    entry = next(e for e in cache.entries() if e.is_source)
    there = caches.load_trajectory(cache, entry, wan.process_in, torch.zeros(1))
    sigma = path[0]
    clean = there.at(sigma) / (1 - sigma)  # composed with no noise, so that only the clean component is left
    if clean.shape[-1] != cells:
        clean = F.interpolate(clean, (clean.shape[2], cells, cells), mode="trilinear", align_corners=False)
    x = sigma * noise + (1 - sigma) * clean
    # Core's sampler scales what it is handed by 1 − σ where no noise is added.
    _hand_over(made, wan.process_out(x / (1 - sigma)), path, Path(host.base) / "input")
    frames, _, _ = bench.host.run(made)
    return frames


def _shifted(t: float, shift: float = 5.0) -> float:
    """σ of the templates' flow schedule with `t` of it left."""
    return shift * t / (1 + (shift - 1) * t)


def _sigmas(steps: int) -> list[float]:
    """The "simple" schedule of a flow model: every (1000/steps)-th of 1000 shifted levels."""
    levels = [_shifted(i / 1000) for i in range(1, 1001)]
    return [levels[-(1 + int(i * 1000 / steps))] for i in range(steps)] + [0.0]


def _hand_over(made: Graph, latent: torch.Tensor, sigmas: Sequence[float], folder: Path) -> None:
    file = f"handed-{hashlib.sha256(latent.numpy().tobytes()).hexdigest()[:16]}.latent"
    save_file({"latent_tensor": latent.contiguous(), "latent_format_version_0": torch.tensor([])}, folder / file)
    sampler = only(made, "KSampler")
    kept = made[sampler]["inputs"]
    made["handed"] = {"class_type": "LoadLatent", "inputs": {"latent": file}}
    made["σ"] = {"class_type": "ManualSigmas", "inputs": {"sigmas": ", ".join(f"{s:.6f}" for s in sigmas)}}
    made["solver"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": kept["sampler_name"]}}
    made[sampler] = {
        "class_type": "SamplerCustom",
        "inputs": {
            **{name: kept[name] for name in ("model", "positive", "negative", "cfg")},
            "add_noise": False,
            "noise_seed": kept["seed"],
            "sampler": ["solver", 0],
            "sigmas": ["σ", 0],
            "latent_image": ["handed", 0],
        },
    }
