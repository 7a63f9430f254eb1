"""Image to video: hits with a look where the image is the same and the words differ, against fewer steps at their cost.

The image is given through the host's own node, to one model and to two experts (`BenchWanTwoExperts`). The words change
what an image leaves open: where something moves to, what the camera does, how it is said, and whether a thing in the
picture is named. What is measured is that of `hits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import report
from ..samples import Bench
from ..scene_pairs import REPORTED, image_pairs
from ..systems import DISTILLED_STEPS, TEMPLATES, BenchWanFromImage, BenchWanTwoExperts
from .hits import Systems, Told, kept_share, of_systems, over_fewer, pair_of

FULL = {4: 160, 20: 24}
QUICK = {4: 8}
FULL_OF_TWO, QUICK_OF_TWO = {4: 48}, {4: 4}
SHOWN = ("cold", "look and join", "fewer steps")


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by model, steps, system and what the prompt changes."""
    rows: list[dict] = []
    summary: dict[str, Any] = {}
    counts = (FULL, FULL_OF_TWO) if full else (QUICK, QUICK_OF_TWO)
    for subject, by_steps in zip((BenchWanFromImage(), BenchWanTwoExperts()), counts, strict=True):
        wan = bench.of(subject)
        for steps, count in by_steps.items():
            pairs = [pair_of(pair, steps) for pair in image_pairs(count, REPORTED)]
            told = of_systems(wan.each(pairs, lambda pair, wan=wan: Systems(wan, pair).compared()))
            for change in ("all", *sorted({p.of.change for p in pairs})):
                chosen = np.array([change in ("all", p.of.change) for p in pairs])
                rows += [_row(subject, steps, change, name, told, chosen) for name in SHOWN]
            if steps == DISTILLED_STEPS and subject.templates == TEMPLATES:
                over = over_fewer(steps, told)
                summary = {f"i2v_{name}_vs_fewer": over[f"{name}_vs_fewer"] for name in ("alignment", "details")}
                summary["i2v_hit_cost_4"] = over["hit_cost"]
    return report.Result(
        name="from_image",
        title="Hits of image to video at equal cost",
        columns=list(rows[0]),
        rows=rows,
        seeds=[REPORTED],
        summary=summary,
    )


def _row(subject: BenchWanFromImage, steps: int, change: str, system: str, told: Told, chosen: np.ndarray) -> dict:
    of, cold = ({k: v[chosen] for k, v in told[name].items()} for name in (system, "cold"))
    return {
        "model": "two experts" if isinstance(subject, BenchWanTwoExperts) else "one model",
        "steps": steps,
        "change": change,
        "system": system,
        "n": int(chosen.sum()),
        "cost": report.estimate(of["cost"] / steps),
        "alignment loss": report.estimate(cold["alignment"] - of["alignment"]),
        "details kept": report.combined(kept_share, of["kept"], of["wanted"]),
        "object error": report.estimate(of["error"]),
        "seams": report.estimate(of["seams"]),
        "difference to the source": report.estimate(of["difference"]),
    }
