"""Scenes that the bench's tests share: drawn once, with what is true of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bench_wan import latents, scenes
from bench_wan.captions import Caption, sample_caption

COUNT = 160


@dataclass(frozen=True)
class Scenes:
    """captions and layout of the scenes; videos: [COUNT, T, SIZE, SIZE, 3]; seen: as `scenes.draw` gives it."""

    captions: list[Caption]
    layout: scenes.Layout
    videos: np.ndarray
    seen: torch.Tensor


def coded(videos: np.ndarray) -> np.ndarray:
    """Videos [..., T, H, W, 3] through the codec, as every sample comes out of it."""
    codec = latents.codec()
    latent = codec.encode(torch.from_numpy(np.ascontiguousarray(videos, np.float32)))
    return codec.decode(latent).numpy()


@pytest.fixture(scope="session")
def drawn() -> Scenes:
    rng = np.random.default_rng(21)
    captions = [sample_caption(rng, held_out=i % 4 == 0) for i in range(COUNT)]
    layout = scenes.lay_out(captions, seed=22)
    parts = [scenes.draw(layout[i : i + 32]) for i in range(0, COUNT, 32)]
    videos, seen = (torch.cat(part) for part in zip(*parts, strict=True))
    return Scenes(captions, layout, videos.numpy(), seen)


@pytest.fixture(scope="session")
def decoded(drawn: Scenes) -> np.ndarray:
    return coded(drawn.videos)


@pytest.fixture(scope="session")
def through_codec():
    return coded
