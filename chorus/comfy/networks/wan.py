"""Wan 2.1 and 2.2 and what is built like them: tokens, blocks, and the text cross-attention of each block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...messages import Message, say
from ...reuse.regions import token_grid
from .base import AttentionWork, KVCache, ModelCall, Network, Options

# The parts of a network whose tokens all pass through `blocks`, each on its own or by attention, and those that add to
# the tokens, or more tokens, before the blocks. A network with any other part may need the whole grid there.
_PLAIN_PARTS = {
    "patch_embedding",
    "text_embedding",
    "time_embedding",
    "time_projection",
    "blocks",
    "head",
    "rope_embedder",
    "img_emb",
    "ref_conv",
    "control_adapter",
    "patch_embedding_pose",
    "patch_embedding_mask",
}


class Wan(Network):
    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        patch = getattr(module, "patch_size", None)
        return (
            isinstance(patch, list | tuple)
            and len(patch) == 3
            and hasattr(module, "rope_encode")
            and all(hasattr(block, "cross_attn") for block in getattr(module, "blocks", [None]))
        )

    @property
    def token_size(self) -> tuple[int, int, int]:
        t, h, w = self.module.patch_size  # type: ignore[misc]
        return int(t), int(h), int(w)  # type: ignore[arg-type]

    @property
    def block_count(self) -> int:  # type: ignore[override]
        return len(self.module.blocks)  # type: ignore[arg-type]

    def token_grid(self, shape: Sequence[int]) -> tuple[int, int, int] | None:
        return token_grid(tuple(shape), self.token_size) if len(shape) == 5 else None

    def concatenated_inputs(self, latent: torch.Tensor) -> dict[str, torch.Tensor]:
        channels = int(getattr(self.module, "out_dim", latent.shape[1]))
        if latent.shape[1] >= 2 * channels:
            return {"control_video": latent[:, :channels], "start_image": latent[:, channels:]}
        if hasattr(self.module, "face_adapter"):
            return {"reference_image": latent[:, :, :1], "background_video": latent[:, :, 1:]}
        return super().concatenated_inputs(latent)

    def words_refusal(self) -> Message | None:
        return None

    def selective_refusal(self, options: Mapping[str, Any]) -> Message | None:
        others = {name for name, _ in self.module.named_children()} - _PLAIN_PARTS
        if others:
            return say("note.parts", network=self.name, parts=", ".join(sorted(others)))
        if any(options.get("patches", {}).values()):
            return say("note.patched")
        if "optimized_attention_override" in options:
            return say("note.attention")
        return None

    def patched(
        self,
        call: ModelCall,
        kept: torch.Tensor | None,
        works: Sequence[AttentionWork],
        seen: Callable[[float], None] | None,
        kv_cache: KVCache | None = None,
    ) -> Options:
        options = dict(call.options)
        grid = self.token_grid(call.shape)
        if grid is None:
            return options
        tokens = _Tokens(grid[0] * grid[1] * grid[2], self._in_front(call, grid), kept, self.block_count, seen)
        if kept is not None or seen is not None:
            options = tokens.patch(options)
        text_length = call.context.shape[1] if call.context is not None else -1
        works = works if call.context is not None else ()
        shared = None if kv_cache is None else _SelfAttention(kv_cache, KVCache.key(call), self.block_count, tokens)
        if works or shared is not None:
            options = _with_attention(options, works, text_length, call.shape[0], shared)
        return options

    def _in_front(self, call: ModelCall, grid: tuple[int, int, int]) -> int:
        """Tokens of reference images that the network puts before the video's own."""
        reference = call.extras.get("reference_latent")
        if reference is None:
            return 0
        if hasattr(self.module, "patch_embedding_pose"):  # [B, C, images, H, W]
            return int(reference.shape[2]) // self.token_size[0] * grid[1] * grid[2]
        return grid[1] * grid[2] if getattr(self.module, "ref_conv", None) is not None else 0


@dataclass
class _Tokens:
    """Lets only some of the video's tokens through the blocks of one model call, and all others (references).

    total: tokens of the video; in_front: further tokens before them; kept: [V] positions among the video's.
    """

    total: int
    in_front: int
    kept: torch.Tensor | None
    blocks: int
    seen: Callable[[float], None] | None
    whole: torch.Tensor | None = None  # the first block's input, into which the last block's output is put back
    places: torch.Tensor | None = None
    shorter: dict[str, torch.Tensor] = field(default_factory=dict)  # what every block gets, gathered once

    def patch(self, options: Options) -> Options:
        """Transformer options with this on all blocks. What another patch put in a block's slot is called inside."""
        present = options.get("patches_replace", {})
        taken = present.get("dit", {})
        patched = dict(taken)
        for index in range(self.blocks if self.kept is not None else 1):
            patched["double_block", index] = self._block(index, taken.get(("double_block", index)))
        return options | {"patches_replace": present | {"dit": patched}}

    def _block(self, index: int, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        def block(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            if index == 0 and self.seen is not None:
                self.seen(1.0 if self.kept is None else len(self.kept) / self.total)
            if self.kept is not None:
                args = self._enter(args, index == 0)
            out = inner(args, extra) if inner else extra["original_block"](args)
            return out if self.kept is None else self._leave(out, index == self.blocks - 1)

        return block

    def _enter(self, args: dict[str, Any], first: bool) -> dict[str, Any]:
        if first:
            assert self.kept is not None
            image: torch.Tensor = args["img"]
            self.whole = image
            behind = self.in_front + self.total
            if image.shape[1] < behind:
                raise ValueError(f"{image.shape[1]} tokens where the video alone has {self.total}")
            outside = torch.arange(image.shape[1], device=image.device)
            kept = self.kept.to(image.device) + self.in_front
            self.places = torch.cat([outside[: self.in_front], kept, outside[behind:]])
            self.shorter = {"pe": args["pe"].index_select(1, self.places)}
            modulation = args["vec"]
            rows = modulation.shape[1]
            if modulation.ndim == 4 and rows > 1:  # one modulation a frame, shared out as the host does
                each = modulation.repeat_interleave(-(-image.shape[1] // rows), dim=1)
                self.shorter["vec"] = each.index_select(1, self.places)
            return args | self.shorter | {"img": image.index_select(1, self.places)}
        return args | self.shorter

    def _leave(self, out: dict[str, Any], last: bool) -> dict[str, Any]:
        if not last:
            return out
        whole, self.whole = self.whole, None
        assert whole is not None and self.places is not None
        return out | {"img": whole.index_copy(1, self.places, out["img"])}


@dataclass
class _SelfAttention:
    """Keeps the keys and values of all tokens in one model call, or completes those of a call that leaves some out."""

    kv_cache: KVCache
    key: Any
    blocks: int
    tokens: _Tokens

    def __call__(self, block: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.tokens.kept is None:
            self.kv_cache.keep(self.key, block, self.blocks, k, v)
            return k, v
        assert self.tokens.places is not None
        return self.kv_cache.completed(self.key, block, self.tokens.places, k, v)


def _with_attention(
    options: Options, works: Sequence[AttentionWork], text_length: int, batch: int, shared: _SelfAttention | None
) -> Options:
    """Transformer options whose text cross-attention does `works` and whose self-attention does `shared`, around
    whatever override was there before.

    Self- and cross-attention both pass unlabelled. Within a block the first call is self-attention, and the text's is
    the one with as many keys as the context has tokens, for all rows of the batch.
    """
    previous = options.get("optimized_attention_override")
    place = {"block": -1, "call": 0}

    def attention(func: Callable[..., Any], q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        index = kwargs.get("transformer_options", options).get("block_index", 0)
        place["call"] = place["call"] + 1 if index == place["block"] else 1
        place["block"] = index
        plain = not kwargs.get("skip_reshape", False) and k.ndim == 3
        if plain and place["call"] > 1 and k.shape[1] == text_length and k.shape[0] == q.shape[0] == batch:
            heads = args[0] if args else kwargs["heads"]
            for work in works:
                k, v = work(index, q, k, v, heads)
        if shared is not None and plain and place["call"] == 1 and k.shape[:2] == q.shape[:2]:
            k, v = shared(index, k, v)
        if previous:
            return previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    return options | {"optimized_attention_override": attention}
