"""The linear codec between RGB frames and Wan-shaped latents: 4×4-pixel blocks on 16 rotated principal components.

Stands where a VAE stands: [T, 48, 48, 3] frames ↔ [16, T, 12, 12] latents with unit deviation in every channel
(as Wan's own latents are after `process_in`). Every latent frame carries a fixed offset of its own, as Wan's first
latent frame differs from the rest: rotary positions are relative, so without it nothing tells which frame is first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

BLOCK = 4
CHANNELS = 16
FRAME_OFFSET = 2.0  # deviation of a latent frame's own offset, in units of a channel's deviation


@dataclass(frozen=True)
class Codec:
    """`mean`: [48]; `encode_matrix`: [48, 16]; `decode_matrix`: [16, 48]."""

    mean: torch.Tensor
    encode_matrix: torch.Tensor
    decode_matrix: torch.Tensor

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """[..., T, H, W, 3] in [0, 1] → [..., 16, T, H/4, W/4]."""
        latent = ((_blocks(video) - self.mean) @ self.encode_matrix).movedim(-1, -4)
        return latent + frame_offsets(latent.shape[-3]).to(latent)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """[..., 16, T, h, w] → [..., T, 4h, 4w, 3] in [0, 1]."""
        latent = latent - frame_offsets(latent.shape[-3]).to(latent)
        flat = latent.movedim(-4, -1) @ self.decode_matrix.to(latent) + self.mean.to(latent)
        *lead, t, h, w, _ = flat.shape
        pixels = flat.reshape(*lead, t, h, w, BLOCK, BLOCK, 3).transpose(-4, -3)
        return pixels.reshape(*lead, t, h * BLOCK, w * BLOCK, 3).clamp(0.0, 1.0)

    def save(self, path: Path) -> None:
        save_file({k: v.contiguous() for k, v in vars(self).items()}, path)

    @staticmethod
    def load(path: Path) -> Codec:
        return Codec(**load_file(path))


def frame_offsets(frames: int) -> torch.Tensor:
    """[CHANNELS, frames, 1, 1]: the same for every video, and for a frame whatever comes after it."""
    columns = [torch.randn(CHANNELS, generator=torch.Generator().manual_seed(7000 + t)) for t in range(frames)]
    return FRAME_OFFSET * torch.stack(columns, 1)[..., None, None]


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
