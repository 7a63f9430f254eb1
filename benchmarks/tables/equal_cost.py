"""Alignment against cost: every system over its whole range, and the rivals at exactly what a hit of Chorus costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import report
from ..pairs import REPORTED, Pair, hit_pairs
from ..samples import Bench, of
from ..systems import CHORUS, COLD, STAGE_1, Request, System

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the schedule skipped, for the curves


def nirvana(k: int) -> System:
    """NIRVANA with a fixed K: the source's state as it was, its noise too."""
    return System("NIRVANA", k1=k, start=1.0, selective=False, strength=0.0, source_noise=True)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps and system, at the calibrated setting and at every share of the schedule."""
    rows: list[dict] = []
    summary: dict[str, dict] = {"loss_ratio_vs_nirvana": {}, "loss_ratio_vs_fewer_steps": {}}
    for steps, count in ((4, 240), (20, 160), (50, 64)) if full else ((4, 40), (20, 20)):
        pairs = hit_pairs(count, REPORTED, steps)
        cold = [bench.sample(p.target) for p in pairs]
        hits = [bench.sample(p.target, CHORUS, p.source) for p in pairs]
        costs = of(hits, "step_equivalents")
        alignments = {
            "cold": of(cold, "alignment"),
            "Chorus": of(hits, "alignment"),
            "stage 1 only": of([bench.sample(p.target, STAGE_1, p.source) for p in pairs], "alignment"),
            "NIRVANA": np.array([at_cost(bench, p, c, True) for p, c in zip(pairs, costs, strict=True)]),
            "fewer steps": np.array([at_cost(bench, p, c, False) for p, c in zip(pairs, costs, strict=True)]),
        }
        for name, values in alignments.items():
            cost = np.full(count, float(steps)) if name == "cold" else costs
            if name == "stage 1 only":
                cost = of([bench.sample(p.target, STAGE_1, p.source) for p in pairs], "step_equivalents")
            rows.append(_row(steps, name, "as calibrated", cost, values, alignments["cold"]))
        for rival, key in (("NIRVANA", "loss_ratio_vs_nirvana"), ("fewer steps", "loss_ratio_vs_fewer_steps")):
            summary[key][str(steps)] = report.combined(
                _loss_ratio, alignments["cold"], alignments["Chorus"], alignments[rival]
            )
        if steps == 4:
            summary["hit_cost_4"] = report.estimate(costs / steps)
            summary["alignment_loss_4"] = report.estimate(alignments["cold"] - alignments["Chorus"])
        rows += _curves(bench, pairs[: count // 2 if full else 10], steps, SHARES if full else SHARES[1::2])
    return report.Result(
        name="equal_cost",
        title="Alignment of hits against their cost",
        columns=["steps", "system", "setting", "n", "step equivalents", "alignment", "alignment loss"],
        rows=rows,
        seeds=[REPORTED],
        summary=summary,
        draw=lambda axes: _draw(axes, rows),
    )


def at_cost(bench: Bench, pair: Pair, cost: float, nirvana_wanted: bool) -> float:
    """A rival's alignment at a fractional number of steps: between the two whole numbers around it."""
    total = pair.target.steps
    low = max(1, min(total, int(np.floor(cost))))
    high = min(total, low + 1)
    weight = min(1.0, max(0.0, cost - low))

    def aligned(steps: int) -> float:
        if not nirvana_wanted or steps == total:
            return float(bench.sample(Request(**{**vars(pair.target), "steps": steps}))["alignment"])
        return float(bench.sample(pair.target, nirvana(total - steps), pair.source)["alignment"])

    return (1 - weight) * aligned(low) + (weight * aligned(high) if weight > 0 else 0.0)


def _curves(bench: Bench, pairs: list[Pair], steps: int, shares: Sequence[float]) -> list[dict]:
    cold = of([bench.sample(p.target, COLD) for p in pairs], "alignment")
    rows = []
    for k in sorted({max(1, round(share * steps)) for share in shares if round(share * steps) < steps}):
        systems = {
            "NIRVANA": nirvana(k),
            "stage 1 only": System("stage 1 only", k1=k, selective=False, strength=0.0),
            "Chorus": System("Chorus", k1=k, k2=min(steps, k + max(1, steps // 4))),
        }
        for name, system in systems.items():
            samples = [bench.sample(p.target, system, p.source) for p in pairs]
            setting = f"K1 = {k}"
            rows.append(_row(steps, name, setting, of(samples, "step_equivalents"), of(samples, "alignment"), cold))
        fewer = [bench.sample(Request(**{**vars(p.target), "steps": steps - k})) for p in pairs]
        cost = of(fewer, "step_equivalents")
        rows.append(_row(steps, "fewer steps", f"{steps - k} steps", cost, of(fewer, "alignment"), cold))
    return rows


def _row(steps: int, system: str, setting: str, cost: np.ndarray, aligned: np.ndarray, cold: np.ndarray) -> dict:
    return {
        "steps": steps,
        "system": system,
        "setting": setting,
        "n": len(aligned),
        "step equivalents": report.estimate(cost),
        "alignment": report.estimate(aligned),
        "alignment loss": report.estimate(cold - aligned),
    }


def _loss_ratio(cold: np.ndarray, ours: np.ndarray, rival: np.ndarray) -> float:
    loss = float((cold - rival).mean())
    return float((cold - ours).mean()) / loss if loss > 0 else float("nan")


def _draw(axes, rows: list[dict]) -> None:
    colours = {"Chorus": "tab:red", "NIRVANA": "tab:blue", "stage 1 only": "tab:orange", "fewer steps": "tab:gray"}
    styles = {4: ":", 20: "-", 50: "--"}
    for steps in sorted({r["steps"] for r in rows}):
        for name, colour in colours.items():
            points = [
                r for r in rows if r["steps"] == steps and r["system"] == name and r["setting"] != "as calibrated"
            ]
            x = [p["step equivalents"]["mean"] / steps for p in points]
            y = [100 * p["alignment loss"]["mean"] for p in points]
            axes.plot(x, y, styles[steps], color=colour, marker=".", label=f"{name}, {steps} steps")
    axes.set_xlabel("cost: share of the cold run's step equivalents")
    axes.set_ylabel("alignment loss, points")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
