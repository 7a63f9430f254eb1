"""What a hit is compared with: NIRVANA, and the measures of a rival at the very cost of a hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import report
from .pairs import Pair
from .samples import Bench, of
from .systems import System


def nirvana(k: int) -> System:
    """NIRVANA with a fixed K: the source's state as it was, its noise too."""
    return System("NIRVANA", k1=k, start=1.0, selective=False, strength=0.0, source_noise=True)


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


def details_loss(samples: Sequence[dict], cold: Sequence[dict]) -> dict:
    """Share of the cold runs' details that is gone; below 0 where there are more."""
    return report.combined(lambda a, b: float(1 - b.mean() / a.mean()), of(cold, "details"), of(samples, "details"))
