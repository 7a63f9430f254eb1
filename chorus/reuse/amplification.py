"""TGAA: amplifies the words that the source's prompt lacks in cross-attention. The effect fades out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

WHERE = ("keys", "outputs", "both")


@dataclass(frozen=True)
class Amplification:
    """How much, where, and for how long. Formulas chosen here; the paper gives none."""

    strength: float = 0.25  # a token of weight 1 is amplified by 1 + strength at step K1
    where: str = "outputs"
    fade: float = 0.5  # fraction of the steps from K1 on over which the amplification fades to nothing

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise ValueError(f"where {self.where!r}: expected one of {', '.join(WHERE)}")

    def strength_at(self, step: int, first: int, total: int) -> float:
        """The strength at `step` (of `total`), computed from step `first` on: linear fade over `fade` of them."""
        span = self.fade * (total - first)
        if span <= 0 or step < first:
            return 0.0
        return self.strength * max(0.0, 1.0 - (step - first) / span)


def amplify(
    k: torch.Tensor,
    v: torch.Tensor,
    weights: torch.Tensor,
    rows: torch.Tensor,
    strength: float,
    where: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with the new tokens scaled by 1 + strength · weight in the conditional rows.

    k, v: [B, L, C]; weights: [L] in [0, 1]; rows: [B] bool. Scaled values are the token's part of the output.
    The tensors come back untouched, the same objects, where nothing is to be amplified.
    """
    if strength == 0.0 or not bool(weights.any()):
        return k, v
    gain = 1.0 + strength * weights.to(k)[None, :, None] * rows.to(k)[:, None, None]
    return (k * gain if where != "outputs" else k), (v * gain if where != "keys" else v)
