"""Euler sampling of the twin, many prompts in one batch: for distillation and for looking at a model while it trains.

The bench itself samples through the host; a test holds that both give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import scenes
from .train import SHIFT

CFG = 3.0
DISTILLED_STEPS = 4
LATENT = (16, scenes.FRAMES, scenes.SIZE // 4, scenes.SIZE // 4)


def sigmas(steps: int) -> Tensor:
    """[steps + 1] from 1 to 0: the host's `simple` scheduler under `ModelSamplingSD3`, which picks of 1000 levels."""
    levels = torch.arange(1, 1001) / 1000
    levels = SHIFT * levels / (1 + (SHIFT - 1) * levels)
    picked = [levels[-(1 + int(k * len(levels) / steps))] for k in range(steps)]
    return torch.stack([*picked, torch.zeros(())])


def noise(seeds: Sequence[int]) -> Tensor:
    """[N, 16, T, h, w]: what the host draws for an empty latent of one video at each seed."""
    drawn = [torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(drawn)


@torch.no_grad()
def estimate(
    model: Any, context: Tensor, x: Tensor, sigma: float, cfg: float = CFG, given: Tensor | None = None
) -> Tensor:
    """x0 [N, 16, T, h, w] at x; context: [N, L, C]; given: further channels of the input, see `train.first_frame`."""
    timestep, inputs = torch.full((len(x),), sigma * 1000, device=x.device), x
    if given is not None:
        inputs = torch.cat((x, given), 1)
    v = _velocity(model, inputs, timestep, context)
    if cfg != 1.0:
        without = _velocity(model, inputs, timestep, torch.zeros_like(context))
        v = without + cfg * (v - without)
    return x - sigma * v


def path(
    model: Any, context: Tensor, start: Tensor, steps: int, cfg: float = CFG, given: Tensor | None = None
) -> list[Tensor]:
    """x at σ_0 … σ_N, each [N, 16, T, h, w]; start: the noise; context: [N, L, C]; given: as `estimate` takes it."""
    states = [start]
    for sigma, after in pairwise(sigmas(steps).tolist()):
        x = states[-1]
        states.append(x + (x - estimate(model, context, x, sigma, cfg, given)) / sigma * (after - sigma))
    return states


def _velocity(model: Any, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    v = model(x, timestep, context)
    return (v[0] if isinstance(v, tuple) else v).float()
