"""The codec of the bench's scenes: the small Wan's, with offsets at the borders of the picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from small_wan.codec import BENCH_BORDER, Codec

CODEC_FILE = Path(__file__).parents[1] / "small_wan" / "weights" / "codec.safetensors"


@cache
def codec(device: str | torch.device = "cpu") -> Codec:
    """The codec on a device."""
    return Codec.load(CODEC_FILE, BENCH_BORDER).on(device)
