"""How a hit goes on after its look: what the courses of chorus/reuse/looks.json rest on, on the tuning half.

Each course differs from the one in use in one thing. The rows say what hits cost with it, and how they compare with
fewer steps at that cost; a row that is cheaper than the one in use at equal words, details and object error would be
the better choice.
"""

from __future__ import annotations

from dataclasses import replace

from chorus.reuse.course import CourseRule, calibrated

from .. import report
from ..samples import Bench
from ..scene_pairs import TUNED, scene_pairs
from ..systems import BenchWan
from .hits import HIT, SKIPPING, Systems, of_systems, over_fewer, pair_of

FULL = {4: 44, 20: 33, 50: 11}
QUICK = {20: 2}
OTHERS: dict[int, tuple[dict[str, int], ...]] = {
    4: ({"last": 2}, {"second_look": 1, "last": 2}),
    20: ({"second_look": 3}, {"second_look": 6}, {"every": 5}, {"last": 5}),
    50: ({"second_look": 15}, {"last": 10}),
}
"""By the number of steps: what other courses have in place of the one in use."""
WITHOUT = {4: (), 20: ({"full_from": 10}, {"full_from": 14}), 50: ()}
"""The same where no token is left out."""


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps and course."""
    wan, rows = bench.of(BenchWan()), []
    for steps, count in (FULL if full else QUICK).items():
        if not BenchWan.samples(steps):
            continue
        pairs = [pair_of(pair, steps) for pair in scene_pairs(count, TUNED)]
        known = calibrated().rule(steps)
        for hit, others in ((HIT, OTHERS), (SKIPPING, WITHOUT)):
            for other in ({}, *others[steps][: None if full else 1]):
                rule = replace(known, **other)
                system = replace(hit, rule=rule)
                told = of_systems(wan.each(pairs, lambda pair, hit=system: Systems(wan, pair, hit).compared()))
                loss = told["cold"]["alignment"] - told["look and join"]["alignment"]
                rows.append(
                    {
                        "steps": steps,
                        "system": hit.name,
                        "course": _differs(rule, known),
                        "n": len(pairs),
                        "alignment loss": report.estimate(loss),
                        "copies": report.estimate(told["look and join"]["copies"]),
                        **{name.replace("_", " "): value for name, value in over_fewer(steps, told).items()},
                    }
                )
    return report.Result(
        name="courses",
        title="How a hit goes on after its look",
        columns=list(rows[0]),
        rows=rows,
        seeds=[TUNED],
    )


def _differs(rule: CourseRule, known: CourseRule) -> str:
    mine, usual = vars(rule), vars(known)
    return ", ".join(f"{name} {mine[name]}" for name in mine if mine[name] != usual[name]) or "in use"
