"""What hits go by: the cut and the courses of chorus/reuse/looks.json, on the tuning half.

Each row differs from what is in use in one thing. The rows say what hits cost with it, and how they compare with
fewer steps at that cost; a row that is cheaper than the one in use at equal words, details and object error would be
the better choice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chorus.reuse.course import calibrated

from .. import report
from ..samples import Bench
from ..scene_pairs import TUNED, scene_pairs
from ..systems import BenchWan
from .hits import HIT, SKIPPING, Systems, of_systems, over_fewer, pair_of

FULL = {4: 44, 20: 33, 50: 22}
QUICK = {20: 2}
OTHERS: dict[int, tuple[dict[str, Any], ...]] = {
    4: (
        {"highest": 0.3},
        {"highest": 0.9},
        {"stride": 1},
        {"visible_dilation": 0},
        {"visible_dilation": 2},
        {"every": 2},
    ),
    20: (
        {"highest": 0.3},
        {"highest": 0.9},
        {"stride": 1},
        {"stride": 3},
        {"visible_dilation": 0},
        {"every": 5},
        {"last": 5},
    ),
    50: ({"stride": 1}, {"stride": 2}, {"stride": 4}),
}
"""By the number of steps: what is tried in place of what is in use, fields of a `CourseRule` or of a `System`."""
OF_SYSTEM = {"highest", "visible_dilation"}
WITHOUT = {4: (), 20: ({"full_from": 10}, {"full_from": 14}), 50: ()}
"""The same where no token is left out."""


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps and course."""
    wan, rows = bench.of(BenchWan()), []
    for steps, count in (FULL if full else QUICK).items():
        pairs = [pair_of(pair, steps) for pair in scene_pairs(count, TUNED)]
        known = calibrated().rule(steps)
        for hit, others in ((HIT, OTHERS), (SKIPPING, WITHOUT)):
            for other in ({}, *others[steps][: None if full else 1]):
                rule = replace(known, **{name: value for name, value in other.items() if name not in OF_SYSTEM})
                of_system = {name: value for name, value in other.items() if name in OF_SYSTEM}
                system = replace(hit, rule=rule, **of_system)
                told = of_systems(wan.each(pairs, lambda pair, hit=system: Systems(wan, pair, hit).compared()))
                loss = told["cold"]["alignment"] - told["look and join"]["alignment"]
                rows.append(
                    {
                        "steps": steps,
                        "system": hit.name,
                        "course": ", ".join(f"{name} {value}" for name, value in other.items()) or "in use",
                        "n": len(pairs),
                        "alignment loss": report.estimate(loss),
                        "copies": report.estimate(told["look and join"]["copies"]),
                        **{name.replace("_", " "): value for name, value in over_fewer(steps, told).items()},
                    }
                )
    return report.Result(
        name="courses",
        title="What hits with a look go by",
        columns=list(rows[0]),
        rows=rows,
        seeds=[TUNED],
    )
