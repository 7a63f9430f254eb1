"""How match scores turn into reuse: the calibrated figures of calibration.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Share:
    """A fraction of the number of steps, 0 to 1, by how many steps the schedule has.

    by_steps: (steps, fraction) in rising order of steps; between them it is linear in the logarithm of the steps.
    """

    by_steps: tuple[tuple[int, float], ...]

    @classmethod
    def fixed(cls, share: float) -> Share:
        """The same fraction for every schedule."""
        return cls(((1, share),))

    def of(self, steps: int) -> float:
        """The fraction for a schedule of so many steps; beyond the given lengths, that of the nearest."""
        given, shares = zip(*self.by_steps, strict=True)
        return float(np.interp(np.log(max(1, steps)), np.log(given), shares))


@dataclass(frozen=True)
class Bounds:
    """What schedules of one length may save. All are fractions of the number of steps, 0 to 1."""

    least_reuse: float  # K1 / N at the threshold
    most_reuse: float  # K1 / N at score 1
    selective: float  # (K2 − K1) / N
    start: float  # where on the schedule the source's state is taken; K1 / N where that is less


@dataclass(frozen=True)
class Calibration:
    """How an embedder's scores turn into reuse."""

    threshold: float  # scores below are misses
    bounds: Mapping[int, Bounds]  # by the number of steps, in rising order
    steps_per_cfg: float = 0.0  # computed steps that must remain for each unit of CFG

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
    return {
        family: Calibration(**values, bounds=lengths, steps_per_cfg=table.get("steps_per_cfg", 0.0))
        for family, values in table["embedders"].items()
    }


def calibration_of(embedder: str) -> Calibration:
    """The calibration of an embedder's family, the part of its name before the colon."""
    table = calibrations()
    return table.get(embedder.split(":", 1)[0], table["conditioning"])
