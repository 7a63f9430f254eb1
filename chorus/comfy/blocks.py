"""Inside one model call: dropping tokens before the blocks, amplifying words, watching where words look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..reuse.amplification import amplify

COARSE = (8, 16, 16)  # at most so many cells of the token grid are watched, a few kB a word


@dataclass
class TokenDrop:
    """Lets only some tokens through the blocks, with their rotary positions. One object a model call.

    indices: [V] positions kept; total: tokens of the whole grid.
    """

    indices: torch.Tensor
    total: int
    whole: torch.Tensor | None = None  # block 0's input, into which the last block's output is put back
    shorter: dict = field(default_factory=dict)  # what every block gets, gathered once

    def enter(self, args: dict, first: bool) -> dict:
        if first:
            if args["img"].shape[1] != self.total:
                return args  # reference tokens or another grid: this call is computed whole
            self.whole = args["img"]
            self.indices = self.indices.to(args["img"].device)
            self.shorter = {"pe": args["pe"].index_select(1, self.indices)}
            rows = args["vec"].shape[1]
            if args["vec"].ndim == 4 and rows > 1:  # one modulation row a frame
                per_token = args["vec"].repeat_interleave(self.total // rows, dim=1)
                self.shorter["vec"] = per_token.index_select(1, self.indices)
            return {**args, **self.shorter, "img": args["img"].index_select(1, self.indices)}
        return {**args, **self.shorter}

    def leave(self, out: dict, last: bool) -> dict:
        if not last or self.whole is None:
            return out
        whole, self.whole = self.whole, None
        return dict(out, img=whole.index_copy(1, self.indices, out["img"]))


def patch_blocks(options: dict, count: int, drop: TokenDrop | None, seen: Callable[[int], None]) -> dict:
    """Transformer options with block patches: `drop` on all `count` blocks, `seen(tokens)` at the first.

    What another patch put in a block's slot is called inside.
    """
    taken = options.get("patches_replace", {}).get("dit", {})
    patched = dict(taken)
    for index in range(count if drop else 1):
        patched["double_block", index] = _block_patch(index, count, drop, seen, taken.get(("double_block", index)))
    return dict(options, patches_replace={**options.get("patches_replace", {}), "dit": patched})


def _block_patch(index: int, count: int, drop: TokenDrop | None, seen: Callable, inner: Callable | None) -> Callable:
    def block(args: dict, extra: dict) -> dict:
        if drop:
            args = drop.enter(args, index == 0)
        if index == 0:
            seen(args["img"].shape[1])
        out = inner(args, extra) if inner else extra["original_block"](args)
        return drop.leave(out, index == count - 1) if drop else out

    return block


@dataclass
class CrossAttention:
    """What to do at the text cross-attention of one model call.

    text_length: tokens of the context as the call sees it; rows: [B] bool, those of the positive prompt.
    """

    text_length: int
    rows: torch.Tensor
    weights: torch.Tensor | None = None  # [text_length]
    strength: float = 0.0
    where: str = "outputs"
    watch_blocks: frozenset[int] = frozenset()
    watch: Callable[[torch.Tensor, torch.Tensor, int], None] | None = None


def override_attention(options: dict, work: CrossAttention) -> dict:
    """Transformer options whose attention does `work`, around whatever override was there before.

    Self- and cross-attention both pass unlabelled; within a block the first call is self-attention, and the text's
    is the one with as many keys as the context has tokens.
    """
    previous = options.get("optimized_attention_override")
    place = {"block": -1, "call": 0}

    def attention(func: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any):
        index = kwargs.get("transformer_options", options).get("block_index", 0)
        place["call"] = place["call"] + 1 if index == place["block"] else 1
        place["block"] = index
        plain = not kwargs.get("skip_reshape", False)
        if plain and place["call"] > 1 and k.shape[1] == work.text_length:
            if work.watch and index in work.watch_blocks:
                work.watch(q, k, args[0] if args else kwargs["heads"])
            if work.weights is not None:
                k, v = amplify(k, v, work.weights, work.rows, work.strength, work.where)
        if previous:
            return previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    return dict(options, optimized_attention_override=attention)


def coarse_attention(
    q: torch.Tensor, k: torch.Tensor, heads: int, grid: tuple[int, int, int], real: torch.Tensor
) -> torch.Tensor:
    """Where each real word looks, mean over heads: [L_real, T', H', W'] fp32 on the CPU.

    q: [tokens, C] of one row; k: [L, C] of the same row; grid: [T, H, W] with tokens = T·H·W; real: [L] bool.
    Every n-th token is asked, so that the grid fits in COARSE.
    """
    t, h, w = (-(-size // most) for size, most in zip(grid, COARSE, strict=True))
    asked = q.view(*grid, -1)[::t, ::h, ::w]
    cells = asked.shape[:3]
    asked = asked.reshape(-1, heads, q.shape[-1] // heads).transpose(0, 1).float()
    keys = k.view(k.shape[0], heads, -1).transpose(0, 1).float()
    probabilities = torch.softmax(asked @ keys.transpose(1, 2) * asked.shape[-1] ** -0.5, dim=-1).mean(0)
    return probabilities[:, real.to(k.device)].T.reshape(-1, *cells).cpu()
