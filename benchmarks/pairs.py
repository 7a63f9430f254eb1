"""Prompts to sample: plain held-out ones, and pairs of a request with the earlier one that it would reuse.

Everything is chosen on TUNED and reported on REPORTED: other prompts, other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from small_wan import scenes

from .prompts import edited, vectors, vidprom
from .systems import Request

TUNED, REPORTED = 7, 8
LEAST_SCORE = 0.6  # pairs less alike are misses under any threshold that we or the papers use


@dataclass(frozen=True)
class Pair:
    """A request, the most similar earlier one, and their score."""

    source: Request
    target: Request
    score: float

    @property
    def changed(self) -> set[str]:
        """The target's attributes that the source's prompt does not name."""
        assert self.source.caption is not None
        assert self.target.caption is not None
        before = self.source.caption.attributes()
        return {name for name, value in self.target.caption.attributes().items() if before.get(name) != value}


def request(caption: scenes.Caption, seed: int, steps: int) -> Request:
    """The request for a caption."""
    return Request(caption.text, seed, steps, caption=caption)


def cold_requests(count: int, seed: int, steps: int) -> list[Request]:
    """Held-out prompts, half of them with a second object."""
    rng = np.random.default_rng(seed)
    captions = [scenes.sample_caption(rng, held_out=True) for _ in range(count)]
    return [request(c, 10_000 * seed + i, steps) for i, c in enumerate(captions)]


CANDIDATES = 48  # edits proposed for a pair; the one nearest to the wanted score is taken


@cache
def _alike(count: int, seed: int) -> tuple[tuple[scenes.Caption, scenes.Caption, float], ...]:
    """(source, target, score): edits of held-out prompts whose scores follow VidProM's above LEAST_SCORE."""
    rng = np.random.default_rng(seed)
    wanted = [w for w in vidprom()(rng.random(4 * count)) if w >= LEAST_SCORE][:count]
    found = []
    for score in wanted:
        source = scenes.sample_caption(rng, held_out=True)
        targets = [some_edits(source, rng) for _ in range(CANDIDATES)]
        points = vectors([source, *targets])
        scores = points[1:] @ points[0]
        best = int(np.abs(scores - score).argmin())
        found.append((source, targets[best], float(scores[best])))
    return tuple(found)


def some_edits(caption: scenes.Caption, rng: np.random.Generator) -> scenes.Caption:
    """One to four edits, another wording now and then; never the same prompt."""
    target = caption
    while target.text == caption.text or target.attributes() == caption.attributes():
        target = caption
        for _ in range(int(rng.integers(1, 5))):
            target = edited(target, rng)
        if rng.random() < 0.3:
            target = replace(target, template=int(rng.integers(len(scenes.TEMPLATES))))
    return target


def hit_pairs(count: int, seed: int, steps: int) -> list[Pair]:
    """`count` pairs as VidProM's users would make them, each with noise of its own."""
    found = _alike(count, seed)
    return [
        Pair(request(a, 20_000 * seed + 2 * i, steps), request(b, 20_000 * seed + 2 * i + 1, steps), score)
        for i, (a, b, score) in enumerate(found)
    ]
