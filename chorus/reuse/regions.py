"""Where to recompute: hierarchical masks on the token grid [T, H, W], base ⊆ edit ⊆ visible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Regions:
    """base: where the requests differ; edit: where the result may change; visible: the tokens that are computed.

    Each [T, H, W] bool on the token grid.
    """

    base: torch.Tensor
    edit: torch.Tensor
    visible: torch.Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(m.shape) for m in (self.base, self.edit, self.visible)}
        if len(shapes) != 1 or self.base.ndim != 3:
            raise ValueError(f"masks must share one [T, H, W] grid, got {sorted(shapes)}")
        if bool((self.base & ~self.edit).any()) or bool((self.edit & ~self.visible).any()):
            raise ValueError("masks must be nested: base within edit within visible")

    @property
    def grid(self) -> tuple[int, int, int]:
        return tuple(self.base.shape)  # type: ignore[return-value]

    @property
    def empty(self) -> bool:
        """Whether nothing is to be edited, so that selective steps can be skipped."""
        return not bool(self.edit.any())

    @property
    def whole(self) -> bool:
        """Whether everything is edited, so that a selective step would be a full one."""
        return bool(self.edit.all())

    def cpu(self) -> Regions:
        """The masks on the CPU."""
        return Regions(self.base.cpu(), self.edit.cpu(), self.visible.cpu())

    @property
    def edited(self) -> float:
        """Share of the tokens whose result may change."""
        return float(self.edit.float().mean())

    def within(self, mask: torch.Tensor) -> Regions:
        """The part of the masks that lies in another one, [T, H, W] bool on the same grid."""
        return Regions(self.base & mask, self.edit & mask, self.visible & mask)

    def on_grid(self, grid: tuple[int, int, int]) -> Regions:
        """The masks on another grid [T, H, W]: a token counts if any token counts that covers a part of it."""
        if grid == self.grid:
            return self
        base, edit, visible = (
            F.adaptive_max_pool3d(mask.float()[None, None], grid)[0, 0] > 0
            for mask in (self.base, self.edit, self.visible)
        )
        return Regions(base, edit, visible)

    def indices(self) -> torch.Tensor:
        """Positions of the visible tokens in the frame-major sequence, [V] int64 ascending."""
        return self.visible.flatten().nonzero().squeeze(1)


def on_cells(mask: torch.Tensor, patch: tuple[int, int, int], shape: tuple[int, int, int]) -> torch.Tensor:
    """A mask on the token grid as latent cells, [T, H, W] of `shape` (a last, partial patch included)."""
    for axis, size in enumerate(patch):
        mask = mask.repeat_interleave(size, dim=axis)
    return mask[: shape[0], : shape[1], : shape[2]]


def token_grid(shape: tuple[int, ...], patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Token grid of a latent [..., T, H, W], the last partial patch counted (the host pads to whole patches)."""
    t, h, w = (-(-size // p) for size, p in zip(shape[-3:], patch, strict=True))
    return t, h, w


def dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Grow a [T, H, W] mask by `radius` tokens within each frame (a square neighbourhood)."""
    if radius <= 0:
        return mask
    size = 2 * radius + 1
    grown = F.max_pool2d(mask.float()[:, None], size, stride=1, padding=radius)
    return grown[:, 0] > 0


def build(base: torch.Tensor, edit_radius: int, visible_radius: int) -> Regions:
    """Masks from `base` [T, H, W] bool.

    edit = base dilated by edit_radius; visible = edit dilated by visible_radius.
    """
    edit = dilate(base, edit_radius)
    return Regions(base, edit, dilate(edit, visible_radius))


def from_frames(mask: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """A mask of frames [N, H, W] in [0, 1] → base mask on `grid`: a token counts if any of its pixels does.

    One mask serves all frames; otherwise the frames are shared out over the latent ones.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3:
        raise ValueError(f"mask of shape {tuple(mask.shape)}: expected [N, H, W], one mask a frame or one for all")
    pooled = F.adaptive_max_pool3d(mask.float()[None, None], grid if mask.shape[0] > 1 else (1, *grid[1:]))[0, 0]
    return (pooled > 0.5).expand(grid).clone()


def from_attention(attention: torch.Tensor, weights: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Base mask: the places of the source that attended to the words which the target's prompt lacks.

    attention: [L, T', H', W'] ≥ 0; weights: [L] in [0, 1], 0 for the words both prompts share.
    A token's map counts relative to its own mean; the cut is Otsu's between the two groups.
    """
    if attention.shape[0] != weights.shape[0]:
        raise ValueError(f"{attention.shape[0]} attention maps for {weights.shape[0]} token weights")
    if not bool((weights > 0).any()):
        return torch.zeros(grid, dtype=torch.bool)
    maps = attention.float() / attention.float().mean((1, 2, 3), keepdim=True).clamp(min=1e-9)
    chosen = weights > 0
    heat = torch.einsum("lthw,l->thw", maps[chosen], weights[chosen].float() / weights[chosen].sum())
    heat = F.interpolate(heat[None, None], grid, mode="trilinear", align_corners=False)[0, 0]
    return heat > otsu(heat)


def otsu(values: torch.Tensor, bins: int = 64) -> float:
    """The cut that best splits `values` in two groups (N. Otsu, 1979)."""
    flat = values.flatten().float()
    low, high = float(flat.min()), float(flat.max())
    if high - low < 1e-6 * max(1.0, abs(high)):
        return high  # all values are equal: no group stands out
    counts = torch.histc(flat, bins, low, high)
    centres = low + (torch.arange(bins, device=flat.device) + 0.5) * (high - low) / bins
    weight = counts.cumsum(0)
    mass = (counts * centres).cumsum(0)
    rest = weight[-1] - weight
    between = (mass[-1] * weight / weight[-1] - mass) ** 2 / (weight * rest).clamp(min=1e-9)
    cut = int(between[:-1].argmax())
    return low + (cut + 1) * (high - low) / bins
