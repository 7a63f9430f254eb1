"""What each step of a run is after its look: full, selective, or skipped.

A course is a string with a letter for each of the N steps, see `Schedule.kinds`. The first step is the look.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from .join import Cut
from .schedule import FULL, SELECTIVE, SKIPPED

LEAST_STEPS = 3  # a run that looks has so many; and so many a course that only looks and skips computes


@dataclass(frozen=True)
class CourseRule:
    """What the courses of one number of steps are made from: numbers of steps, but for `stride`.

    second_look: the step of a second look, which is compared with the source's estimate there; 0 for none.
    every, last: with selective steps, each `every`-th step is a full one, and so are the `last` ones.
    stride: of the steps that leave tokens out, each `stride`-th is computed, and the others are skipped.
    full_from, refresh: where no token is left out, all steps are full from `full_from` on; before it, every
        `refresh`-th one is (0: the first alone), and the others are skipped. A short schedule has fewer of these, so
        that a small change costs no more than a global one (`most` of `skipping_course`).
    thinned: by how many steps the run is shorter after a global change, see `Cut.everywhere`.
    """

    second_look: int
    every: int
    last: int
    full_from: int
    refresh: int
    thinned: int
    stride: int

    @property
    def looks(self) -> set[int]:
        """The steps of the looks. A run in full keeps its estimates there for the looks of others."""
        return {0, self.second_look}

    def scaled(self, factor: float) -> CourseRule:
        """For a schedule so many times as long, with the same stride."""
        longer = {name: round(value * factor) if value else 0 for name, value in vars(self).items()}
        return CourseRule(**longer | {"stride": self.stride})


@dataclass(frozen=True)
class Looks:
    """The figures of looks.json, set by hand after the tables `looks` and `courses`.

    grow: by how many tokens the edit mask reaches beyond the difference, where there is no mask node.
    margin: by how many tokens the visible mask reaches beyond the edit mask, for the all-in-one node.
    """

    cut: Cut
    grow: int
    margin: int
    rules: Mapping[int, CourseRule]

    def rule(self, steps: int) -> CourseRule:
        """For so many steps: that of the calibrated number that is nearest in the logarithm, scaled."""
        nearest = min(self.rules, key=lambda length: abs(math.log(length / steps)))
        return self.rules[nearest].scaled(steps / nearest)


@cache
def calibrated() -> Looks:
    """From looks.json."""
    table = json.loads((Path(__file__).parent / "looks.json").read_text(encoding="utf-8"))
    rules = {int(steps): CourseRule(**values) for steps, values in table["courses"].items()}
    return Looks(Cut(**table["cut"]), table["grow"], table["margin"], rules)


def selective_course(steps: int, rule: CourseRule) -> str:
    """A course that leaves tokens out.

    The look is a full step. Those up to a second look are skipped; from then on all are selective or skipped but for
    the full ones that `every` and `last` ask for. The first one after a full step is selective.
    """
    every, last, stride = max(1, rule.every), max(1, rule.last), max(1, rule.stride)

    def kind(k: int) -> str:
        if k < rule.second_look:
            return SKIPPED if k else FULL
        since = (k - rule.second_look) % every  # the latest full step
        if since == 0 or k >= steps - last:
            return FULL
        return SELECTIVE if (since - 1) % stride == 0 else SKIPPED

    return "".join(kind(k) for k in range(steps))


def skipping_course(steps: int, full_from: int, refresh: int, most: int | None = None) -> str:
    """A course that skips steps: see `CourseRule`.

    most: of the renewals, the last ones are skipped, too, as far as it takes to compute no more steps than this; then
    the first full steps. The first renewal stays, at which a second look is.
    """
    renewals = list(range(refresh, full_from, refresh)) if refresh else []
    if most is not None:
        renewals = renewals[: max(1, most - 1 - (steps - full_from))]
        full_from = min(steps - 1, max(full_from, steps + 1 + len(renewals) - most))
    return "".join(FULL if k >= full_from or k == 0 or k in renewals else SKIPPED for k in range(steps))


def skipping_at_least(steps: int, saved: int, refresh: int) -> str:
    """The first course of `skipping_course` that skips so many steps or more, else the one that skips most."""
    kinds = FULL * steps
    for full_from in range(1, steps):
        kinds = skipping_course(steps, full_from, refresh)
        if kinds.count(SKIPPED) >= saved:
            break
    return kinds


@dataclass(frozen=True)
class Course:
    """What each step is.

    places: where the model is asked after a global change, by step, as a share of the way from the step's σ to the next
        one; steps that are asked at their own σ are left out.
    """

    kinds: str
    places: Mapping[int, float] = field(default_factory=dict)

    @property
    def full_from(self) -> int:
        """The first step from which on all are full, so that nothing is joined any more.

        A thinned course ends with a skipped step, so that all its places lie before it.
        """
        return len(self.kinds.rstrip(FULL))


def thinned_course(steps: int, saved: int) -> Course:
    """The evaluations of a schedule that is shorter by `saved`, within one of `steps`.

    An evaluation belongs to the step in which its σ lies, and the other steps are skipped.
    """
    left = steps - min(saved, steps - 2)
    exact = [divmod(i * steps, left) for i in range(left)]
    kinds = [SKIPPED] * steps
    for k, _ in exact:
        kinds[k] = FULL
    return Course("".join(kinds), {k: rest / left for k, rest in exact if rest})


def at_most_saved(kinds: str, share: float, most: float, last_done: int) -> str:
    """The course with as many of its last steps made full as it takes to save no more than `most` of its steps.

    last_done: the steps up to this one are over, and stay as they are.
    """
    steps = len(kinds)
    for k in reversed(range(last_done + 1, steps)):
        if cost(kinds, share) >= (1.0 - most) * steps - 1e-9:
            break
        kinds = kinds[:k] + FULL + kinds[k + 1 :]
    return kinds


@dataclass(frozen=True)
class Limits:
    """What people have set by hand.

    saved: how many steps are to be skipped; None as calibrated.
    most: the largest share of the steps that a hit may save.
    k2: the step from which on all are full; None as calibrated.
    """

    saved: int | None
    most: float
    k2: int | None


def after_look(past: str, steps: int, rule: CourseRule, limits: Limits, *, share: float, leaves_out: bool) -> Course:
    """The cheapest course after a look that has found a part of the picture to differ.

    past: what the steps up to the look were; the rest is decided. share: of the tokens that selective steps compute;
    leaves_out: whether there can be any.
    """
    rule = rule if limits.k2 is None else replace(rule, last=steps - limits.k2)
    if limits.saved is not None:
        possible = [skipping_at_least(steps, limits.saved, rule.refresh)]
    else:
        most = thinned_course(steps, rule.thinned).kinds.count(FULL)
        possible = [skipping_course(steps, min(rule.full_from, steps - 1), rule.refresh, most)]
        if leaves_out:
            selective = selective_course(steps, rule)
            nothing = selective.replace(SELECTIVE, SKIPPED)
            if share > 0.0:
                possible.append(selective)
            elif steps - nothing.count(SKIPPED) >= LEAST_STEPS:
                possible = [nothing]
    return Course(min((_within(limits, past, kinds, share) for kinds in possible), key=lambda k: cost(k, share)))


def after_global_change(past: str, steps: int, rule: CourseRule, limits: Limits) -> Course:
    """The course where nothing of the source is kept, likewise."""
    if limits.saved is not None:
        return Course(_within(limits, past, skipping_at_least(steps, limits.saved, rule.refresh), 1.0))
    thinned = thinned_course(steps, rule.thinned)
    return replace(thinned, kinds=_within(limits, past, thinned.kinds, 1.0))


def _within(limits: Limits, past: str, wanted: str, share: float) -> str:
    """A wanted course, with the steps up to a look as they were, and no more saved than is allowed."""
    kinds, steps = past + wanted[len(past) :], len(wanted)
    if limits.k2 is not None:
        first = max(limits.k2, len(past))
        kinds = kinds[:first] + FULL * (steps - first)
    return at_most_saved(kinds, share, limits.most, len(past) - 1)


def cost(kinds: str, share: float) -> float:
    """In step equivalents, where a selective step computes this share of the tokens."""
    return kinds.count(FULL) + share * kinds.count(SELECTIVE)
