"""Procedural captioned scenes: what the small Wan learns, and the ground truth its judge is held to.

A caption fixes a few attributes; everything else (place, size, speed, texture, three unnamed white dots) is
left open, so that a sampler has something to decide and needs its steps.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

SIZE = 48  # pixels a side
FRAMES = 4  # one RGB frame a latent frame

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.12, 0.12),
    "green": (0.15, 0.85, 0.20),
    "blue": (0.20, 0.35, 1.00),
    "yellow": (0.98, 0.90, 0.15),
    "pink": (1.00, 0.45, 0.80),
    "cyan": (0.15, 0.90, 0.95),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.05, 0.05, 0.05),
    "gray": (0.45, 0.45, 0.45),
    "navy": (0.05, 0.08, 0.40),
    "olive": (0.35, 0.35, 0.05),
    "maroon": (0.40, 0.05, 0.10),
    "teal": (0.02, 0.35, 0.33),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIDES = ("left", "right", "top", "bottom")
DOT = (0.97, 0.97, 0.97)
DOTS = 3
LEAN = 0.25  # 1: an object starts anywhere on its way; below, rather further on

TEMPLATES = (
    "{main} over {background}",
    "{background} with {main}",
    "a video of {main} in front of {background}",
)


@dataclass(frozen=True)
class Caption:
    """The attributes a prompt names. `second` is (colour, shape, side) of a small, resting object."""

    colour: str
    shape: str
    direction: str
    background: str
    second: tuple[str, str, str] | None = None
    template: int = 0

    @property
    def text(self) -> str:
        main = f"a {self.colour} {self.shape} moving {self.direction}"
        if self.second:
            colour, shape, side = self.second
            main += f" and a small {colour} {shape} on the {side}"
        return TEMPLATES[self.template].format(main=main, background=f"a {self.background} background")

    @property
    def held_out(self) -> bool:
        """Whether the combination of the main attributes is kept from training (one in five)."""
        key = f"{self.colour} {self.shape} {self.direction} {self.background}"
        return zlib.crc32(key.encode()) % 5 == 0

    def attributes(self) -> dict[str, str]:
        named = {
            "background": self.background,
            "colour": self.colour,
            "direction": self.direction,
            "shape": self.shape,
        }
        if self.second:
            named |= dict(zip(("second colour", "second shape", "second side"), self.second, strict=True))
        return named


@dataclass(frozen=True)
class Scene:
    """A rendered caption. `video`: [FRAMES, SIZE, SIZE, 3] in [0, 1]; masks: [FRAMES, SIZE, SIZE] bool."""

    caption: Caption
    video: np.ndarray
    main_mask: np.ndarray
    second_mask: np.ndarray


def sample_caption(
    rng: np.random.Generator, *, held_out: bool = False, two_objects: float = 0.5, template: int | None = None
) -> Caption:
    """A caption drawn uniformly; `held_out` picks from the combinations that training never sees."""
    while True:
        caption = Caption(
            str(rng.choice(list(COLOURS))),
            str(rng.choice(SHAPES)),
            str(rng.choice(list(DIRECTIONS))),
            str(rng.choice(list(BACKGROUNDS))),
            template=int(rng.integers(len(TEMPLATES))) if template is None else template,
        )
        if caption.held_out != held_out:
            continue
        if rng.random() < two_objects:
            colours = [c for c in COLOURS if c != caption.colour]
            second = (str(rng.choice(colours)), str(rng.choice(SHAPES)), str(rng.choice(SIDES)))
            caption = replace(caption, second=second)
        return caption


_YY, _XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def shape_mask(shape: str, cx: float, cy: float, r: float) -> np.ndarray:
    """Coverage of one shape, [SIZE, SIZE] in [0, 1] with a soft rim one pixel wide."""
    x, y = _XX - cx, _YY - cy
    if shape == "circle":
        inside = r - np.hypot(x, y)
    elif shape == "square":
        inside = 0.86 * r - np.maximum(np.abs(x), np.abs(y))
    elif shape == "triangle":
        y = y - 0.15 * r
        inside = np.minimum(0.85 * r - y, (y + 1.15 * r - 2.0 * np.abs(x)) / 2.236)
    elif shape == "cross":
        arm = 0.36 * r
        bar = np.minimum(arm - np.abs(x), r - np.abs(y))
        beam = np.minimum(arm - np.abs(y), r - np.abs(x))
        inside = np.maximum(bar, beam)
    else:
        raise ValueError(f"shape {shape!r}: expected one of {SHAPES}")
    return np.clip(inside + 0.5, 0.0, 1.0)


def _second_place(rng: np.random.Generator, side: str, r: float) -> tuple[float, float]:
    near, far = r + 1.0, SIZE - r - 1.0
    edge = rng.uniform(near, near + 3.0)
    along = rng.uniform(near + 6.0, far - 6.0)
    return {
        "left": (edge, along),
        "right": (SIZE - edge, along),
        "top": (along, edge),
        "bottom": (along, SIZE - edge),
    }[side]


def render(caption: Caption, rng: np.random.Generator) -> Scene:
    """Draw `caption`, choosing everything it leaves open with `rng`."""
    dx, dy = DIRECTIONS[caption.direction]
    for _ in range(1000):
        r = rng.uniform(7.0, 9.5)
        speed = rng.uniform(4.5, 6.0)
        travel = speed * (FRAMES - 1)
        low, high = r + 0.5, SIZE - r - 0.5
        # Mostly ahead of where it could start: then the direction's word alone tells something of the place.
        start = low + (high - travel - low) * rng.random() ** LEAN
        across = rng.uniform(low, high)
        path = start + speed * np.arange(FRAMES)
        if dx + dy < 0:
            path = SIZE - path
        xs, ys = (path, np.full(FRAMES, across)) if dx else (np.full(FRAMES, across), path)
        if caption.second is None:
            break
        r2 = rng.uniform(5.5, 6.5)
        sx, sy = _second_place(rng, caption.second[2], r2)
        if np.all(np.hypot(xs - sx, ys - sy) > r + r2 + 1.0):
            break
    else:
        raise RuntimeError(f"no room for the objects of {caption.text!r}")

    background = np.asarray(BACKGROUNDS[caption.background], np.float32)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(10.0, 20.0), rng.uniform(0, 2 * np.pi)
    wave = np.sin((np.cos(angle) * _XX + np.sin(angle) * _YY) * (2 * np.pi / period) + phase)
    canvas = background + (rng.uniform(0.05, 0.11) * wave)[..., None]
    video = np.repeat(canvas[None], FRAMES, 0)
    dots = rng.uniform(6.0, SIZE - 6.0, (DOTS, 2))
    drifts = rng.uniform(-3.0, 3.0, (DOTS, 2))
    main_mask = np.zeros((FRAMES, SIZE, SIZE), bool)
    second_mask = np.zeros_like(main_mask)

    def paint(frame: int, coverage: np.ndarray, rgb: tuple[float, float, float]) -> None:
        video[frame] += coverage[..., None] * (np.asarray(rgb, np.float32) - video[frame])

    for t in range(FRAMES):
        for place, drift in zip(dots, drifts, strict=True):
            x, y = np.clip(place + drift * t, 3.0, SIZE - 3.0)
            paint(t, shape_mask("circle", x, y, 2.2), DOT)
        if caption.second is not None:
            coverage = shape_mask(caption.second[1], sx, sy, r2)
            paint(t, coverage, COLOURS[caption.second[0]])
            second_mask[t] = coverage > 0.5
        coverage = shape_mask(caption.shape, xs[t], ys[t], r)
        paint(t, coverage, COLOURS[caption.colour])
        main_mask[t] = coverage > 0.5
    return Scene(caption, np.clip(video, 0.0, 1.0).astype(np.float32), main_mask, second_mask)
