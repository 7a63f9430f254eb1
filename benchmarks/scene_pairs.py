"""Pairs of a request and the earlier one that it reuses, by what the new prompt changes.

Everything is chosen on TUNED and reported on REPORTED: no prompt and no seed is in both. The prompts are of the bench's
scenes (tests/bench_wan); their main attributes are combined as no training scene combines them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from bench_wan import scenes
from bench_wan.captions import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DIRECTIONS,
    PANS,
    PLACES,
    SHAPES,
    TEMPLATES,
    Caption,
    sample_caption,
)

from .systems import Image

TUNED, REPORTED = 7, 8
ANY = "any"  # a change chosen at random
MOST_CHANGES = 4
_Value = TypeVar("_Value", str, str | None, int)


@dataclass(frozen=True)
class ScenePair:
    """change: what the target's prompt changes; image: what both videos begin with, where one is given."""

    source: Caption
    target: Caption
    change: str
    source_seed: int
    target_seed: int
    image: Image | None = None


def _picked(rng: np.random.Generator, values: Iterable[_Value], *but: _Value | None) -> _Value:
    """One of the values at random, none of `but`."""
    left = [value for value in values if value not in but]
    return left[int(rng.integers(len(left)))]


def _second(part: int, values: Iterable[str]) -> Callable[[Caption, np.random.Generator], Caption | None]:
    def change(caption: Caption, rng: np.random.Generator) -> Caption | None:
        if caption.second is None:
            return None
        second = list(caption.second)
        second[part] = _picked(rng, values, second[part], caption.colour if part == 0 else None)
        return replace(caption, second=tuple(second))

    return change


def _added(caption: Caption, rng: np.random.Generator) -> Caption | None:
    lacking = [name for name in ("second", "dots") if getattr(caption, name) is None]
    if not lacking:
        return None
    if _picked(rng, lacking) == "dots":
        return replace(caption, dots=_picked(rng, COUNTS))
    colour = _picked(rng, COLOURS, caption.colour)
    return replace(caption, second=(colour, _picked(rng, SHAPES), _picked(rng, PLACES)))


def _removed(caption: Caption, rng: np.random.Generator) -> Caption | None:
    had = [name for name in ("second", "dots") if getattr(caption, name) is not None]
    return replace(caption, **{_picked(rng, had): None}) if had else None


CHANGES: dict[str, Callable[[Caption, np.random.Generator], Caption | None]] = {
    "colour": lambda c, rng: replace(c, colour=_picked(rng, COLOURS, c.colour, c.second[0] if c.second else None)),
    "shape": lambda c, rng: replace(c, shape=_picked(rng, SHAPES, c.shape)),
    "direction": lambda c, rng: replace(c, direction=_picked(rng, DIRECTIONS, c.direction)),
    "background": lambda c, rng: replace(c, background=_picked(rng, BACKGROUNDS, c.background)),
    "second colour": _second(0, COLOURS),
    "second shape": _second(1, SHAPES),
    "second place": _second(2, PLACES),
    "dots": lambda c, rng: replace(c, dots=_picked(rng, COUNTS, c.dots)) if c.dots else None,
    "added": _added,
    "removed": _removed,
    "camera": lambda c, rng: replace(c, pan=_picked(rng, [*PANS, None], c.pan)),
}
"""By name: one change of a caption, None where the caption has nothing to change so."""
FROM_AN_IMAGE: dict[str, Callable[[Caption, np.random.Generator], Caption | None]] = {
    "direction": CHANGES["direction"],
    "camera": CHANGES["camera"],
    "wording": lambda c, rng: replace(c, template=_picked(rng, range(len(TEMPLATES)), c.template)),
    "not named": lambda c, rng: replace(c, second=None) if c.second else None,
}
"""The same for what an image leaves open."""


def _is_of(half: int, caption: Caption) -> bool:
    """Whether a prompt belongs to a half: each prompt to one of the two, so that they share none."""
    return zlib.crc32(caption.text.encode()) % 2 == half % 2


def scene_pairs(count: int, half: int) -> list[ScenePair]:
    """`count` pairs with changes in turn. half: TUNED or REPORTED."""
    return _pairs(count, half, 0, [(change,) for change in CHANGES])


def distant_pairs(count: int, half: int) -> list[ScenePair]:
    """`count` pairs with one to MOST_CHANGES random changes, in turn; `change` says how many."""
    return _pairs(count, half, 10_000, [(ANY,) * times for times in range(1, MOST_CHANGES + 1)])


def image_pairs(count: int, half: int) -> list[ScenePair]:
    """`count` pairs whose videos begin with the same image, with changes of FROM_AN_IMAGE in turn."""
    rng = np.random.default_rng(half + 50_000)
    pairs: list[ScenePair] = []
    while len(pairs) < count:
        change = list(FROM_AN_IMAGE)[len(pairs) % len(FROM_AN_IMAGE)]
        source = sample_caption(rng, held_out=True)
        target = FROM_AN_IMAGE[change](source, rng)
        if target is None or not target.possible or not target.held_out:
            continue
        if not _is_of(half, source) or not _is_of(half, target):
            continue
        seed = 20_000 * half + 50_000 + 2 * len(pairs)
        _, shows = scenes.going_on(scenes.lay_out([source], seed), [target])
        if not bool(shows):
            continue
        pairs.append(ScenePair(source, target, change, seed, seed + 1, Image(source, seed)))
    return pairs


def _pairs(count: int, half: int, seeds: int, in_turn: list[tuple[str, ...]]) -> list[ScenePair]:
    """Pairs for lists of changes, in turn. seeds: added to those of other lists of pairs, so that none is in both."""
    rng = np.random.default_rng(half + seeds)
    pairs: list[ScenePair] = []
    while len(pairs) < count:
        changes = in_turn[len(pairs) % len(in_turn)]
        source = sample_caption(rng, held_out=True)
        target = _changed(source, changes, rng)
        if target is None or not target.possible or not target.held_out:
            continue
        if not _is_of(half, source) or not _is_of(half, target):
            continue
        seed = 20_000 * half + seeds + 2 * len(pairs)
        told = str(len(changes)) if ANY in changes else changes[0]
        pairs.append(ScenePair(source, target, told, seed, seed + 1))
    return pairs


def _changed(caption: Caption, changes: tuple[str, ...], rng: np.random.Generator) -> Caption | None:
    """The caption after all changes, None where one is not possible. Those of ANY all differ."""
    left = [change for change in CHANGES if change not in ("added", "removed")]
    after: Caption | None = caption
    for name in changes:
        if name == ANY:
            name = _picked(rng, left)
            left.remove(name)
        after = after and CHANGES[name](after, rng)
    return after
