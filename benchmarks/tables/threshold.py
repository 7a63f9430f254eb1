"""How unlike a request may be: hits with a look against fewer steps at their cost, by how much of the prompt changes.

The score of the prompts only proposes a source, the look decides what is kept of it. The rows by changes show what a
hit costs and keeps when more of the prompt differs; those by score show the same for what a threshold sees. The hit
rate is the share of requests on a stream as alike as VidProM's prompts whose nearest of 1,000 cold runs is at or above
the lower end of a band.
"""

from __future__ import annotations

import numpy as np

from .. import report
from ..prompts import stream, vectors, vidprom
from ..samples import Bench
from ..scene_pairs import REPORTED, distant_pairs
from ..systems import BenchWan
from .capacity import STYLE, proportion
from .hits import Systems, Told, kept_share, of_systems, pair_of

STEPS = 20
FULL, QUICK = 64, 4
BANDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.0)  # lower ends
WARM, ASKED = 1000, 400  # requests of the stream


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by number of changes and by score."""
    wan, rows = bench.of(BenchWan()), []
    pairs = [pair_of(pair, STEPS) for pair in distant_pairs(FULL if full else QUICK, REPORTED)]
    compared, measured = zip(*wan.each(pairs, lambda pair: _compared(Systems(wan, pair))), strict=True)
    told = of_systems(measured)
    scores = np.array([systems.hit["match_score"] for systems in compared])
    reached = _reached(ASKED if full else ASKED // 10, WARM if full else WARM // 10)
    for changes in sorted({pair.of.change for pair in pairs}):
        chosen = np.array([pair.of.change == changes for pair in pairs])
        rows.append(_row(f"{changes} changed", told, chosen, scores, None))
    upper = 1.0
    for lower in BANDS:
        chosen = (scores >= lower) & (scores < upper)
        if chosen.any():
            rows.append(_row(f"score {lower:.1f} to {upper:.1f}", told, chosen, scores, proportion(reached >= lower)))
        upper = lower
    return report.Result("threshold", "How unlike a request may be", list(rows[0]), rows, [REPORTED])


def _compared(systems: Systems) -> tuple[Systems, dict[str, dict]]:
    return systems, systems.compared()


def _reached(asked: int, warm: int) -> np.ndarray:
    """Of each request of the stream, the score of its nearest cold run: [asked]."""
    points = vectors([r.caption for r in stream(vidprom(), warm + asked, 1, warm=warm, style=STYLE)])
    return (points[warm:] @ points[:warm].T).max(1)


def _row(which: str, told: Told, chosen: np.ndarray, scores: np.ndarray, hit_rate: dict | None) -> dict:
    hit, fewer, cold = (
        {name: values[chosen] for name, values in told[system].items()}
        for system in ("look and join", "fewer steps", "cold")
    )
    return {
        "prompts": which,
        "n": int(chosen.sum()),
        "score": report.estimate(scores[chosen]),
        "hit rate from there on": "" if hit_rate is None else hit_rate,
        "cost": report.estimate(hit["cost"] / STEPS),
        "alignment loss": report.estimate(cold["alignment"] - hit["alignment"]),
        "alignment beyond fewer steps": report.estimate(hit["alignment"] - fewer["alignment"]),
        "details kept": report.combined(kept_share, hit["kept"], hit["wanted"]),
        "fewer steps' details kept": report.combined(kept_share, fewer["kept"], fewer["wanted"]),
        "error over that of fewer steps": report.combined(
            lambda a, b: float(a.mean() / b.mean()), hit["error"], fewer["error"]
        ),
        "consistency over that of fewer steps": report.combined(
            lambda a, b: float(b.mean() / a.mean()), hit["difference"], fewer["difference"]
        ),
    }
