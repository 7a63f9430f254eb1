"""The plan of one request: the value that flows on the CHORUS socket, and how K1 and K2 follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.entry import Entry, Space
from ..messages import Message
from .amplification import Amplification
from .regions import Regions
from .trajectory import SIGMA_TOLERANCE


@dataclass(frozen=True)
class Share:
    """A share of the schedule, by how many steps the schedule has: linear in their logarithm between those given."""

    by_steps: tuple[tuple[int, float], ...]  # (steps, share), in rising order of steps

    @classmethod
    def fixed(cls, share: float) -> Share:
        """The same share of every schedule."""
        return cls(((1, share),))

    def of(self, steps: int) -> float:
        """The share of a schedule of so many steps; beyond those given, that of the nearest."""
        given, shares = zip(*self.by_steps, strict=True)
        return float(np.interp(np.log(max(1, steps)), np.log(given), shares))


FROM_K1 = Share.fixed(1.0)


@dataclass(frozen=True)
class Bounds:
    """What schedules of one length may save. Shares of the schedule."""

    least_reuse: float  # K1 / N at the threshold
    most_reuse: float  # K1 / N at score 1
    selective: float  # (K2 − K1) / N
    start: float  # where on the schedule the source's state is taken; K1 / N where that is less


@dataclass(frozen=True)
class Calibration:
    """How an embedder's scores turn into reuse. Shares are of the schedule, in percent-of-steps terms."""

    threshold: float  # scores below are misses
    bounds: Mapping[int, Bounds]  # by the number of steps, in rising order

    def reuse(self, score: float, maximum: float = 1.0) -> Share:
        """K1 / N: linear in the score from `least_reuse` to `most_reuse`, so monotone, and never above `maximum`."""
        span = max(1e-6, 1.0 - self.threshold)
        position = min(1.0, max(0.0, (score - self.threshold) / span))
        shares = ((n, b.least_reuse + (b.most_reuse - b.least_reuse) * position) for n, b in self.bounds.items())
        return Share(tuple((n, min(share, maximum)) for n, share in shares))

    def start(self) -> Share:
        """Where on the schedule the source's state is taken."""
        return Share(tuple((n, b.start) for n, b in self.bounds.items()))

    def full_from(self, reuse: Share) -> Share:
        """K2 / N, at the calibrated distance behind K1 / N."""
        return Share(tuple((n, min(1.0, reuse.of(n) + b.selective)) for n, b in self.bounds.items()))


@cache
def calibrations() -> Mapping[str, Calibration]:
    """The calibrated values a family of embedders has, from calibration.json."""
    table = json.loads((Path(__file__).parent / "calibration.json").read_text(encoding="utf-8"))
    lengths = {int(steps): Bounds(**values) for steps, values in table["bounds"].items()}
    return {family: Calibration(**values, bounds=lengths) for family, values in table["embedders"].items()}


def calibration_of(embedder: str) -> Calibration:
    """The calibration of an embedder's family, the part of its name before the colon."""
    table = calibrations()
    return table.get(embedder.split(":", 1)[0], table["conditioning"])


@dataclass(frozen=True)
class Source:
    """The cached request that the target reuses."""

    entry: Entry
    score: float
    tokens: torch.Tensor | None  # [L, C] encodings of its prompt
    attention: torch.Tensor | None  # [L, T', H', W'] where each token looked


@dataclass(frozen=True)
class Refused:
    """An entry near the request that does not serve."""

    entry: Entry
    score: float
    differs: tuple[str, ...]  # the parts of the space in which it differs; none: its score is below the threshold


@dataclass(frozen=True)
class Plan:
    """One request's plan. Immutable: every node returns a new one."""

    id: str  # of the look-up that made it; ties a finished run to its ChorusCacheStore
    cache_name: str
    reads: bool
    writes: bool
    prompt: str
    embedder: str
    vector: np.ndarray  # [D] unit norm
    space: Space
    experts: tuple[tuple[str, str], ...]  # (weights, LoRAs) digests of the models this plan is valid for
    source: Source | None
    score: float  # of the nearest entry in the space, −1 when there is none
    explanation: Message
    threshold: float = 1.0  # the score from which an entry counts as a match
    nearest: tuple[Refused, ...] = ()  # on a miss, the best first
    start_latent: str = ""  # digest of the latent that sampling starts from, "" for an empty one
    tokens: torch.Tensor | None = None  # [L, C] encodings of the target prompt, when known at look-up
    token_labels: tuple[str, ...] = ()
    reuse: Share | None = None  # stage 1: K1 / N; None when the node is absent
    start: Share = FROM_K1  # stage 1: where the source's state is taken; K1's own place where that is less
    regions: Regions | None = None  # stage 2
    regions_note: Message | None = None
    amplification: Amplification | None = None
    full_from: Share | None = None  # stage 3: K2 / N; None when the node is absent
    asked: Mapping[str, tuple] = field(default_factory=dict)  # what each stage node was set to
    place: Any = None  # where that cache is; None: wherever caches are now
    lookup_seconds: float = 0.0
    stage_seconds: float = 0.0

    @property
    def hit(self) -> bool:
        return self.source is not None

    def with_stage(self, name: str, asked: tuple, **changes: Any) -> Plan:
        """The plan with one stage's part; `asked` is what its node was set to, plain data.

        Requests are told apart by what was asked, not by what came of it, which depends on the cache of the day.
        """
        return replace(self, asked={**self.asked, name: asked}, **changes)


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


def stage_bounds(sigmas: Sequence[float], reuse_cut: float | None, full_cut: float | None) -> tuple[int, int]:
    """(K1, K2) of a schedule from the two σ; None: the stage's node is absent, so nothing is skipped, or refined."""
    k1 = 0 if reuse_cut is None else steps_reached(sigmas, reuse_cut)
    k2 = len(sigmas) - 1 if full_cut is None else steps_reached(sigmas, full_cut)
    return k1, max(k1, k2)
