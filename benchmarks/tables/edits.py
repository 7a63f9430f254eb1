"""Which changed words appear after reuse: one attribute at a time, by the share of the schedule that is reused."""

from __future__ import annotations

import numpy as np

from small_wan import scenes

from .. import report
from ..pairs import request
from ..prompts import edited
from ..samples import Bench
from ..systems import System

SEED = 61
NAMES = ("background", "colour", "shape", "direction")
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6)
STEPS = 20


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by changed attribute and K1: whether it shows, and whether what should stay stays."""
    rows = []
    for name in NAMES:
        rng = np.random.default_rng([SEED, NAMES.index(name)])
        pairs = []
        for index in range(16 if full else 4):
            source = scenes.sample_caption(rng, held_out=True, template=0)
            target = edited(source, rng, (name,))
            first = 10_000 * SEED + 1000 * NAMES.index(name) + 2 * index
            pairs.append((request(source, first, STEPS), request(target, first + 1, STEPS)))
        for share in SHARES if full else SHARES[::2]:
            k = round(share * STEPS)
            system = System("Chorus", k1=k, k2=min(STEPS, k + STEPS // 4), method="early start")
            samples = [bench.sample(target, system, source) for source, target in pairs]
            kept = [np.mean([hit for n, hit in s["right"].items() if n != name]) for s in samples]
            rows.append(
                {
                    "changed": name,
                    "K1 of 20": k,
                    "n": len(pairs),
                    "shown": report.estimate([s["right"][name] for s in samples]),
                    "other words": report.estimate(kept),
                    "step equivalents": report.estimate([s["step_equivalents"] for s in samples]),
                }
            )
    return report.Result(
        name="edits",
        title="Which words can change",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        draw=lambda axes: _draw(axes, rows),
    )


def _draw(axes, rows: list[dict]) -> None:
    for name in NAMES:
        mine = [r for r in rows if r["changed"] == name]
        axes.plot([r["K1 of 20"] / STEPS for r in mine], [r["shown"]["mean"] for r in mine], marker=".", label=name)
    axes.set_xlabel("share of the schedule reused")
    axes.set_ylabel("the changed word shows")
    axes.grid(alpha=0.3)
    axes.legend()
