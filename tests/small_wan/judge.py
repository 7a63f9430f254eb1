"""Reads back from a video the attributes a caption names, and how faithful its objects are.

Input everywhere: video [T, H, W, 3] float in [0, 1], H = W = SIZE or a multiple of it. Measurement alone,
by synthesis: soft coverage of the object's colour, then least squares against rendered templates over
shape, radius and place. What does not depend on this model's scenes (`downsized`, `nearest`, `mixtures`, `centroids`,
`velocity`, `heading`, `Grid`) also serves `bench_wan.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

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
    video = downsized(np.asarray(video, np.float32), SIZE)
    background = read_background(video)
    coverage, owner = _coverages(video, background)
    found: dict[str, str | None] = dict.fromkeys(("background", "colour", "direction", "shape"))
    found["background"] = background
    main, second = _objects(coverage * owner, two_objects)
    if main is not None:
        places = _centroids(coverage[main] * owner[main])
        found["colour"] = _NAMES[main]
        found["direction"] = heading(velocity(places))
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
    video = downsized(np.asarray(video, np.float32), SIZE)
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
        near = np.maximum(near, _GRID.near(fit))
    error = video - rendered
    wave = np.clip(error.mean(-1), -_TEXTURE, _TEXTURE) * outside
    error = error - wave[..., None]
    to_dot = np.asarray(DOT, np.float32) - rendered
    dot = np.clip((error * to_dot).sum(-1) / (to_dot**2).sum(-1), 0.0, 1.0) * outside
    error = error - dot[..., None] * to_dot
    return float(np.sqrt(((error**2).mean(-1) * near).sum() / near.sum()))


def main_mask(video: np.ndarray, caption: Caption) -> np.ndarray:
    """Where the caption's moving object is: coverage of its best-fitting template, [T, SIZE, SIZE] in [0, 1]."""
    video = downsized(np.asarray(video, np.float32), SIZE)
    coverage, owner = _coverages(video, caption.background)
    index = _NAMES.index(caption.colour)
    places = _centroids(coverage[index] * owner[index])
    return _fit(coverage[index], places, (caption.shape,), MAIN_RADII).mask.astype(np.float32)


def read_background(video: np.ndarray) -> str:
    """The palette colour nearest to the median pixel: objects cover less than a quarter of a frame."""
    return nearest(np.median(video.reshape(-1, 3), 0), BACKGROUNDS)


def nearest(rgb: np.ndarray, table: Mapping[str, tuple[float, float, float]]) -> str:
    """The name of the colour that is nearest to `rgb` [3]."""
    return min(table, key=lambda name: float(((np.asarray(table[name]) - rgb) ** 2).sum()))


def downsized(video: np.ndarray, size: int) -> np.ndarray:
    """[T, size, size, 3] by averaging, where the frames are a multiple of that."""
    factor = video.shape[1] // size
    if factor <= 1:
        return video
    return video.reshape(len(video), size, factor, size, factor, 3).mean((2, 4))


def _coverages(video: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray]:
    """Soft coverage of every object colour and whether that colour explains the pixel best.

    Both: [6, T, H, W]. A pixel is background + coverage · (colour − background) + a small gray wave;
    white dots and other objects do not fit that mix and count as uncovered.
    """
    amount, square = mixtures(video, BACKGROUNDS[background], _PALETTE)
    misfit = np.where(amount > 0.5, square, np.inf)
    owner = (misfit == misfit.min(0)) & np.isfinite(misfit)
    return amount * np.exp(-square / (2 * _TOLERANCE**2)), owner


def mixtures(
    video: np.ndarray, ground: tuple[float, float, float], colours: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel as ground + amount · (colour − ground) + a small gray wave, for each colour [K, 3] by itself.

    → (amount in [0, 1], squared RGB distance of what the mix does not explain), both [K, T, H, W].
    """
    steps = np.asarray(colours, np.float32) - np.asarray(ground, np.float32)
    pixels = video.reshape(-1, 3).T - np.asarray(ground, np.float32)[:, None]
    # The ridge keeps the gray term small: it stands for the wave, not for a white dot.
    normal = [[[s @ s, s @ _GRAY], [s @ _GRAY, 3.0 + 1.0]] for s in steps]
    solve = np.linalg.inv(np.asarray(normal, np.float32)) @ np.stack([steps, np.broadcast_to(_GRAY, steps.shape)], 1)
    amount = np.clip(solve[:, 0] @ pixels, 0.0, 1.0)
    wave = np.clip(solve[:, 1] @ pixels, -_TEXTURE, _TEXTURE)
    # |pixel − amount · step − wave · gray|², multiplied out.
    square = (steps**2).sum(1)[:, None] * amount
    square += 2 * (steps.sum(1)[:, None] * wave - steps @ pixels)
    square *= amount
    square += wave * (3 * wave - 2 * pixels.sum(0))
    square += (pixels**2).sum(0)
    shape = (len(steps), *video.shape[:-1])
    return amount.reshape(shape), np.maximum(square, 0.0).reshape(shape)


def _objects(covered: np.ndarray, two_objects: bool) -> tuple[int | None, int | None]:
    """Indices of the main and second colour: the largest areas; of two, the main one moves."""
    area = covered.sum((1, 2, 3)) / covered.shape[1]
    order = [int(i) for i in np.argsort(-area) if area[i] >= _LEAST_AREA]
    main = order[0] if order else None
    second = order[1] if two_objects and len(order) > 1 else None
    if main is not None and second is not None and _travel(covered[second]) > _travel(covered[main]) + 4.0:
        main, second = second, main
    return main, second


def centroids(covered: np.ndarray, least: float) -> np.ndarray:
    """[T, 2] centre of the coverage [T, H, W] in pixels.

    A frame that shows less than `least` pixels takes the others' mean place.
    """
    size = covered.shape[1]
    middle = np.arange(size, dtype=np.float32) + 0.5
    mass = covered.sum((1, 2))
    moments = np.stack([covered.sum(1) @ middle, covered.sum(2) @ middle], -1)
    seen = mass >= least
    places = np.full((len(covered), 2), size / 2, np.float32)
    places[seen] = moments[seen] / mass[seen, None]
    if seen.any():
        places[~seen] = places[seen].mean(0)
    return places


def _centroids(covered: np.ndarray) -> np.ndarray:
    return centroids(covered, _LEAST_AREA / 2)


def _travel(covered: np.ndarray) -> float:
    places = _centroids(covered)
    return float(np.hypot(*(places[-1] - places[0])))


def velocity(places: np.ndarray) -> np.ndarray:
    """[2] pixels a frame: the slope of the line through places [T, 2]."""
    t = np.arange(len(places)) - (len(places) - 1) / 2
    return t @ places / max(t @ t, 1e-6)


def heading(speed: np.ndarray) -> str | None:
    """The direction of a velocity [2]; None below 1.5 pixels a frame."""
    if np.hypot(*speed) < 1.5:
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], speed)))


def _side(places: np.ndarray) -> str:
    x, y = places.mean(0)
    return SIDES[int(np.argmin([x, SIZE - x, y, SIZE - y]))]


@dataclass(frozen=True)
class Grid:
    """How templates of objects are drawn and moved. Frozen, so that what is drawn once is kept.

    render(shape, x, y, radius): coverage [size, size] of a shape around (x, y).
    patch: pixels a side of a template: the largest object, its search and its rim.
    reach: pixels the search moves around the centroid. parts: places tried a pixel, on either axis.
    """

    render: Callable[[str, float, float, float], np.ndarray]
    size: int
    patch: int
    reach: int = 2
    parts: int = 4

    @cached_property
    def offsets(self) -> np.ndarray:
        """[parts², 2] x, y in pixels."""
        steps = (np.arange(self.parts) + 0.5) / self.parts - 0.5
        return np.array([(x, y) for y in steps for x in steps])

    @lru_cache(maxsize=64)  # noqa: B019 - grids are few and live as long as the process
    def templates(self, candidates: tuple[tuple[str, float], ...]) -> np.ndarray:
        """[candidates · parts², patch²] drawn at the offsets."""
        corner, middle = (self.size - self.patch) // 2, self.size / 2
        inside = slice(corner, corner + self.patch)
        patches = [
            self.render(shape, middle + x, middle + y, r)[inside, inside].ravel()
            for shape, r in candidates
            for x, y in self.offsets
        ]
        return np.stack(patches).astype(np.float32)

    def fit(self, coverage: np.ndarray, places: np.ndarray, candidates: tuple[tuple[str, float], ...]) -> Fit:
        """Least squares over (shape, radius), shared by the frames, and place, a frame's own near `places` [T, 2]."""
        stack, offsets, reach, patch = self.templates(candidates), self.offsets, self.reach, self.patch
        margin = patch // 2 + reach
        padded = np.pad(coverage, ((0, 0), (margin, margin), (margin, margin)))
        whole = np.clip(np.rint(places).astype(int), 0, self.size)
        moves = [(x, y) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
        patches = np.empty((len(coverage), len(moves), patch, patch), np.float32)
        for t, (x, y) in enumerate(whole):
            for i, (mx, my) in enumerate(moves):
                left, top = x + mx + reach, y + my + reach
                patches[t, i] = padded[t, top : top + patch, left : left + patch]
        flat = patches.reshape(len(coverage) * len(moves), -1)
        error = (stack**2).sum(1)[:, None] - 2 * stack @ flat.T + (flat**2).sum(1)
        error = error.reshape(len(candidates), len(offsets), len(coverage), len(moves))
        error = error.transpose(0, 2, 1, 3).reshape(len(candidates), len(coverage), -1)
        best = int(error.min(-1).sum(-1).argmin())
        offset, move = np.divmod(error[best].argmin(-1), len(moves))
        shape, radius = candidates[best]
        centres = whole + np.asarray(moves)[move] + offsets[offset]
        mask = np.stack([self.render(shape, x, y, radius) for x, y in centres])
        return Fit(shape, radius, centres, mask)

    def near(self, fit: Fit) -> np.ndarray:
        """[T, size, size] 1 within two pixels of the object's bounding circle."""
        return np.stack([self.render("circle", x, y, fit.radius * 1.15 + 1.5) for x, y in fit.centres])


_GRID = Grid(shape_mask, SIZE, patch=26)


def _fit(coverage: np.ndarray, places: np.ndarray, shapes: tuple[str, ...], radii: tuple[float, ...]) -> Fit:
    return _GRID.fit(coverage, places, tuple((shape, radius) for shape in shapes for radius in radii))
