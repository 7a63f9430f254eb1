"""What a noise mask keeps of a latent: a start image that lies in it, or what surrounds a part that is painted anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Given:
    """The cells of a latent that stay as they are, whatever the model makes of them.

    cells: [T, H, W] bool. latent: what sampling begins from, given or not, in model space, [B, C, T, H, W]; that of an
        image is [B, C, H, W].
    """

    cells: torch.Tensor
    latent: torch.Tensor

    def to(self, like: torch.Tensor) -> Given:
        """On the device and in the precision of a latent."""
        return Given(self.cells.to(like.device), self.latent.to(like))

    def put_into(self, latent: torch.Tensor) -> torch.Tensor:
        """Another latent of the same shape, with the given cells in it."""
        return torch.where(self.cells, self.latent, latent)

    def noised(self, x: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """A state x at σ whose given cells are those that the sampler has of them there, under this noise."""
        return torch.where(self.cells, sigma * noise + (1.0 - sigma) * self.latent, x)

    def tokens(self, patch: tuple[int, int, int]) -> torch.Tensor:
        """[T, H, W] bool on the token grid: the tokens all of whose cells are given. patch: cells of a token."""
        sampled = (~self.cells).float()[None, None]
        return F.max_pool3d(sampled, patch, ceil_mode=True)[0, 0] == 0
