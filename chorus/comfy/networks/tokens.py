"""Lets only some of a video's tokens through the blocks of one model call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .base import KVCache, Options


@dataclass
class Tokens(ABC):
    """Some of the video's tokens and all others (references, text). A family adds what its blocks get beside them.

    total: tokens of the video; in_front: further tokens before them; computed: [V] positions among the video's.
    slots: the host's names of the blocks, in their order; the first block gets the tokens as `img`, without text.
    """

    total: int
    in_front: int
    computed: torch.Tensor | None
    slots: Sequence[tuple[str, int]]
    seen: Callable[[float], None] | None
    whole: torch.Tensor | None = None  # the first block's input, into which the last block's output is put back
    places: torch.Tensor | None = None  # of the computed tokens in it

    @abstractmethod
    def shorter(self, args: dict[str, Any]) -> dict[str, Any]:
        """What a block gets beside the tokens, for the computed ones only. args: as the host gives them."""

    @property
    def rows(self) -> torch.Tensor:
        """Where the computed tokens are in the sequence of self-attention."""
        assert self.places is not None
        return self.places

    def patch(self, options: Options) -> Options:
        """Transformer options with this on all blocks. What another patch put in a block's slot is called inside."""
        present = options.get("patches_replace", {})
        taken = present.get("dit", {})
        patched = dict(taken)
        for slot in self.slots if self.computed is not None else self.slots[:1]:
            patched[slot] = self._block(slot, taken.get(slot))
        return options | {"patches_replace": present | {"dit": patched}}

    def _block(self, slot: tuple[str, int], inner: Callable[..., Any] | None) -> Callable[..., Any]:
        first, last = slot == self.slots[0], slot == self.slots[-1]

        def block(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            if first and self.seen is not None:
                self.seen(1.0 if self.computed is None else len(self.computed) / self.total)
            if self.computed is not None:
                if first:
                    args = args | {"img": self._enter(args["img"])}
                args = args | self.shorter(args)
            out = inner(args, extra) if inner else extra["original_block"](args)
            return self._leave(out) if last and self.computed is not None else out

        return block

    def _enter(self, image: torch.Tensor) -> torch.Tensor:
        assert self.computed is not None
        self.whole = image
        behind = self.in_front + self.total
        if image.shape[1] < behind:
            raise ValueError(f"{image.shape[1]} tokens where the video alone has {self.total}")
        outside = torch.arange(image.shape[1], device=image.device)
        computed = self.computed.to(image.device) + self.in_front
        self.places = torch.cat([outside[: self.in_front], computed, outside[behind:]])
        return image.index_select(1, self.places)

    def _leave(self, out: dict[str, Any]) -> dict[str, Any]:
        whole, self.whole = self.whole, None
        assert whole is not None and self.places is not None
        text = out["img"].shape[1] - len(self.places)  # rows that a block of both puts before the image's
        image = whole.index_copy(1, self.places, out["img"][:, text:])
        return out | {"img": torch.cat([out["img"][:, :text], image], 1) if text else image}


@dataclass
class SelfAttention:
    """Keeps the keys and values of all tokens in one model call, or completes those of a call that leaves some out.

    blocks: how many attend to themselves in such a call.
    """

    kv_cache: KVCache
    key: Any
    tokens: Tokens
    blocks: int

    def __call__(self, block: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """k, v: [B, L, ...] of the tokens that are computed."""
        if self.tokens.computed is None:
            self.kv_cache.keep(self.key, block, self.blocks, k, v)
            return k, v
        return self.kv_cache.completed(self.key, block, self.tokens.rows, k, v)
