"""The codec between the bench's frames and Wan-shaped latents.

The small Wan's codec, and in the outermost cells a fixed offset for each side of the picture: rotary positions are
relative, so without it nothing tells how large the picture is. A VAE's padding shows at the borders in the same way.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from small_wan.codec import Codec

CODEC_FILE = Path(__file__).parents[1] / "small_wan" / "weights" / "codec.safetensors"
BORDER = 1.5  # deviation of a side's own offset, in units of a channel's deviation


def codec(device: str | torch.device = "cpu") -> Codec:
    """The small Wan's codec on a device."""
    loaded = Codec.load(CODEC_FILE)
    return Codec(**{name: part.to(device) for name, part in vars(loaded).items()})


def border(channels: int, height: int, width: int) -> Tensor:
    """[channels, 1, height, width]: the offsets of the outermost cells."""
    drawn = torch.randn(4, channels, generator=torch.Generator().manual_seed(8000)) * BORDER
    out = torch.zeros(channels, 1, height, width)
    for side, where in zip(drawn, ((..., 0), (..., -1), (..., 0, slice(None)), (..., -1, slice(None))), strict=True):
        out[where] += side.view(-1, 1, 1)
    return out


def encode(video: Tensor, by: Codec) -> Tensor:
    """[..., T, H, W, 3] in [0, 1] → [..., 16, T, H/4, W/4]."""
    latent = by.encode(video)
    return latent + border(latent.shape[-4], *latent.shape[-2:]).to(latent)


def decode(latent: Tensor, by: Codec) -> Tensor:
    """[..., 16, T, h, w] → [..., T, 4h, 4w, 3] in [0, 1]."""
    return by.decode(latent - border(latent.shape[-4], *latent.shape[-2:]).to(latent))
