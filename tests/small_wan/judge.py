"""Reads back from a video the attributes a caption names, and how faithful its objects are.

Input everywhere: video [T, H, W, 3] float in [0, 1], H = W = SIZE or a multiple of it. Measurement alone,
by synthesis: soft coverage of the object's colour, then least squares against rendered templates over
shape, radius and place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .scenes import BACKGROUNDS, COLOURS, DIRECTIONS, DOT, SHAPES, SIDES, SIZE, Caption, shape_mask

MAIN_RADII = tuple(np.arange(6.5, 10.01, 0.5))
SECOND_RADII = tuple(np.arange(5.0, 7.01, 0.5))

_NAMES = list(COLOURS)
_PALETTE = np.asarray(list(COLOURS.values()), np.float32)
_GRAY = np.ones(3, np.float32)
_TEXTURE = 0.11  # largest amplitude of the background's gray wave
_TOLERANCE = 0.15  # RGB distance from the background-to-object mix at which a pixel stops counting
_LEAST_AREA = 30.0  # pixels a frame; the smallest object a scene can hold covers about 55
_REACH = 2  # pixels the template search moves around the centroid
_PATCH = 26  # pixels a side: the largest object, its search and its rim


@dataclass(frozen=True)
class Fit:
    """The best template of one object. `centres`: [T, 2] x, y in pixels; `mask`: [T, SIZE, SIZE] coverage."""

    shape: str
    radius: float
    centres: np.ndarray
    mask: np.ndarray


def read(video: np.ndarray, *, two_objects: bool = False) -> dict[str, str | None]:
    """Background, colour, direction, shape and, if asked, the second object's colour, shape and side.

    An attribute that cannot be read is None.
    """
    video = _downsize(np.asarray(video, np.float32))
    background = read_background(video)
    coverage, owner = _coverages(video, background)
    found: dict[str, str | None] = dict.fromkeys(("background", "colour", "direction", "shape"))
    found["background"] = background
    main, second = _objects(coverage * owner, two_objects)
    if main is not None:
        places = _centroids(coverage[main] * owner[main])
        found["colour"] = _NAMES[main]
        found["direction"] = _direction(places)
        found["shape"] = _fit(coverage[main], places, SHAPES, MAIN_RADII).shape
    if two_objects:
        found |= {"second colour": None, "second shape": None, "second side": None}
        if second is not None:
            places = _centroids(coverage[second] * owner[second])
            found["second colour"] = _NAMES[second]
            found["second shape"] = _fit(coverage[second], places, SHAPES, SECOND_RADII).shape
            found["second side"] = _side(places)
    return found


def correct(video: np.ndarray, caption: Caption) -> dict[str, bool]:
    """Which of the caption's attributes the video shows."""
    found = read(video, two_objects=caption.second is not None)
    return {name: found[name] == wanted for name, wanted in caption.attributes().items()}


def fidelity(video: np.ndarray, caption: Caption) -> float:
    """RMS error (RGB in [0, 1]) around the objects against the best-fitting rendering of `caption`.

    Place and radius (one for all frames) are fitted, shape and colours are the caption's. What the caption
    leaves open beside the objects is forgiven: the gray wave up to its largest amplitude, and white dots.
    """
    video = _downsize(np.asarray(video, np.float32))
    coverage, owner = _coverages(video, caption.background)
    wanted = [(caption.colour, caption.shape, MAIN_RADII)]
    if caption.second is not None:
        wanted.append((caption.second[0], caption.second[1], SECOND_RADII))
    rendered = np.broadcast_to(np.asarray(BACKGROUNDS[caption.background], np.float32), video.shape)
    outside, near = np.ones(video.shape[:3], np.float32), np.zeros(video.shape[:3], np.float32)
    for colour, shape, radii in wanted:
        index = _NAMES.index(colour)
        fit = _fit(coverage[index], _centroids(coverage[index] * owner[index]), (shape,), radii)
        rendered = rendered + fit.mask[..., None] * (_PALETTE[index] - rendered)
        outside *= 1.0 - fit.mask
        near = np.maximum(near, _near(fit))
    error = video - rendered
    wave = np.clip(error.mean(-1), -_TEXTURE, _TEXTURE) * outside
    error = error - wave[..., None]
    to_dot = np.asarray(DOT, np.float32) - rendered
    dot = np.clip((error * to_dot).sum(-1) / (to_dot**2).sum(-1), 0.0, 1.0) * outside
    error = error - dot[..., None] * to_dot
    return float(np.sqrt(((error**2).mean(-1) * near).sum() / near.sum()))


def main_mask(video: np.ndarray, caption: Caption) -> np.ndarray:
    """Where the caption's moving object is: coverage of its best-fitting template, [T, SIZE, SIZE] in [0, 1]."""
    video = _downsize(np.asarray(video, np.float32))
    coverage, owner = _coverages(video, caption.background)
    index = _NAMES.index(caption.colour)
    places = _centroids(coverage[index] * owner[index])
    return _fit(coverage[index], places, (caption.shape,), MAIN_RADII).mask.astype(np.float32)


def read_background(video: np.ndarray) -> str:
    """The palette colour nearest to the median pixel: objects cover less than a quarter of a frame."""
    table = np.asarray(list(BACKGROUNDS.values()), np.float32)
    rgb = np.median(video.reshape(-1, 3), 0)
    return list(BACKGROUNDS)[int(((table - rgb) ** 2).sum(-1).argmin())]


def _downsize(video: np.ndarray) -> np.ndarray:
    factor = video.shape[1] // SIZE
    if factor <= 1:
        return video
    return video.reshape(len(video), SIZE, factor, SIZE, factor, 3).mean((2, 4))


def _coverages(video: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Soft coverage of every object colour and whether that colour explains the pixel best.

    Both: [6, T, H, W]. A pixel is background + coverage · (colour − background) + a small gray wave;
    white dots and other objects do not fit that mix and count as uncovered.
    """
    ground = np.asarray(BACKGROUNDS[background], np.float32)
    pixels = video - ground
    coverage, misfit = [], []
    for colour in _PALETTE:
        step = colour - ground
        # The ridge keeps the gray term small: it stands for the wave, not for a white dot.
        normal = np.array([[step @ step, step @ _GRAY], [step @ _GRAY, 3.0 + 1.0]], np.float32)
        solve = np.linalg.inv(normal) @ np.stack([step, _GRAY])
        amount = np.clip(pixels @ solve[0], 0.0, 1.0)
        wave = np.clip(pixels @ solve[1], -_TEXTURE, _TEXTURE)
        rest = pixels - amount[..., None] * step - wave[..., None]
        square = (rest**2).sum(-1)
        coverage.append(amount * np.exp(-square / (2 * _TOLERANCE**2)))
        misfit.append(np.where(amount > 0.5, square, np.inf))
    misfits = np.stack(misfit)
    owner = (misfits == misfits.min(0)) & np.isfinite(misfits)
    return np.stack(coverage), owner


def _objects(covered: np.ndarray, two_objects: bool) -> tuple[int | None, int | None]:
    """Indices of the main and second colour: the largest areas; of two, the main one moves."""
    area = covered.sum((1, 2, 3)) / covered.shape[1]
    order = [int(i) for i in np.argsort(-area) if area[i] >= _LEAST_AREA]
    main = order[0] if order else None
    second = order[1] if two_objects and len(order) > 1 else None
    if main is not None and second is not None and _travel(covered[second]) > _travel(covered[main]) + 4.0:
        main, second = second, main
    return main, second


def _centroids(covered: np.ndarray) -> np.ndarray:
    """[T, 2] centre of the coverage in pixels; a frame that shows nothing takes the others' mean place."""
    middle = np.arange(SIZE, dtype=np.float32) + 0.5
    mass = covered.sum((1, 2))
    moments = np.stack([covered.sum(1) @ middle, covered.sum(2) @ middle], -1)
    seen = mass >= _LEAST_AREA / 2
    places = np.full((len(covered), 2), SIZE / 2, np.float32)
    places[seen] = moments[seen] / mass[seen, None]
    if seen.any():
        places[~seen] = places[seen].mean(0)
    return places


def _travel(covered: np.ndarray) -> float:
    places = _centroids(covered)
    return float(np.hypot(*(places[-1] - places[0])))


def _direction(places: np.ndarray) -> str | None:
    t = np.arange(len(places)) - (len(places) - 1) / 2
    velocity = t @ places / max(t @ t, 1e-6)
    if np.hypot(*velocity) < 1.5:
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], velocity)))


def _side(places: np.ndarray) -> str:
    x, y = places.mean(0)
    return SIDES[int(np.argmin([x, SIZE - x, y, SIZE - y]))]


@lru_cache(maxsize=64)
def _templates(shapes: tuple[str, ...], radii: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Patches [shapes · radii · 16, PATCH²] rendered at quarter-pixel places, and the places [16, 2]."""
    corner = (SIZE - _PATCH) // 2
    inside = slice(corner, corner + _PATCH)
    quarters = (-0.375, -0.125, 0.125, 0.375)
    offsets = np.array([(x, y) for y in quarters for x in quarters])
    patches = [
        shape_mask(shape, SIZE / 2 + ox, SIZE / 2 + oy, r)[inside, inside].ravel()
        for shape in shapes
        for r in radii
        for ox, oy in offsets
    ]
    return np.stack(patches), offsets


def _fit(coverage: np.ndarray, places: np.ndarray, shapes: tuple[str, ...], radii: tuple[float, ...]) -> Fit:
    """Least squares over shape and radius (shared by the frames) and place (a frame's own, near `places`)."""
    stack, offsets = _templates(shapes, radii)
    margin = _PATCH // 2 + _REACH
    padded = np.pad(coverage, ((0, 0), (margin, margin), (margin, margin)))
    whole = np.clip(np.rint(places).astype(int), 0, SIZE)
    moves = [(x, y) for y in range(-_REACH, _REACH + 1) for x in range(-_REACH, _REACH + 1)]
    patches = np.empty((len(coverage), len(moves), _PATCH, _PATCH), np.float32)
    for t, (x, y) in enumerate(whole):
        for i, (mx, my) in enumerate(moves):
            left, top = x + mx + _REACH, y + my + _REACH
            patches[t, i] = padded[t, top : top + _PATCH, left : left + _PATCH]
    flat = patches.reshape(len(coverage) * len(moves), -1)
    error = (stack**2).sum(1)[:, None] - 2 * stack @ flat.T + (flat**2).sum(1)
    error = error.reshape(len(shapes) * len(radii), len(offsets), len(coverage), len(moves))
    error = error.transpose(0, 2, 1, 3).reshape(len(shapes) * len(radii), len(coverage), -1)
    best = int(error.min(-1).sum(-1).argmin())
    offset, move = np.divmod(error[best].argmin(-1), len(moves))
    shape, radius = shapes[best // len(radii)], float(radii[best % len(radii)])
    centres = whole + np.asarray(moves)[move] + offsets[offset]
    mask = np.stack([shape_mask(shape, x, y, radius) for x, y in centres])
    return Fit(shape, radius, centres, mask)


def _near(fit: Fit) -> np.ndarray:
    """[T, SIZE, SIZE] 1 within two pixels of the object's bounding circle."""
    disc = [shape_mask("circle", x, y, fit.radius * 1.15 + 1.5) for x, y in fit.centres]
    return np.stack(disc)
