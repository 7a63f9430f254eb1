"""Stage 1: how many steps to save, and where to take the source's state. On the tuning half; the defaults follow.

A state that is taken late keeps the earlier video, also the words that changed. A state that is taken early is nearly
noise and keeps little. Saving steps costs what fewer steps always cost. The rows separate the two effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .. import report
from ..pairs import TUNED, hit_pairs
from ..rivals import details_loss
from ..samples import Bench, of
from ..systems import COLD, DISTILLED_STEPS, System

SHARES = {4: (0.25, 0.5), 20: (0.25, 0.4, 0.5, 0.6), 50: (0.5, 0.6, 0.76)}  # of the steps saved
STARTS = (0.05, 0.1, 0.13, 0.2, 0.3, 1.0)  # where the state is taken; 1: at K1 itself, as the paper does
EXTRA_LOSS = 0.005  # of alignment, that a source's state may cost beyond what fewer steps do
MOST_LOSS = 0.02  # of alignment, at any score
# A hit loses at most so many details; a distilled model has no step to spare, and its users take speed for detail.
MOST_DETAILS, MOST_DETAILS_DISTILLED = 0.2, 0.75


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps, share saved and start; `chosen` marks what a hit with score 1 gets."""
    rows: list[dict] = []
    for steps, count in ((4, 160), (20, 64), (50, 24)) if full else ((4, 16),):
        pairs = hit_pairs(count, TUNED, steps)
        cold = [bench.sample(p.target, COLD) for p in pairs]
        alike = np.array([p.score for p in pairs]) >= np.median([p.score for p in pairs])
        found: list[dict] = []
        for share in SHARES[steps]:
            k = round(share * steps)
            fewer = [bench.sample(replace(p.target, steps=steps - k)) for p in pairs]
            found.append(_row(steps, k, "fewer steps", cold, fewer, alike))
            for start in STARTS if full else STARTS[::2]:
                system = System("stage 1", k1=k, start=start, selective=False, strength=0.0)
                samples = [bench.sample(p.target, system, p.source) for p in pairs]
                found.append(_row(steps, k, f"{start:g}" if start < 1 else "at K1", cold, samples, alike))
        _choose(found)
        rows += found
    return report.Result(
        name="tuning",
        title="Steps saved, and where the source's state is taken",
        columns=list(rows[0]),
        rows=rows,
        seeds=[TUNED],
        draw=lambda axes: _draw(axes, rows),
    )


def _row(steps: int, k: int, start: str, cold: list[dict], samples: list[dict], alike: np.ndarray) -> dict:
    loss = of(cold, "alignment") - of(samples, "alignment")
    return {
        "steps": steps,
        "saved": k,
        "state taken at": start,
        "n": len(samples),
        "alignment loss": report.estimate(loss),
        "of the more alike half": report.estimate(loss[alike]),
        "details loss": details_loss(samples, cold),
        "chosen": "",
    }


def place(rows: Sequence[Mapping]) -> float:
    """Where to take the state, of one number of steps' rows: of the harmless places, that with the most details left.

    Harmless: neither there nor earlier does the state cost EXTRA_LOSS more of alignment than fewer steps do, however
    many are saved. Raises ValueError where none is.
    """
    fewer = {r["saved"]: r["alignment loss"]["mean"] for r in rows if r["state taken at"] == "fewer steps"}
    extra: dict[float, float] = {}
    lost: dict[float, list[float]] = {}
    for r in rows:
        if r["state taken at"] not in ("fewer steps", "at K1"):
            start = float(r["state taken at"])
            extra[start] = max(extra.get(start, 0.0), r["alignment loss"]["mean"] - fewer[r["saved"]])
            lost.setdefault(start, []).append(r["details loss"]["mean"])
    harmless = [s for s in sorted(extra) if max(extra[earlier] for earlier in extra if earlier <= s) <= EXTRA_LOSS]
    if not harmless:
        raise ValueError(f"every place costs more than {EXTRA_LOSS} of alignment: sample earlier ones")
    return min(harmless, key=lambda s: float(np.mean(lost[s])))


def most_saved(rows: Sequence[Mapping], start: float) -> int:
    """The most steps that a hit may save from there. Raises ValueError where even the fewest sampled lose too much."""
    fit = []
    for r in rows:
        details = MOST_DETAILS_DISTILLED if r["steps"] <= DISTILLED_STEPS else MOST_DETAILS
        good = r["alignment loss"]["mean"] <= MOST_LOSS and r["details loss"]["mean"] <= details
        if r["state taken at"] == f"{start:g}" and good:
            fit.append(r["saved"])
    if not fit:
        raise ValueError(f"every share saved from {start:g} loses too much: sample smaller ones")
    return max(fit)


def _choose(rows: list[dict]) -> None:
    try:
        start = place(rows)
        most = most_saved(rows, start)
    except ValueError:  # with few samples there may be none
        return
    for r in rows:
        if r["state taken at"] == f"{start:g}" and r["saved"] == most:
            r["chosen"] = "chosen"


def _draw(axes, rows: list[dict]) -> None:
    for steps, k in sorted({(r["steps"], r["saved"]) for r in rows}):
        mine = [r for r in rows if (r["steps"], r["saved"]) == (steps, k)]
        x = [100 * r["details loss"]["mean"] for r in mine]
        y = [100 * r["alignment loss"]["mean"] for r in mine]
        axes.plot(x[1:], y[1:], marker=".", label=f"{k} of {steps} saved")
        axes.plot(x[:1], y[:1], "kx")
    axes.set_xlabel("details lost, % (× fewer steps)")
    axes.set_ylabel("alignment lost, points")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
