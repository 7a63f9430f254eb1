"""Reads back from a video of the bench what its caption names, counts objects too many, and measures their fidelity.

Input everywhere: video [T, H, W, 3] float in [0, 1], H = W = SIZE or a multiple of it. By measurement alone: every
pixel is explained as background, a small gray wave and one colour of the scenes; connected areas of a colour are its
objects; shapes are least squares against rendered templates. Of several objects the main one is the one that moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.ndimage
import torch

from small_wan.judge import Fit, Grid, centroids, downsized, heading, mixtures, nearest, velocity

from . import scenes
from .captions import BACKGROUNDS, COLOURS, COUNTS, PANS, PLACES, SHAPES, Caption
from .scenes import AREA, PAN, SIZE, TINTS, WHITE

PALETTE = np.asarray([*COLOURS.values(), *TINTS, WHITE], np.float32)
"""Everything a scene paints with: the objects' colours, the details' tints, the dots' white."""

_NAMES = list(COLOURS)
_DOTS = len(PALETTE) - 1
_COVERED = 0.5  # amount of a colour from which a pixel is its own
_TEXTURE = 0.11  # largest amplitude of the background's gray wave
_TOLERANCE = 0.15  # RGB distance from the mix at which a pixel stops counting
_AREA = sum(AREA) / 2 * SIZE * SIZE  # pixels of an object in the middle of the range
_LEAST_AREA = _AREA / 4  # pixels a frame; what is smaller is no object
_COPY_AREA = _AREA / 3  # pixels; a further area of an object's colour from here on is a copy
_ONE_OBJECT = 16.0  # pixels between two areas' centres; nearer than this they are one object, torn in two
_LEAST_DOT = 20.0  # pixels a frame; the scenes' dots cover 91 to 121
_CORE = (np.hypot(*np.mgrid[-2:3, -2:3]) < 2.3)[None] / 21.0  # a disc of 21 pixels, which a dot must fill
_FILLED = 0.85  # … up to this share
_AS_FAST = 0.75  # of the fastest object's speed; from here on the named object is the main one
_RESTING = PAN / 2  # pixels a frame to either side, from which the camera pans
_DOUBT = PAN / 4  # pixels a frame by which things must rest better under a pan than without one
_PLAIN = 0.3  # amount of every colour below which a pixel is background
_CLEARER = 0.6  # the background's pan is told where its misfit is below this share of every other one's
_UNIT_AREA = {"circle": np.pi, "square": 4 * 0.86**2, "triangle": 1.95, "cross": 2.36}


def _render(shape: str, x: float, y: float, radius: float) -> np.ndarray:
    """Coverage [SIZE, SIZE] of a shape whose centre of mass is at (x, y)."""
    middle = torch.arange(SIZE) + 0.5
    if shape == "triangle":
        y -= radius / 3
    drawn = scenes.coverage(shape, middle - x, (middle - y)[:, None], torch.tensor(float(radius)))
    return drawn.numpy()


def _sizes(shape: str) -> tuple[tuple[str, float], ...]:
    """The radii, half a pixel apart, that a shape has in a scene, and one more on either side."""
    low, high = ((share * SIZE * SIZE / _UNIT_AREA[shape]) ** 0.5 for share in AREA)
    return tuple((shape, float(r)) for r in np.arange(np.floor(2 * low) / 2 - 0.5, high + 0.75, 0.5))


_COARSE = Grid(_render, SIZE, patch=50, parts=2)  # to choose the shape
_FINE = Grid(_render, SIZE, patch=50)  # to lie on the object as exactly as can be


@dataclass(frozen=True)
class Seen:
    """A video [T, SIZE, SIZE, 3], and how its pixels are explained over a background of the given name.

    amount, square: [10, T, SIZE, SIZE], as `small_wan.judge.mixtures` gives them for PALETTE.
    """

    video: np.ndarray
    background: str
    amount: np.ndarray
    square: np.ndarray

    @staticmethod
    def of(video: Video, background: str | None = None) -> Seen:
        """Explain a video over a background; by default the nearest one to its median pixel."""
        if isinstance(video, Seen):
            return video if background in (None, video.background) else Seen.of(video.video, background)
        video = downsized(np.asarray(video, np.float32), SIZE)
        if background is None:
            background = nearest(np.median(video.reshape(-1, 3), 0), BACKGROUNDS)
        return Seen(video, background, *mixtures(video, BACKGROUNDS[background], PALETTE))

    @cached_property
    def owned(self) -> np.ndarray:
        """[10, T, SIZE, SIZE] bool: the colour covers most of the pixel and explains it best."""
        misfit = np.where(self.amount > _COVERED, self.square, np.inf)
        return (misfit.argmin(0) == np.arange(len(PALETTE))[:, None, None, None]) & (self.amount > _COVERED)

    def coverage(self, colour: int) -> np.ndarray:
        """[T, SIZE, SIZE] in [0, 1]: soft coverage by a colour."""
        return self.amount[colour] * np.exp(-self.square[colour] / (2 * _TOLERANCE**2))

    @cached_property
    def objects(self) -> dict[int, Object]:
        """The largest object of every colour that has one, by the colour's index."""
        found = {}
        for colour in range(len(COLOURS)):
            if self.owned[colour].sum() < _LEAST_AREA * len(self.video):
                continue
            parts, count = scipy.ndimage.label(self.owned[colour], np.ones((3, 3, 3)))
            volumes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
            if volumes.max() < _LEAST_AREA * len(self.video):
                continue
            whole = parts == volumes.argmax() + 1
            places = centroids(whole.astype(np.float32), _LEAST_AREA / 2)
            covered = self.coverage(colour)
            if count > 1:
                # Parts beside the largest one are its rags, or half of it; what lies further away is a copy.
                near = np.arange(count + 1) == 0
                near[1:] = scipy.ndimage.mean(_distances(places), parts, np.arange(1, count + 1)) < _ONE_OBJECT + 3
                covered = covered * near[parts]
                whole = near[parts] & (parts > 0)
            found[colour] = Object(colour, covered, centroids(covered * whole, _LEAST_AREA / 2), float(whole.sum()))
        return found


Video = np.ndarray | Seen
"""What every measure takes: a video, or how its pixels are explained, where several measures share that."""


def _distances(places: np.ndarray) -> np.ndarray:
    """[T, SIZE, SIZE] pixels from a place [T, 2] of each frame."""
    middle = np.arange(SIZE, dtype=np.float32) + 0.5
    return np.hypot(middle - places[:, :1, None], middle[:, None] - places[:, 1:, None])


@dataclass(frozen=True)
class Object:
    """The largest object of a colour.

    covered: [T, SIZE, SIZE] soft coverage by its colour; places: [T, 2] centres; volume: pixels in all frames.
    """

    colour: int
    covered: np.ndarray
    places: np.ndarray
    volume: float

    @cached_property
    def velocity(self) -> np.ndarray:
        return velocity(self.places)

    @cached_property
    def shape(self) -> str:
        return _COARSE.fit(self.covered, self.places, sum(map(_sizes, SHAPES), ())).shape


def read(video: Video, caption: Caption) -> dict[str, str | None]:
    """What the video shows of every attribute that the caption names; None where it cannot be told.

    The caption says what to look for. Of objects that move about as fast as each other, its own is the main one. The
    second object is the one of its colour beside the main one, else the largest.
    """
    seen = Seen.of(video)
    found: dict[str, str | None] = dict.fromkeys(caption.attributes())
    found["background"] = seen.background
    main, second, others = _roles(seen, caption)
    if main is not None:
        found |= {"colour": _NAMES[main.colour], "direction": heading(main.velocity), "shape": main.shape}
    if caption.second and second is not None and main is not None:
        found |= {"second colour": _NAMES[second.colour], "second shape": second.shape}
        found["second place"] = _place(second.places.mean(0) - main.places.mean(0))
    if caption.dots:
        found["dots"] = {number: name for name, number in COUNTS.items()}.get(count_dots(seen))
    if caption.pan:
        found["pan"] = _pan(seen, others)
    return found


def correct(video: Video, caption: Caption) -> dict[str, bool]:
    """Which of the caption's attributes the video shows."""
    found = read(video, caption)
    return {name: found[name] == wanted for name, wanted in caption.attributes().items()}


def _roles(seen: Seen, caption: Caption) -> tuple[Object | None, Object | None, list[Object]]:
    """(main object, second one, all but the main one)."""
    objects = seen.objects
    if not objects:
        return None, None, []
    named = objects.get(_NAMES.index(caption.colour))
    speeds = _speeds(seen)
    main = objects[max(speeds, key=speeds.__getitem__)]
    if named is not None and speeds[named.colour] > _AS_FAST * speeds[main.colour]:
        main = named
    others = [o for o in objects.values() if o is not main]
    second = max(others, key=lambda o: o.volume, default=None)
    if caption.second:
        second = next((o for o in others if _NAMES[o.colour] == caption.second[0]), second)
    return main, second, others


def _speeds(seen: Seen) -> dict[int, float]:
    """Pixels a frame of every object beyond what rests, which the camera moves."""
    pan = _wave_pan(seen)
    if pan is None:
        pan = _things_pan(seen)
    return {o.colour: _speed(o.velocity, pan) for o in seen.objects.values()}


def _speed(velocity: np.ndarray, pan: int) -> float:
    """Pixels a frame of what has this velocity [2] in the picture, under a camera that pans to this side."""
    return float(np.hypot(velocity[0] - pan * PAN, velocity[1]))


def _things_pan(seen: Seen) -> int:
    """The sign of the pan under which all things but one rest best, objects and dots; where two do so alike, none."""
    moves = [o.velocity for o in seen.objects.values()]
    white = seen.owned[_DOTS]
    if white.sum() > _LEAST_DOT * len(white):
        moves.append(velocity(centroids(white, _LEAST_DOT / 2)))

    def left(sign: int) -> float:
        return sum(sorted(_speed(move, sign) for move in moves)[:-1]) + abs(sign) * _DOUBT

    return min((0, -1, 1), key=left)


def _place(away: np.ndarray) -> str:
    return max(PLACES, key=lambda name: float(np.dot(PLACES[name], away)))


def count_dots(seen: Seen) -> int:
    """White dots a frame, as most frames have them. A noisy rim or a hole of a pixel changes nothing."""
    cores = scipy.ndimage.correlate(seen.owned[_DOTS].astype(np.float32), _CORE, mode="constant") > _FILLED
    return int(np.median([scipy.ndimage.label(frame, np.ones((3, 3)))[1] for frame in cores]))


def _pan(seen: Seen, others: list[Object]) -> str | None:
    """Where the camera pans to: by what rests, unless the background's wave clearly says otherwise."""
    moves = [o.velocity[0] for o in others]
    white = seen.owned[_DOTS]
    if white.sum() > _LEAST_DOT * len(white):
        moves.append(velocity(centroids(white, _LEAST_DOT / 2))[0])
    wave = _wave_pan(seen)
    move = float(np.median(moves)) if moves else float(wave or 0)
    told = 0 if abs(move) < _RESTING else int(np.sign(move))
    if not told or wave not in (None, told):
        return None
    return next(name for name, sign in PANS.items() if sign == told)


def _wave_pan(seen: Seen) -> int | None:
    """The sign of the background's move to the right, or None where the wave does not tell it."""
    plain = scipy.ndimage.binary_erosion(seen.amount.max(0) < _PLAIN, np.ones((1, 5, 5)))
    bright = np.where(plain, seen.video.mean(-1), np.nan)
    misfits = {}
    for sign in (-1, 0, 1):
        change = bright[1:] - _moved(bright[:-1], sign * PAN)
        known = np.isfinite(change)
        if not known.any():
            return None
        misfits[sign] = float((change[known] ** 2).mean())
    best, runner_up = sorted(misfits, key=misfits.__getitem__)[:2]
    return best if misfits[best] < _CLEARER * misfits[runner_up] else None


def _moved(frames: np.ndarray, right: float) -> np.ndarray:
    """Frames [T, H, W] moved to the right by a fraction of pixels; what comes into sight is NaN."""
    whole = int(np.floor(right))
    share = right - whole
    padded = np.pad(frames, ((0, 0), (0, 0), (SIZE, SIZE)), constant_values=np.nan)
    near, far = (padded[..., SIZE - whole - i : 2 * SIZE - whole - i] for i in (0, 1))
    return near if share == 0 else (1 - share) * near + share * far


def copies(video: Video, caption: Caption) -> int:
    """How many objects too many there are of a named colour, in at least two frames.

    A further area counts from a third of an object's area on, unless it lies so near that the two are one object torn
    in two; an area of the size of two objects is two.
    """
    seen = Seen.of(video)
    extra = 0
    for colour in [caption.colour, *((caption.second or ())[:1])]:
        counts = sorted(_count(frame) for frame in seen.owned[_NAMES.index(colour)])
        extra += max(0, counts[-2] - 1)
    return extra


def _count(owned: np.ndarray) -> int:
    """How many objects an owned area [SIZE, SIZE] is."""
    closed = scipy.ndimage.binary_closing(np.pad(owned, 2), np.ones((3, 3)))
    parts, count = scipy.ndimage.label(closed)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = np.flatnonzero(areas >= _COPY_AREA) + 1
    kept: list[np.ndarray] = []
    number = 0
    for part in large:
        centre = np.asarray(scipy.ndimage.center_of_mass(closed, parts, part))
        if all(np.hypot(*(centre - other)) >= _ONE_OBJECT for other in kept):
            kept.append(centre)
            number += max(1, int(areas[part - 1] / _AREA + 0.5))  # two that touch are one area
    return number


def fidelity(video: Video, caption: Caption) -> float:
    """RMS error (RGB in [0, 1]) around the named objects against the best-fitting rendering of `caption`.

    Place and radius (one for all frames) are fitted, shape and colours are the caption's. What the caption leaves open
    beside the objects is forgiven: the gray wave up to its largest amplitude, and pixels that show something else
    (dots, details, unnamed objects). The objects' own colours beside the objects are not.
    """
    seen = Seen.of(video, caption.background)
    fits = _fits(seen, caption)
    rendered = np.broadcast_to(np.asarray(BACKGROUNDS[caption.background], np.float32), seen.video.shape)
    outside, near = np.ones(seen.video.shape[:3], np.float32), np.zeros(seen.video.shape[:3], np.float32)
    for colour, fit in fits.items():
        rendered = rendered + fit.mask[..., None] * (PALETTE[colour] - rendered)
        outside *= 1.0 - fit.mask
        near = np.maximum(near, _FINE.near(fit))
    other = np.delete(seen.owned, list(fits), 0).any(0)
    other = scipy.ndimage.binary_dilation(other, np.ones((1, 3, 3)))
    near = near * (1.0 - other * outside)
    error = seen.video - rendered
    wave = np.clip(error.mean(-1), -_TEXTURE, _TEXTURE) * outside
    error = error - wave[..., None]
    return float(np.sqrt(((error**2).mean(-1) * near).sum() / near.sum()))


def object_masks(video: Video, caption: Caption) -> np.ndarray:
    """Where the named objects are: coverage of their best-fitting templates, [T, SIZE, SIZE] in [0, 1].

    An object that the video does not show has none.
    """
    seen = Seen.of(video, caption.background)
    masks = [fit.mask for colour, fit in _fits(seen, caption).items() if colour in seen.objects]
    return np.max(masks, 0) if masks else np.zeros(seen.video.shape[:3], np.float32)


def _fits(seen: Seen, caption: Caption) -> dict[int, Fit]:
    """The best template of every named object, by its colour's index; one that is not there lies in the middle."""
    wanted = [(caption.colour, caption.shape), *([caption.second[:2]] if caption.second else [])]
    fits = {}
    for name, shape in wanted:
        colour = _NAMES.index(name)
        there = seen.objects.get(colour)
        covered = seen.coverage(colour) if there is None else there.covered
        places = centroids(covered, _LEAST_AREA / 2) if there is None else there.places
        fits[colour] = _FINE.fit(covered, places, _sizes(shape))
    return fits
