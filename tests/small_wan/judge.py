"""Reads the attributes a caption names back from a video, by programmatic measurement.

Input everywhere: video [T, H, W, 3] float in [0, 1], any size that is a multiple of the scene size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .scenes import BACKGROUNDS, COLOURS, DIRECTIONS, DOT, FRAMES, SHAPES, SIZE, Caption, shape_mask


def _nearest(rgb: np.ndarray, palette: dict[str, tuple[float, float, float]]) -> np.ndarray:
    table = np.asarray(list(palette.values()), np.float32)
    return np.argmin(((rgb[..., None, :] - table) ** 2).sum(-1), -1)


@lru_cache(maxsize=64)
def _templates(shape: str, r: float) -> np.ndarray:
    """Template of a shape centred in the frame, at half-pixel radii."""
    return shape_mask(shape, SIZE / 2, SIZE / 2, r)


def _downsize(video: np.ndarray) -> np.ndarray:
    factor = video.shape[1] // SIZE
    if factor <= 1:
        return video
    t = video.shape[0]
    return video.reshape(t, SIZE, factor, SIZE, factor, 3).mean((2, 4))


def read_background(video: np.ndarray) -> str:
    """The palette colour nearest to the median of the frames' pixels least like any object."""
    rgb = np.median(video.reshape(-1, 3), 0)
    return list(BACKGROUNDS)[int(_nearest(rgb, BACKGROUNDS))]


def _object_pixels(video: np.ndarray, background: str) -> np.ndarray:
    """[T, H, W] index of the nearest object colour, −1 where the pixel is background or a dot."""
    palette = {**COLOURS, "dot": DOT, "background": BACKGROUNDS[background]}
    label = _nearest(video, palette)
    return np.where(label < len(COLOURS), label, -1)


def _centroid(mask: np.ndarray) -> tuple[float, float] | None:
    ys, xs = np.nonzero(mask)
    if len(xs) < 6:
        return None
    return float(np.median(xs)) + 0.5, float(np.median(ys)) + 0.5


def _best_shape(coverage: np.ndarray, radii: np.ndarray) -> str:
    """Best template over radius and offset, by squared error; `coverage`: [T, H, W] in [0, 1]."""
    score = dict.fromkeys(SHAPES, 0.0)
    for frame in coverage:
        if frame.sum() < 6:
            continue
        ys, xs = np.nonzero(frame > 0.4)
        if len(xs) == 0:
            continue
        cx, cy = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
        for shape in SHAPES:
            errors = [
                ((shape_mask(shape, cx + ox, cy + oy, r) - frame) ** 2).sum()
                for r in radii
                for ox in (-1.0, 0.0, 1.0)
                for oy in (-1.0, 0.0, 1.0)
            ]
            score[shape] += min(errors)
    return min(score, key=score.__getitem__)


def read(video: np.ndarray, *, two_objects: bool = False) -> dict[str, str | None]:
    """Every attribute that can be read: background, colour, direction, shape and, if asked, the second object's.

    An attribute that cannot be read is None.
    """
    video = _downsize(np.asarray(video, np.float32))
    background = read_background(video)
    labels = _object_pixels(video, background)
    count = np.bincount(labels[labels >= 0], minlength=len(COLOURS))
    found: dict[str, str | None] = {"background": background, "colour": None, "direction": None, "shape": None}
    main, second = _split(labels, count, two_objects)
    names = list(COLOURS)
    if main is not None:
        mask = labels == main
        found["colour"] = names[main]
        found["direction"] = _direction(mask)
        found["shape"] = _best_shape(_coverage(video, mask, names[main], background), np.arange(6.5, 10.1, 0.5))
    if two_objects:
        found |= {"second colour": None, "second shape": None, "second side": None}
        if second is not None:
            mask = labels == second
            found["second colour"] = names[second]
            found["second side"] = _side(mask)
            found["second shape"] = _best_shape(
                _coverage(video, mask, names[second], background), np.arange(4.5, 6.6, 0.5)
            )
    return found


def _split(labels: np.ndarray, count: np.ndarray, two_objects: bool) -> tuple[int | None, int | None]:
    """Main and second colour: the two commonest; of two, the main one is the larger a frame."""
    order = [int(i) for i in np.argsort(-count) if count[i] >= 6 * FRAMES]
    main = order[0] if order else None
    second = order[1] if two_objects and len(order) > 1 else None
    if main is not None and second is not None:
        moved = {c: _travel(labels == c) for c in (main, second)}
        if moved[second] > moved[main] + 4.0:
            main, second = second, main
    return main, second


def _path(mask: np.ndarray) -> np.ndarray:
    places = [_centroid(frame) for frame in mask]
    kept = [(t, *p) for t, p in enumerate(places) if p is not None]
    return np.asarray(kept, np.float32).reshape(-1, 3)


def _travel(mask: np.ndarray) -> float:
    path = _path(mask)
    return 0.0 if len(path) < 2 else float(np.hypot(*(path[-1, 1:] - path[0, 1:])))


def _direction(mask: np.ndarray) -> str | None:
    path = _path(mask)
    if len(path) < 2:
        return None
    t = path[:, 0] - path[:, 0].mean()
    vx, vy = (t @ path[:, 1] / (t @ t), t @ path[:, 2] / (t @ t))
    if np.hypot(vx, vy) < 1.5:
        return None
    return max(DIRECTIONS, key=lambda name: DIRECTIONS[name][0] * vx + DIRECTIONS[name][1] * vy)


def _side(mask: np.ndarray) -> str | None:
    path = _path(mask)
    if not len(path):
        return None
    x, y = path[:, 1].mean(), path[:, 2].mean()
    gap = {"left": x, "right": SIZE - x, "top": y, "bottom": SIZE - y}
    return min(gap, key=gap.__getitem__)


def _coverage(video: np.ndarray, mask: np.ndarray, colour: str, background: str) -> np.ndarray:
    """Soft coverage [T, H, W]: position of each pixel between background and object colour, near the object."""
    a = np.asarray(BACKGROUNDS[background], np.float32)
    b = np.asarray(COLOURS[colour], np.float32)
    soft = np.clip((video - a) @ (b - a) / ((b - a) @ (b - a)), 0.0, 1.0)
    near = mask.copy()
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    near[:, :, 1:] |= mask[:, :, :-1]
    near[:, :, :-1] |= mask[:, :, 1:]
    return np.where(near, soft, 0.0)


def correct(video: np.ndarray, caption: Caption) -> dict[str, bool]:
    """Which of the caption's attributes the video shows."""
    found = read(video, two_objects=caption.second is not None)
    return {name: found[name] == wanted for name, wanted in caption.attributes().items()}
