"""The base of all families, and what one model call is to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...messages import Message, say

Options = dict[str, Any]
"""The host's transformer options of one model call."""


@dataclass(frozen=True)
class ModelCall:
    """One call of the network, as the APPLY_MODEL wrapper sees it.

    shape: of the input x, [B, C, T, H, W]; context: the text encodings, [B, L, C], None without.
    step: of the schedule; rows: [B] bool, those of the positive prompt.
    extras: further inputs by name, as the host passes them.
    """

    shape: tuple[int, ...]
    context: torch.Tensor | None
    step: int
    rows: torch.Tensor
    options: Mapping[str, Any]
    extras: Mapping[str, Any] = field(default_factory=dict)


class AttentionWork(Protocol):
    """What a technique does at an attention call of text in one model call."""

    def __call__(
        self, block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values to use instead of k and v, each [B, L, C]; the same objects where nothing changes."""


class Network:
    """A model of which Chorus knows only that it is sampled step by step: stage 1 works, the rest is declined."""

    text_keys: frozenset[str] = frozenset({"pooled_output", "attention_mask", "attention_mask_img_shape"})
    """Keys of a conditioning, beside `cross_attn`, that hold the prompt's text in some form."""

    block_count: int = 0

    def __init__(self, module: torch.nn.Module):
        self.module = module

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def token_grid(self, shape: Sequence[int]) -> tuple[int, int, int] | None:
        """Tokens of a latent [B, C, T, H, W] along T, H and W; None where the family does not tell."""
        return None

    def selective_refusal(self, options: Mapping[str, Any]) -> Message | None:
        """Why only a part of the tokens cannot be computed; None where it can. options: the transformer options."""
        return say("note.network", network=self.name)

    def words_refusal(self) -> Message | None:
        """Why words cannot be amplified or watched in attention; None where they can."""
        return say("note.no_blocks", network=self.name)

    def cells(self, mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A mask [T, H, W] on the token grid as cells of a latent [..., T, H, W]."""
        raise NotImplementedError

    def patched(
        self,
        call: ModelCall,
        kept: torch.Tensor | None,
        works: Sequence[AttentionWork],
        seen: Callable[[float], None] | None,
    ) -> Options:
        """Transformer options with which the call computes the tokens `kept` only, and does `works` at the text.

        kept: [V] positions on the token grid in frame-major order, None for all.
        seen: called with the computed share of the tokens when the blocks are really entered.
        """
        return dict(call.options)
