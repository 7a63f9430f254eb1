"""TGAA: without, with keys, outputs or both; how strong and for how long. On changed words of the tuning half."""

from __future__ import annotations

import itertools

import numpy as np

from .. import report
from ..pairs import REPORTED, TUNED, Pair, hit_pairs
from ..samples import Bench, of
from ..systems import COLD, System

K1_SHARE = 0.4  # of the schedule reused
STARTS = {"as calibrated": None, "at K1": 1.0}  # where the source's state is taken; at K1 the source's words persist
DESIGNS = (
    ("none", {"strength": 0.0}),
    ("outputs ×1.5", {"where": "outputs", "strength": 0.5}),
    ("outputs ×2", {"where": "outputs", "strength": 1.0}),
    ("keys ×2", {"where": "keys", "strength": 1.0}),
    ("both ×2", {"where": "both", "strength": 1.0}),
)
VARIANTS = tuple(
    (f"{where} ×{1 + strength:g}, fade {fade:g}", {"where": where, "strength": strength, "fade": fade})
    for where in ("keys", "outputs", "both")
    for strength, fade in ((0.5, 0.3), (0.5, 1.0), (2.0, 0.5))
)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps and design: alignment of all words, and of the words that changed."""
    rows = []
    for steps, count in ((4, 80), (20, 24)) if full else ((4, 16),):
        for half, designs in ((REPORTED, DESIGNS), (TUNED, VARIANTS)):
            if half == TUNED and not full:
                continue
            pairs = [p for p in hit_pairs(3 * count, half, steps) if p.changed][
                : count if half == REPORTED else count // 2
            ]
            cold = [bench.sample(p.target, COLD) for p in pairs]
            for start, (name, options) in itertools.product(STARTS, designs):
                k1 = max(1, round(K1_SHARE * steps))
                system = System(name, k1=k1, start=STARTS[start], selective=False, method="early start", **options)
                samples = [bench.sample(p.target, system, p.source) for p in pairs]
                rows.append(
                    {
                        "steps": steps,
                        "half": "reported" if half == REPORTED else "tuned",
                        "state taken": start,
                        "design": name,
                        "n": len(pairs),
                        "alignment loss": report.estimate(of(cold, "alignment") - of(samples, "alignment")),
                        "changed words": report.estimate(changed_alignment(pairs, samples)),
                        "sharpness": report.estimate(of(samples, "sharpness")),
                        "details": report.estimate(of(samples, "details")),
                    }
                )
    return report.Result(
        name="amplification",
        title="Amplification of the new words, stage 1 and amplification only",
        columns=list(rows[0]),
        rows=rows,
        seeds=[TUNED, REPORTED],
    )


def changed_alignment(pairs: list[Pair], samples: list[dict]) -> np.ndarray:
    """Share of the changed attributes that the video shows, [N]."""
    return np.array(
        [np.mean([s["right"][name] for name in p.changed]) for p, s in zip(pairs, samples, strict=True)], float
    )
