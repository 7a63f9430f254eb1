"""Look and join: where a target differs from its source, and the estimate that joins the two.

The look is the target's own estimate x̂_t of its first step, sampled under the source's noise. Minus the source's own
first estimate x̂_s it shows what the other prompt changes (chosen here, see docs/method.md). The join keeps x̂_t where
they differ, and the source's picture elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .regions import otsu

_BINS = 128  # of Otsu's histogram
_LEAST_SPREAD = 1e-3  # of a channel; one that hardly varies must not outweigh the others


@dataclass(frozen=True)
class Cut:
    """How a difference becomes a mask.

    lowest, highest: the bounds of Otsu's threshold, in channel spreads.
    noticed: if no token differs by more than this, before the division by CFG, the difference may be nothing but the
        rounding of the estimate that an entry keeps.
    everywhere: the share of changed tokens above which a change counts as a global one.
    faint: what counts as changed for that where an image gives the first frame, see `moves_everything`.
    given: the first frame's difference, over that of the others, below which an image gives it.
    """

    lowest: float
    highest: float
    noticed: float
    everywhere: float
    faint: float
    given: float

    def moves_everything(self, difference: torch.Tensor) -> bool:
        """Whether a change of a video from an image is a global one, as a motion of the camera is.

        Such a change is faint, and the bounds of Otsu's threshold leave most of it out. Where an image gives the first
        frame, the first estimate shows where everything is, so that a faint difference tells. Without one it does not:
        the composition is open, and every change of the prompt moves all of it a little. difference: [T, H, W].
        """
        first, rest = difference[0], difference[1:]
        alike = len(rest) > 0 and bool(first.mean() < self.given * rest.mean())
        return alike and bool((rest > self.faint).float().mean() > self.everywhere)

    def __call__(self, difference: torch.Tensor) -> torch.Tensor:
        """The tokens [T, H, W] bool at which the difference is above the cut."""
        return difference > min(self.highest, max(self.lowest, otsu(difference, _BINS)))


def rim(cells: torch.Tensor) -> torch.Tensor:
    """How much the target's estimate counts in each cell of a mask [T, H, W] bool: in [0, 1], 0 outside.

    Inside it is the share of the 3 × 3 cells around that lie inside, so that tokens do not show as squares.
    """
    inside = cells.float()
    return inside * F.avg_pool2d(inside[:, None], 3, 1, 1, count_include_pad=False)[:, 0]


def joined(outside: torch.Tensor, own: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The estimate that joins both: `own` where the weights (`rim`) are 1, and exactly `outside` where they are 0.

    outside, own: x0 [B, C, T, H, W]; weights: in [0, 1], of a shape that spreads over theirs.
    """
    return torch.where(weights > 0, torch.lerp(outside, own, weights), outside)


def channel_spread(latent: torch.Tensor) -> torch.Tensor:
    """[1, C, 1, 1, 1]: the deviation of each channel over the picture, mean over frames. latent: [B, C, T, H, W]."""
    return latent.float().std((3, 4)).mean((0, 2)).clamp(min=_LEAST_SPREAD)[None, :, None, None, None]


def with_frames(latent: torch.Tensor) -> torch.Tensor:
    """A latent as [B, C, T, H, W]; one of an image, [B, C, H, W], has one frame."""
    return latent if latent.ndim == 5 else latent.unsqueeze(2)


def token_means(latent: torch.Tensor, patch: tuple[int, int, int]) -> torch.Tensor:
    """The mean of each token's cells, [B, C, T, H, W] on the token grid, fp32; those at the end may have fewer cells.

    latent: in cells, see `with_frames`; patch: cells of a token along each axis.
    """
    return F.avg_pool3d(with_frames(latent).float(), patch, ceil_mode=True, count_include_pad=False)


def difference(target: torch.Tensor, source: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """RMS difference of two estimates over the channels, largest of the batch: [T, H, W] on the token grid.

    target, source: `token_means` [B, C, T, H, W]; spread: `channel_spread`.
    """
    apart = (target - source.to(target)) / spread.to(target)
    return apart.pow(2).mean(1).sqrt().amax(0)
