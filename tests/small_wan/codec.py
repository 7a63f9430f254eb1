"""The linear codec between RGB frames and Wan-shaped latents: 4×4-pixel blocks on 16 rotated principal components.

Stands where a VAE stands: [T, 48, 48, 3] frames ↔ [16, T, 12, 12] latents with unit deviation in every channel
(as Wan's own latents are after `process_in`). Every latent frame carries a fixed offset of its own, as Wan's first
latent frame differs from the rest: rotary positions are relative, so without it nothing tells which frame is first.
The bench's larger pictures have one in their outermost cells, too, a different one for each side, as a VAE's padding
shows there: without it nothing tells how large the picture is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

BLOCK = 4
CHANNELS = 16
_TENSORS = ("mean", "encode_matrix", "decode_matrix")
BENCH_BORDER = 1.5  # `Codec.border` of the bench's pictures, in units of a channel's deviation
FRAME_OFFSET = 2.0  # deviation of a latent frame's own offset, in units of a channel's deviation


@dataclass(frozen=True)
class Codec:
    """`mean`: [48]; `encode_matrix`: [48, 16]; `decode_matrix`: [16, 48]; `border`: deviation of the sides' offsets."""

    mean: torch.Tensor
    encode_matrix: torch.Tensor
    decode_matrix: torch.Tensor
    border: float = 0.0

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """[..., T, H, W, 3] in [0, 1] → [..., 16, T, H/4, W/4]."""
        latent = ((_blocks(video) - self.mean) @ self.encode_matrix).movedim(-1, -4)
        return latent + self._offsets(latent)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """[..., 16, T, h, w] → [..., T, 4h, 4w, 3] in [0, 1]."""
        latent = latent - self._offsets(latent)
        flat = latent.movedim(-4, -1) @ self.decode_matrix.to(latent) + self.mean.to(latent)
        *lead, t, h, w, _ = flat.shape
        pixels = flat.reshape(*lead, t, h, w, BLOCK, BLOCK, 3).transpose(-4, -3)
        return pixels.reshape(*lead, t, h * BLOCK, w * BLOCK, 3).clamp(0.0, 1.0)

    def _offsets(self, latent: torch.Tensor) -> torch.Tensor:
        offsets = frame_offsets(latent.shape[-3])
        if self.border:
            offsets = offsets + self.border * border_offsets(*latent.shape[-2:])
        return offsets.to(latent)

    def on(self, device: str | torch.device) -> Codec:
        """The codec with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def save(self, path: Path) -> None:
        save_file({name: getattr(self, name).contiguous() for name in _TENSORS}, path)

    @staticmethod
    def load(path: Path, border: float = 0.0) -> Codec:
        return Codec(**load_file(path), border=border)


def frame_offsets(frames: int) -> torch.Tensor:
    """[CHANNELS, frames, 1, 1]: the same for every video, and for a frame whatever comes after it."""
    columns = [torch.randn(CHANNELS, generator=torch.Generator().manual_seed(7000 + t)) for t in range(frames)]
    return FRAME_OFFSET * torch.stack(columns, 1)[..., None, None]


def border_offsets(height: int, width: int) -> torch.Tensor:
    """[CHANNELS, 1, height, width]: for the outermost cells of each side a vector of its own, of unit deviation."""
    drawn = torch.randn(4, CHANNELS, generator=torch.Generator().manual_seed(8000))
    out = torch.zeros(CHANNELS, 1, height, width)
    for side, where in zip(drawn, ((..., 0), (..., -1), (..., 0, slice(None)), (..., -1, slice(None))), strict=True):
        out[where] += side.view(-1, 1, 1)
    return out


def _blocks(video: torch.Tensor) -> torch.Tensor:
    *lead, h, w, c = video.shape
    cut = video.reshape(*lead, h // BLOCK, BLOCK, w // BLOCK, BLOCK, c).transpose(-4, -3)
    return cut.reshape(*lead, h // BLOCK, w // BLOCK, BLOCK * BLOCK * c)


def fit(videos: np.ndarray, seed: int = 0) -> Codec:
    """Principal components of the blocks of `videos` [N, T, H, W, 3], rotated so that no channel idles."""
    x = _blocks(torch.from_numpy(videos)).reshape(-1, BLOCK * BLOCK * 3).double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    basis = vectors[:, -CHANNELS:]
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.double))
    mixed = basis @ rotation
    scale = ((x - mean) @ mixed).std(0)
    return Codec(mean.float(), (mixed / scale).float(), (mixed * scale).T.contiguous().float())
