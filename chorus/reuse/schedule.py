"""A schedule and the path that a run really walks on it. The one place where steps and σ are exchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .trajectory import SIGMA_TOLERANCE

FULL, SELECTIVE, SKIPPED = "F", "S", "-"
_KINDS = {FULL, SELECTIVE, SKIPPED}


@dataclass(frozen=True)
class Schedule:
    """Immutable. σ_0 > … > σ_N as they were asked for, and what is made of them.

    sigmas: σ_0 … σ_N.
    k1: the first computed step; where `kinds` is set, the first one after step 0. k2: the first step from which on
        all are full. 0 ≤ K1 ≤ K2 ≤ N. Steps [K1, K2) are stage 2; with a look, `kinds` says what each of them is.
    start: the σ at which the walk begins, at or above σ_K1; None for σ_K1 itself. From a higher one the N − K1
        steps cover all the way from there, spaced as the schedule is.
    kinds: where the run looks, or goes on after a first sampler that has looked, what each of the N steps is: FULL,
        SELECTIVE or SKIPPED (the latest estimate is used again, so that the state moves on in a straight line). Only
        where it goes on the first may be skipped. "" for all other walks.
    looks: the steps whose estimates are compared with the source's, so that nothing else may change them.
    """

    sigmas: tuple[float, ...]
    k1: int = 0
    k2: int = 0
    start: float | None = None
    kinds: str = ""
    looks: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if len(self.sigmas) < 2:
            raise ValueError(f"a schedule has at least two σ, this one has {len(self.sigmas)}")
        if not 0 <= self.k1 <= self.k2 <= self.steps:
            raise ValueError(f"K1 = {self.k1}, K2 = {self.k2}: expected 0 ≤ K1 ≤ K2 ≤ {self.steps}")
        if self.kinds and (len(self.kinds) != self.steps or self.kinds[0] == SELECTIVE or set(self.kinds) - _KINDS):
            raise ValueError(f"kinds {self.kinds!r}: expected {self.steps} of {_KINDS}, the first one not selective")

    @property
    def steps(self) -> int:
        """N, the number of steps asked for."""
        return len(self.sigmas) - 1

    @property
    def complete(self) -> bool:
        """Whether it reaches σ = 0."""
        return self.sigmas[-1] == 0.0

    @cached_property
    def whole_path(self) -> tuple[float, ...]:
        """σ by step, N + 1 of them: those skipped as they were asked for, from K1 on those really walked."""
        if self.start is None:
            return self.sigmas
        return tuple(stretched(self.sigmas, self.k1, self.start))

    @property
    def first(self) -> int:
        """The step with which the walk begins."""
        return 0 if self.kinds else self.k1

    @property
    def path(self) -> tuple[float, ...]:
        """The σ really walked, from the first step to the end."""
        return self.whole_path[self.first :]

    def looking(self, kinds: str, looks: Iterable[int] | None = None) -> Schedule:
        """The schedule walked from σ_0 on, each step as `kinds` says. looks: None for those that it has.

        K1 becomes the first step after the look that is computed at all, K2 the first from which on all are full.
        """
        k1 = next((k for k in range(1, self.steps) if kinds[k] != SKIPPED), self.steps)
        k2 = max(k1, max((k + 1 for k, kind in enumerate(kinds) if kind != FULL), default=0))
        return replace(
            self, k1=k1, k2=k2, start=None, kinds=kinds, looks=self.looks if looks is None else frozenset(looks)
        )

    def from_step(self, k1: int, start: float | None = None) -> Schedule:
        """The schedule with its first `k1` steps skipped and all others full."""
        return replace(self, k1=k1, k2=k1, start=start, kinds="", looks=frozenset())

    def step_at(self, sigma: float) -> int:
        """The step that an evaluation at `sigma` belongs to: the last one that begins at or above it."""
        reached = [k for k in range(self.first, self.steps) if self.whole_path[k] >= sigma - SIGMA_TOLERANCE]
        return reached[-1] if reached else self.first

    def begins_at(self, sigma: float) -> int | None:
        """The step that begins at `sigma`, None for a σ between two steps."""
        step = self.step_at(sigma)
        return step if abs(self.whole_path[step] - sigma) < SIGMA_TOLERANCE else None

    def in_stage_2(self, step: int) -> bool:
        """Whether a step lies between K1 and K2."""
        return self.k1 <= step < self.k2

    def is_selective(self, step: int) -> bool:
        """Whether a step of a walk with a look computes a part of the tokens."""
        return bool(self.kinds) and self.kinds[step] == SELECTIVE

    def is_skipped(self, step: int) -> bool:
        """Whether a step uses the latest estimate again, so that nothing is computed."""
        return bool(self.kinds) and self.kinds[step] == SKIPPED


def steps_reached(sigmas: Sequence[float], cut: float) -> int:
    """How many steps of a schedule lie before the σ `cut`: the largest k with σ_k ≥ cut, 0 when there is none.

    All of them where the schedule ends at or above the cut, as the first of two experts' may. σ, not step numbers, so
    that a schedule cut in two agrees with itself.
    """
    reached = [k for k, sigma in enumerate(sigmas) if sigma >= cut - SIGMA_TOLERANCE]
    return reached[-1] if reached else 0


def stretched(sigmas: Sequence[float], k1: int, start: float) -> list[float]:
    """The σ of a schedule whose first `k1` steps are saved though it begins at `start`, at or above σ_K1.

    The N − K1 steps left cover all from `start` to the end, spaced as the schedule is, so that none of them gets
    longer than the others. The skipped steps' σ stay in front.
    """
    if not 0 < k1 < len(sigmas) - 1 or start <= sigmas[k1]:
        return list(sigmas)
    last = len(sigmas) - 1
    place = float(np.interp(-start, [-s for s in sigmas], range(last + 1)))
    places = np.linspace(place, last, last - k1 + 1)
    path = [float(s) for s in np.interp(places, range(last + 1), sigmas)]
    return [*sigmas[:k1], start, *path[1:-1], sigmas[last]]
