"""Which cells of a latent a noise mask keeps. Only masks whose every cell is kept or sampled can be served."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..messages import say
from ..reuse.join import with_frames
from .content import tensor_digest
from .faults import Unsuitable

_ROUNDING = 1e-6  # of a mask that the host has resized; what is kept comes out as 0 exactly


def kept_cells(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """[T, H, W] bool: what the host keeps of a latent of this shape. Raises Unsuitable with the reason.

    mask: of a LATENT, or as the host has resized it: 0 where the latent is kept, 1 where it is sampled.
    """
    import comfy.sampler_helpers

    resized = comfy.sampler_helpers.prepare_mask(mask.detach().float().cpu(), tuple(shape), torch.device("cpu"))
    first = resized[:1, :1]
    if len(shape) not in (4, 5) or not torch.equal(resized, first.expand_as(resized)):
        raise Unsuitable(say("bypassed.noise_mask", why=say("mask.rows")))
    kept = first == 0.0
    if not bool((kept | ((first - 1.0).abs() <= _ROUNDING)).all()):
        raise Unsuitable(say("bypassed.noise_mask", why=say("mask.values")))
    if bool(kept.all()):
        raise Unsuitable(say("bypassed.noise_mask", why=say("mask.all")))
    return with_frames(kept)[0, 0]


def mask_digest(kept: torch.Tensor | None) -> str:
    """Digest of the cells that a noise mask keeps; "" without a mask."""
    return "" if kept is None else tensor_digest(kept)
