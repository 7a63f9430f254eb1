"""What a video is worth, beside how well it follows its prompt: sharpness, calm, detail, and a Fréchet distance.

Videos are [T, H, W, 3] in [0, 1]. Every measure reacts to the damage it is there for: blur, seams and flicker are
planted in `tests/benchmarks/test_metrics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F

SIDE = 48  # features are taken at this height, so that decoders that enlarge do not change them
TOKEN = 8  # pixels a side of one of the small Wan's tokens
WHITE = 0.75  # a pixel whose darkest channel is above it belongs to one of the scenes' unnamed white dots
LEAST_DEVIATION = 1e-3  # of a feature; what hardly varies in the reference must not outweigh the rest
_CHANNELS = 12


def small(video: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The video `side` pixels high, by averaging areas."""
    frames = torch.from_numpy(np.asarray(video, np.float32)).permute(0, 3, 1, 2)
    size = (side, round(side * frames.shape[-1] / frames.shape[-2]))
    return F.interpolate(frames, size, mode="area").permute(0, 2, 3, 1).numpy()


def sharpness(video: np.ndarray, side: int = SIDE) -> float:
    """Mean absolute Laplacian of the brightness, in units of full range; blur lowers it, noise and seams raise it."""
    gray = small(video, side).mean(-1)
    laplacian = np.abs(
        4 * gray[:, 1:-1, 1:-1] - gray[:, :-2, 1:-1] - gray[:, 2:, 1:-1] - gray[:, 1:-1, :-2] - gray[:, 1:-1, 2:]
    )
    return float(laplacian.mean())


def flicker(video: np.ndarray, side: int = SIDE) -> float:
    """Mean absolute change a frame of the calmer half of the pixels, in units of full range; 0 for a still picture.

    The moving objects are in the other half, so this is temporal consistency of what should stand still.
    """
    change = np.abs(np.diff(small(video, side), axis=0)).mean(-1)
    calm = change.max(0) <= np.median(change.max(0))
    return float(change[:, calm].mean())


def seams(video: np.ndarray, side: int = SIDE) -> float:
    """Brightness step across the borders of tokens, beyond the step between any two pixels, in units of full range.

    Where recomputed tokens do not meet reused ones, it rises; the scenes themselves know nothing of tokens.
    """
    gray = small(video, side).mean(-1)
    beyond = []
    for axis in (1, 2):
        step = np.abs(np.diff(gray, axis=axis)).mean(tuple(a for a in range(3) if a != axis))
        border = np.arange(1, gray.shape[axis]) % TOKEN == 0
        beyond.append(step[border].mean() - step[~border].mean())
    return float(np.mean(beyond))


def details(video: np.ndarray) -> float:
    """White dots a frame: details that every scene has and no prompt names, the first to go with the steps."""
    count = sum(scipy.ndimage.label(frame.min(-1) > WHITE)[1] for frame in small(video))
    return count / len(video)


def difference(a: np.ndarray, b: np.ndarray, outside: np.ndarray, side: int = SIDE) -> float:
    """RMS difference of two videos × 100, where `outside` [T, side, side] bool is true; 0 where it is nowhere."""
    if not outside.any():
        return 0.0
    return float(100 * np.sqrt(((small(a, side) - small(b, side))[outside] ** 2).mean()))


@cache
def _filters() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(20260)
    first = torch.randn(_CHANNELS, 3, 5, 5, generator=generator)
    first -= first.mean((2, 3), keepdim=True)  # blind to plain colour: that is the alignment's business
    second = torch.randn(_CHANNELS, _CHANNELS, 3, 3, generator=generator)
    return first / first.flatten(1).norm(dim=1)[:, None, None, None], second / (9 * _CHANNELS) ** 0.5


def features(video: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A fixed feature map, [38] float32: random filters on the frames, coarser, on their changes; seams; flicker."""
    frames = torch.from_numpy(small(video, side)).permute(0, 3, 1, 2)
    first, second = _filters()
    fine = F.conv2d(frames, first).abs()
    coarse = F.conv2d(F.avg_pool2d(fine, 2), second).abs()
    change = F.conv2d(frames.diff(dim=0), first).abs()
    pooled = [part.mean((0, 2, 3)) for part in (fine, coarse, change)]
    return torch.cat([*pooled, torch.tensor([seams(video, side), flicker(video, side)])]).numpy()


def frechet_distance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Fréchet distance between two sets of features, each feature in units of its deviation in `b`.

    Raises ValueError with fewer samples than a covariance needs.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(x), len(y)) < 8:
        raise ValueError(f"Fréchet distance of {len(x)} and {len(y)} videos: at least 8 of each are needed")
    scale = y.std(0) + LEAST_DEVIATION
    x, y = x / scale, y / scale
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * root))
