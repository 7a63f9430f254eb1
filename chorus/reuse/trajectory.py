"""The states of one sampling run over σ, kept so that another run can start from any of them.

For a flow model x_σ = σ·ε + (1 − σ)·c. Where a sampler draws no noise only the clean component c is kept, which is
smooth in σ and so serves schedules the source never had; ε is that of whoever starts from it. Where it draws noise, the
state x itself is kept, and serves only its own σ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

import torch

SIGMA_TOLERANCE = 1e-4  # two σ closer than this are the same step; schedules are computed in fp32


def clean_component(x: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """c = (x − σ·ε)/(1 − σ). x, noise: the same shape; 0 ≤ σ < 1."""
    if not 0.0 <= sigma < 1.0:
        raise ValueError(f"sigma {sigma}: the clean component exists for 0 <= sigma < 1 only")
    return (x - sigma * noise) / (1.0 - sigma)


def serving(kept: Iterable[float], sigma: float, noise_drawn: bool) -> tuple[float, ...]:
    """The kept σ from which a state at `sigma` can be made: its own, the one below, or the two around it. () if none.

    States of a sampler that draws noise serve only their own σ.
    """
    kept = sorted(kept)
    nearest = min(kept, key=lambda s: abs(s - sigma))
    if abs(nearest - sigma) < SIGMA_TOLERANCE:
        return (nearest,)
    if noise_drawn or not kept[0] < sigma <= 1.0:
        return ()
    right = bisect_left(kept, sigma)
    return tuple(kept[right - 1 : right + 1])


class Trajectory:
    """Kept states of a run, by σ.

    noise: ε in model space, [B, C, T, H, W], or None for a sampler that draws noise.
    kept: σ → c (with noise) or x (without), the same shape; the final latent is the one at σ = 0.
    """

    def __init__(self, noise: torch.Tensor | None, kept: Mapping[float, torch.Tensor]):
        if not kept:
            raise ValueError("a trajectory needs at least one kept state")
        self.noise = noise
        self.sigmas = sorted(kept)
        self._kept = kept

    def has(self, sigma: float) -> bool:
        """Whether `at(sigma)` can answer."""
        return bool(serving(self.sigmas, sigma, self.noise is None))

    def at(self, sigma: float) -> torch.Tensor:
        """x at `sigma`, fp32. Between two kept σ the clean component is interpolated linearly.

        Above the largest kept σ, that σ's clean component is used: the first step from pure noise is a straight line.
        """
        near = serving(self.sigmas, sigma, self.noise is None)
        if not near:
            raise KeyError(f"no state at sigma {sigma:.6f}; kept: {', '.join(f'{s:.4f}' for s in self.sigmas)}")
        if len(near) == 1:
            return self._compose(self._kept[near[0]].float(), sigma)
        low, high = near
        weight = (sigma - low) / (high - low)
        return self._compose(torch.lerp(self._kept[low].float(), self._kept[high].float(), weight), sigma)

    def _compose(self, kept: torch.Tensor, sigma: float) -> torch.Tensor:
        if self.noise is None:
            return kept
        return sigma * self.noise + (1.0 - sigma) * kept
