"""Alignment and details by cost: every system over its whole range, and the others at exactly the cost of a hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .. import report
from ..pairs import REPORTED, Pair, hit_pairs
from ..samples import Bench, of
from ..systems import CHORUS, COLD, STAGE_1, System

SHARES = (0.2, 0.4, 0.5, 0.6, 0.75)  # of the schedule skipped, for the curves
FULL = {4: (160, 40), 20: (64, 20), 50: (24, 10)}  # steps → pairs at the calibrated setting, pairs of the curves
QUICK = {4: (24, 8), 20: (12, 6)}
AT_K1 = System("state taken at K1", start=1.0, selective=False, strength=0.0)


def nirvana(k: int) -> System:
    """NIRVANA with a fixed K: the source's state as it was, its noise too."""
    return System("NIRVANA", k1=k, start=1.0, selective=False, strength=0.0, source_noise=True)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps and system, at the calibrated setting and at every share of the schedule."""
    rows: list[dict] = []
    keys = ("loss_ratio_vs_nirvana", "loss_ratio_vs_fewer_steps")
    keys += tuple(f"{name}{whose}" for name in ("details_loss", "error_rise") for whose in ("", "_of_fewer_steps"))
    keys += ("alignment_beyond_fewer_steps", "details_beyond_fewer_steps")
    summary: dict[str, dict] = {key: {} for key in keys}
    for steps, (count, few) in (FULL if full else QUICK).items():
        pairs = hit_pairs(count, REPORTED, steps)
        cold = [bench.sample(p.target) for p in pairs]
        hits = [bench.sample(p.target, CHORUS, p.source) for p in pairs]
        costs = of(hits, "step_equivalents")
        found = {
            "cold": cold,
            "Chorus": hits,
            "stage 1 only": [bench.sample(p.target, STAGE_1, p.source) for p in pairs],
            "NIRVANA": [at_cost(bench, p, c, True) for p, c in zip(pairs, costs, strict=True)],
            "fewer steps": [at_cost(bench, p, c, False) for p, c in zip(pairs, costs, strict=True)],
        }
        rows += [_row(steps, name, "as calibrated", samples, cold) for name, samples in found.items()]
        losses = [of(found[name], "alignment") for name in ("cold", "Chorus", "NIRVANA", "fewer steps")]
        summary["loss_ratio_vs_nirvana"][str(steps)] = report.combined(_loss_ratio, *losses[:3])
        summary["loss_ratio_vs_fewer_steps"][str(steps)] = report.combined(_loss_ratio, *losses[:2], losses[3])
        for whose, samples in (("", hits), ("_of_fewer_steps", found["fewer steps"])):
            summary[f"details_loss{whose}"][str(steps)] = details_loss(samples, cold)
            summary[f"error_rise{whose}"][str(steps)] = _error_rise(samples, cold)
        summary["alignment_beyond_fewer_steps"][str(steps)] = report.estimate(losses[1] - losses[3])
        summary["details_beyond_fewer_steps"][str(steps)] = report.combined(
            lambda a, b, c: float((b.mean() - c.mean()) / a.mean()),
            *(of(found[name], "details") for name in ("cold", "Chorus", "fewer steps")),
        )
        if steps == 4:
            summary["hit_cost_4"] = report.estimate(costs / steps)
            summary["alignment_loss_4"] = report.estimate(losses[0] - losses[1])
        rows += _curves(bench, pairs[:few], steps, SHARES if full else SHARES[1::2])
    return report.Result(
        name="equal_cost",
        title="Alignment of hits against their cost",
        columns=list(rows[0]),
        rows=rows,
        seeds=[REPORTED],
        summary=summary,
        draw=lambda axes: _draw(axes, rows),
    )


def at_cost(bench: Bench, pair: Pair, cost: float, nirvana_wanted: bool) -> dict:
    """A rival at a fractional number of steps: its measures between those of the two whole numbers around it."""
    total = pair.target.steps
    low = max(1, min(total, int(np.floor(cost))))
    high = min(total, low + 1)
    weight = min(1.0, max(0.0, cost - low))

    def sampled(steps: int) -> dict:
        if not nirvana_wanted or steps == total:
            return bench.sample(replace(pair.target, steps=steps))
        return bench.sample(pair.target, nirvana(total - steps), pair.source)

    below = sampled(low)
    above = sampled(high) if weight > 0 else below
    measures = {"alignment", "error", "details", "step_equivalents"} & below.keys()  # real weights have no error
    return {name: (1 - weight) * below[name] + weight * above[name] for name in measures}


def _curves(bench: Bench, pairs: list[Pair], steps: int, shares: Sequence[float]) -> list[dict]:
    cold = [bench.sample(p.target, COLD) for p in pairs]
    rows = []
    for k in sorted({max(1, round(share * steps)) for share in shares if round(share * steps) < steps}):
        systems = {
            "NIRVANA": nirvana(k),
            "state taken at K1": replace(AT_K1, k1=k),
            "stage 1 only": replace(STAGE_1, k1=k),
            "early start": System("early start", k1=k, k2=min(steps, k + max(1, steps // 5)), method="early start"),
        }
        for name, system in systems.items():
            rows.append(_row(steps, name, f"K1 = {k}", [bench.sample(p.target, system, p.source) for p in pairs], cold))
        fewer = [bench.sample(replace(p.target, steps=steps - k)) for p in pairs]
        rows.append(_row(steps, "fewer steps", f"{steps - k} steps", fewer, cold))
    return rows


def _row(steps: int, system: str, setting: str, samples: Sequence[dict], cold: Sequence[dict]) -> dict:
    return {
        "steps": steps,
        "system": system,
        "setting": setting,
        "n": len(samples),
        "step equivalents": report.estimate(of(samples, "step_equivalents")),
        "alignment": report.estimate(of(samples, "alignment")),
        "alignment loss": report.estimate(of(cold, "alignment") - of(samples, "alignment")),
        "error rise": _error_rise(samples, cold),
        "details loss": details_loss(samples, cold),
    }


def details_loss(samples: Sequence[dict], cold: Sequence[dict]) -> dict:
    """Share of the cold runs' details that is gone; below 0 where there are more."""
    return report.combined(lambda a, b: float(1 - b.mean() / a.mean()), of(cold, "details"), of(samples, "details"))


def _error_rise(samples: Sequence[dict], cold: Sequence[dict]) -> dict:
    """How much further from the prompt's rendering than the cold runs', as a share of these, where all words show."""
    whole = (of(cold, "alignment") == 1) & (of(samples, "alignment") == 1)
    if not whole.any():
        return {"mean": None, "low": None, "high": None, "n": 0}
    errors = of(cold, "error")[whole], of(samples, "error")[whole]
    return report.combined(lambda a, b: float(b.mean() / a.mean() - 1), *errors)


def _loss_ratio(cold: np.ndarray, ours: np.ndarray, rival: np.ndarray) -> float:
    loss = float((cold - rival).mean())
    return float((cold - ours).mean()) / loss if loss > 0 else float("nan")


def _draw(axes, rows: list[dict]) -> None:
    colours = {
        "early start": "tab:red",
        "NIRVANA": "tab:blue",
        "stage 1 only": "tab:orange",
        "state taken at K1": "tab:green",
        "fewer steps": "tab:gray",
    }
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
