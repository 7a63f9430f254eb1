"""What a hit is compared with: NIRVANA, and the measures of a rival at the very cost of a hit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import report
from .samples import of
from .systems import System


def nirvana(k: int) -> System:
    """NIRVANA with a fixed K: the source's state as it was, its noise too."""
    return System("NIRVANA", k1=k, start=1.0, selective=False, strength=0.0, source_noise=True)


def between(cost: float, total: int, sampled: Callable[[int], Mapping[str, Any]]) -> dict[str, Any]:
    """A rival at a fractional number of steps: its measures between those at the two whole numbers around it.

    cost: in steps, of `total`; sampled: a whole number of steps → measures. What is no number is the nearer one's.
    """
    low = max(1, min(total, int(np.floor(cost))))
    weight = min(1.0, max(0.0, cost - low)) if low < total else 0.0
    below = sampled(low)
    above = sampled(low + 1) if weight else below
    nearer = above if weight > 0.5 else below
    return {
        name: (1 - weight) * below[name] + weight * above[name]
        if isinstance(below[name], (int, float)) and isinstance(above[name], (int, float))
        else nearer[name]
        for name in below
    }


def details_loss(samples: Sequence[dict], cold: Sequence[dict]) -> dict:
    """Share of the cold runs' details that is gone; below 0 where there are more."""
    return report.combined(lambda a, b: float(1 - b.mean() / a.mean()), of(cold, "details"), of(samples, "details"))
