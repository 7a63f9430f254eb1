"""HunyuanVideo 1.0 and 1.5: text and video attend to each other in one attention, the text's rows first.

1.0 has double blocks, where both have weights of their own, and then single ones, where both are one sequence. 1.5 has
double blocks only; quoted words are encoded apart, by byT5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ...reuse.regions import token_grid
from .base import AttentionWork, KVCache, ModelCall, Network, Options
from .tokens import SelfAttention, Tokens


class HunyuanVideo(Network):
    text_keys = Network.text_keys | {"conditioning_byt5small"}
    plain_parts = frozenset(
        {
            "pe_embedder",
            "img_in",
            "time_in",
            "time_r_in",
            "vector_in",
            "guidance_in",
            "txt_in",
            "byt5_in",
            "vision_in",
            "cond_type_embedding",
            "double_blocks",
            "single_blocks",
            "final_layer",
        }
    )

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        return hasattr(module, "double_blocks") and hasattr(module, "txt_in") and hasattr(module, "byt5_in")

    @property
    def _patch(self) -> tuple[int, int, int] | None:
        """None for the image models of this architecture, whose patches have two sides."""
        patch = [int(side) for side in getattr(self.module, "patch_size", ())]
        return (patch[0], patch[1], patch[2]) if len(patch) == 3 else None

    @property
    def token_size(self) -> tuple[int, int, int]:
        return self._patch or super().token_size

    @property
    def _slots(self) -> list[tuple[str, int]]:
        kinds = ("double_block", "single_block") if self._patch else ()
        return [(kind, index) for kind in kinds for index in range(len(getattr(self.module, f"{kind}s", ())))]

    @property
    def block_count(self) -> int:  # type: ignore[override]
        return len(self._slots)

    def token_grid(self, shape: Sequence[int]) -> tuple[int, int, int] | None:
        return token_grid(tuple(shape), self._patch) if self._patch and len(shape) == 5 else None

    def patched(
        self,
        call: ModelCall,
        computed: torch.Tensor | None,
        works: Sequence[AttentionWork],
        seen: Callable[[float], None] | None,
        kv_cache: KVCache | None = None,
    ) -> Options:
        options = dict(call.options)
        grid = self.token_grid(call.shape)
        if grid is None or call.context is None:
            return options
        reference = call.extras.get("ref_latent")
        in_front = 0 if reference is None else math.prod(self.token_grid(reference.shape) or ())
        tokens = _Tokens(math.prod(grid), in_front, computed, self._slots, seen, whole_keys=kv_cache is not None)
        if computed is not None or seen is not None:
            options = tokens.patch(options)
        if works or kv_cache is not None:
            kept_keys = (
                None if kv_cache is None else SelfAttention(kv_cache, KVCache.key(call), tokens, self.block_count)
            )
            previous = options.get("optimized_attention_override")
            joint = _JointAttention(works, kept_keys, *self._text(call), self._doubles, previous)
            options = options | {"optimized_attention_override": joint}
        return options

    @property
    def _doubles(self) -> int:
        return len(self.module.double_blocks)  # type: ignore[arg-type]

    def _text(self, call: ModelCall) -> tuple[int, slice]:
        """How many rows the text has in attention, and which of them are those of the context.

        In front are an image as the text encoder's vision part sees it and, in 1.5, the quoted words.
        """
        assert call.context is not None

        def rows(name: str, part: str) -> int:
            given = call.extras.get(name)
            return 0 if given is None or getattr(self.module, part, None) is None else int(given.shape[1])

        sight, quoted, words = rows("clip_fea", "vision_in"), rows("txt_byt5", "byt5_in"), call.context.shape[1]
        first = sight + (quoted if getattr(self.module, "cond_type_embedding", None) is not None else 0)
        return sight + quoted + words, slice(first, first + words)


@dataclass
class _Tokens(Tokens):
    """whole_keys: whether attention has the keys of all tokens, so that its mask stays."""

    whole_keys: bool = False
    _rows: torch.Tensor | None = None
    _shorter: dict[str, Any] = field(default_factory=dict)  # gathered once for all blocks
    _modulated: dict[str, Any] = field(default_factory=dict)  # once for each kind of block

    @property
    def rows(self) -> torch.Tensor:
        assert self._rows is not None
        return self._rows

    def shorter(self, args: dict[str, Any]) -> dict[str, Any]:
        assert self.places is not None
        if self._rows is None:
            text = args["txt"].shape[1]
            self._rows = torch.cat([torch.arange(text, device=self.places.device), self.places + text])
            mask = args["attention_mask"]
            self._shorter = {
                "pe": args["pe"].index_select(2, self._rows),
                "attention_mask": mask if mask is None or self.whole_keys else mask.index_select(-1, self._rows),
            }
        name, rows = ("modulation_dims_img", self.places) if "txt" in args else ("modulation_dims", self._rows)
        if name not in self._modulated:
            self._modulated[name] = _ranges(args[name], rows)
        return self._shorter | {name: self._modulated[name]}


def _ranges(
    dims: list[tuple[int, int | None, int]] | None, rows: torch.Tensor
) -> list[tuple[int, int | None, int]] | None:
    """Which modulation counts for which of the rows; dims: for which of the whole sequence, (from, to, modulation)."""

    def before(end: int | None) -> int | None:
        return end and int((rows < end).sum())

    return dims and [(int((rows < start).sum()), before(end), which) for start, end, which in dims]


@dataclass
class _JointAttention:
    """The attention of text and video in each block, around whatever override was there before.

    The token refiner's own attention, which comes before the blocks, passes as it is.

    works: done with the keys and values of the words, for the video's rows only. text: rows before the video's.
    words: which of them are the context's. doubles: blocks before the single ones, which the host counts anew.
    """

    works: Sequence[AttentionWork]
    kept_keys: SelfAttention | None
    text: int
    words: slice
    doubles: int
    previous: Callable[..., Any] | None

    def __call__(self, func: Callable[..., Any], q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        attention = partial(self.previous, func) if self.previous else func
        place = kwargs.get("transformer_options") or {}
        if "block_type" not in place or k.ndim != 4 or not kwargs.get("skip_reshape", False):
            return attention(q, k, v, *args, **kwargs)
        block = place["block_index"] + (self.doubles if place["block_type"] == "single" else 0)
        if self.kept_keys is not None:  # q, k and v are [B, heads, L, C / heads]
            k, v = (x.transpose(1, 2) for x in self.kept_keys(block, k.transpose(1, 2), v.transpose(1, 2)))
        louder = self._louder(block, q, k, v)
        if louder is None:
            return attention(q, k, v, *args, **kwargs)
        mask = kwargs.get("mask")
        outs = [
            attention(q[:, :, rows], *keys_values, *args, **kwargs | {"mask": _of_rows(mask, rows)})
            for rows, keys_values in ((slice(self.text), (k, v)), (slice(self.text, None), louder))
        ]
        return torch.cat(outs, 1)

    def _louder(
        self, block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values for the video's rows; None where they are those for the text's rows."""
        if not self.works:
            return None
        heads = q.shape[1]
        queries = q[:, :, self.text :].transpose(1, 2)
        words_k, words_v = (x[:, :, self.words].transpose(1, 2).flatten(2) for x in (k, v))
        louder_k, louder_v = words_k, words_v
        for work in self.works:
            louder_k, louder_v = work(block, queries, louder_k, louder_v, heads)
        if louder_k is words_k and louder_v is words_v:
            return None
        return (
            k if louder_k is words_k else self._with_words(k, louder_k),
            v if louder_v is words_v else self._with_words(v, louder_v),
        )

    def _with_words(self, whole: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        whole = whole.clone()
        whole[:, :, self.words] = words.unflatten(2, (whole.shape[1], -1)).transpose(1, 2)
        return whole


def _of_rows(mask: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    """The attention mask of some rows; the host's own is one for all."""
    return mask[..., rows, :] if mask is not None and mask.shape[-2] > 1 else mask
