"""What a prompt of the bench's scenes can name, in plain text and as data."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from small_wan.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES

PLACES: dict[str, tuple[int, int]] = {
    "on its left": (-1, 0),
    "on its right": (1, 0),
    "above it": (0, -1),
    "below it": (0, 1),
}
COUNTS = {"two": 2, "three": 3, "four": 4}
PANS: dict[str, int] = {"left": 1, "right": -1}  # what rests moves to the other side

TEMPLATES = (
    "{scene} over {background}",
    "{background} with {scene}",
    "a video of {scene} in front of {background}",
)


@dataclass(frozen=True)
class Caption:
    """The attributes that a prompt names.

    second: (colour, shape, place) of a resting object, seen from the main one; dots: how many white dots ("two", …);
    pan: where the camera pans to. None: not named. A scene has a third object that no prompt names, and a second one
    also where it is not named; dots and a pan only where they are named.
    """

    colour: str
    shape: str
    direction: str
    background: str
    second: tuple[str, str, str] | None = None
    dots: str | None = None
    pan: str | None = None
    template: int = 0

    @property
    def text(self) -> str:
        parts = [f"a {self.colour} {self.shape} moving {self.direction}"]
        if self.second:
            parts.append("a {} {} {}".format(*self.second))
        if self.dots:
            parts.append(f"{self.dots} white dots")
        if self.pan:
            parts.append(f"the camera pans {self.pan}")
        return TEMPLATES[self.template].format(scene=", ".join(parts), background=f"a {self.background} background")

    @property
    def held_out(self) -> bool:
        """Whether the combination of the main attributes is kept from training (one in five)."""
        key = f"{self.colour} {self.shape} {self.direction} {self.background}"
        return zlib.crc32(key.encode()) % 5 == 0

    @property
    def possible(self) -> bool:
        """Whether a scene can show it: not where the main object moves with what rests, so that nothing tells them
        apart, and not where it and a second one ahead move towards each other.
        """
        if self.pan is None:
            return True
        way, rests = DIRECTIONS[self.direction], (PANS[self.pan], 0)
        return way != rests and (self.second is None or PLACES[self.second[2]] != way or way[0] * rests[0] >= 0)

    def attributes(self) -> dict[str, str]:
        """What is named, by the attribute's name."""
        named = {
            "background": self.background,
            "colour": self.colour,
            "direction": self.direction,
            "shape": self.shape,
        }
        if self.second:
            named |= dict(zip(("second colour", "second shape", "second place"), self.second, strict=True))
        if self.dots:
            named["dots"] = self.dots
        if self.pan:
            named["pan"] = self.pan
        return named


SECOND, DOTS, PAN = 0.6, 0.7, 0.25  # how often a prompt names them


def sample_caption(rng: np.random.Generator, *, held_out: bool = False, template: int | None = None) -> Caption:
    """A caption drawn at random; `held_out` picks from the combinations that training never sees."""

    def one(values) -> str:
        return str(rng.choice(list(values)))

    while True:
        index = int(rng.integers(len(TEMPLATES))) if template is None else template
        caption = Caption(one(COLOURS), one(SHAPES), one(DIRECTIONS), one(BACKGROUNDS), template=index)
        if caption.held_out != held_out:
            continue
        if rng.random() < SECOND:
            colour = one(c for c in COLOURS if c != caption.colour)
            caption = replace(caption, second=(colour, one(SHAPES), one(PLACES)))
        dots, pan = (one(COUNTS) if rng.random() < DOTS else None, one(PANS) if rng.random() < PAN else None)
        caption = replace(caption, dots=dots, pan=pan)
        if caption.possible:
            return caption
