"""What each step of a run is after its look: full, selective, or answered with the latest estimate.

A course is a string with a letter for each of the N steps, see `Schedule.kinds`. The first step is the look.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .join import Cut
from .schedule import ANSWERED, FULL, SELECTIVE


@dataclass(frozen=True)
class Course:
    """How a schedule of one length goes on after its look. All are numbers of steps.

    again: the step of a second look, which is compared with the source's estimate there; 0 for none.
    every, last: with selective steps, each `every`-th step is a full one, and so are the `last` ones.
    full_from: where no token is left out, the step from which on all are full; before it, all but every `again`-th
        one are answered.
    thinned: how many steps are answered where everything differs.
    """

    again: int
    every: int
    last: int
    full_from: int
    thinned: int

    @property
    def looks(self) -> set[int]:
        """The steps of the looks. A run in full keeps its estimates there for the looks of others."""
        return {0, self.again}

    def scaled(self, factor: float) -> Course:
        """For a schedule so many times as long."""
        return Course(**{name: round(value * factor) if value else 0 for name, value in vars(self).items()})


@dataclass(frozen=True)
class Looks:
    """The calibrated figures of looks.json.

    grow: by how many tokens the mask reaches beyond the difference, where no node says it.
    """

    cut: Cut
    grow: int
    courses: Mapping[int, Course]

    def course(self, steps: int) -> Course:
        """Of the calibrated length that is nearest in the logarithm, scaled."""
        nearest = min(self.courses, key=lambda length: abs(math.log(length / steps)))
        return self.courses[nearest].scaled(steps / nearest)


@cache
def calibrated() -> Looks:
    """From looks.json."""
    table = json.loads((Path(__file__).parent / "looks.json").read_text(encoding="utf-8"))
    courses = {int(steps): Course(**values) for steps, values in table["courses"].items()}
    return Looks(Cut(**table["cut"]), table["grow"], courses)


def selective(steps: int, course: Course) -> str:
    """The steps before a second look are answered; then only the changed tokens are computed, but for full steps."""
    every, last = max(1, course.every), max(1, course.last)

    def kind(k: int) -> str:
        if k < course.again:
            return ANSWERED if k else FULL
        return FULL if (k - course.again) % every == 0 or k >= steps - last else SELECTIVE

    return "".join(kind(k) for k in range(steps))


def skipping(steps: int, full_from: int, again: int) -> str:
    """Of the steps before `full_from`, the first and every `again`-th are full, the others answered; from there on all
    are full.
    """
    return "".join(FULL if k >= full_from or k == 0 or (again and k % again == 0) else ANSWERED for k in range(steps))


def answering(steps: int, saved: int, again: int) -> str:
    """The course of `skipping` that answers so many steps, or as many as it can."""
    kinds = FULL * steps
    for full_from in range(1, steps):
        kinds = skipping(steps, full_from, again)
        if kinds.count(ANSWERED) >= saved:
            break
    return kinds


def thinned(steps: int, saved: int) -> str:
    """So many steps answered, spread between the first and the last one, which are full: what is left are longer steps
    on the model's own σ.
    """
    saved = min(saved, steps - 2)
    answered = {1 + (2 * i + 1) * (steps - 2) // (2 * saved) for i in range(saved)}
    return "".join(ANSWERED if k in answered else FULL for k in range(steps))


def at_most_saved(kinds: str, share: float, most: float, behind: int) -> str:
    """The course with as many of its last steps made full as it takes to save no more than `most` of its steps.

    behind: the steps up to this one are over, and stay as they are.
    """
    steps = len(kinds)
    for k in reversed(range(behind + 1, steps)):
        if cost(kinds, share) >= (1.0 - most) * steps - 1e-9:
            break
        kinds = kinds[:k] + FULL + kinds[k + 1 :]
    return kinds


def cost(kinds: str, share: float) -> float:
    """In step equivalents, where a selective step computes this share of the tokens."""
    return kinds.count(FULL) + share * kinds.count(SELECTIVE)
