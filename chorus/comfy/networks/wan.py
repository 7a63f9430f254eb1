"""Wan 2.1 and 2.2 and what is built like them: tokens, blocks, and the text cross-attention of each block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...reuse.regions import token_grid
from .base import AttentionWork, KVCache, ModelCall, Network, Options
from .tokens import SelfAttention
from .wan_tokens import TokensOfParts, WanTokens

# Beside, between or inside the blocks.
_FURTHER_PARTS = frozenset({"vace_blocks", "audio_proj", "audio_injector", "face_adapter"})


class Wan(Network):
    # All tokens pass through `blocks`, each on its own or by attention. Before the blocks, the other parts add to the
    # tokens, or more tokens, or make what is attended to.
    plain_parts = _FURTHER_PARTS | frozenset(
        {
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
            "vace_patch_embedding",
            "casual_audio_encoder",
            "cond_encoder",
            "frame_packer",
            "trainable_cond_mask",
            "pose_patch_embedding",
            "motion_encoder",
            "face_encoder",
        }
    )

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
        if grid is None:
            return options
        slots = [("double_block", index) for index in range(self.block_count)]
        kind = TokensOfParts if self.parts & _FURTHER_PARTS else WanTokens
        tokens = kind(math.prod(grid), self._in_front(call, grid), computed, slots, seen)
        if computed is not None or seen is not None:
            options = tokens.patch(options)
        text_length = call.context.shape[1] if call.context is not None else -1
        works = works if call.context is not None else ()
        sides = self._side_blocks(call)
        shared = None
        if kv_cache is not None:
            shared = SelfAttention(kv_cache, KVCache.key(call), tokens, self.block_count + sides)
        if works or shared is not None:
            options = _with_attention(options, works, text_length, call.shape[0], shared, sides > 0)
        return options

    def _side_blocks(self, call: ModelCall) -> int:
        """How many blocks of VACE a call passes beside the others: all of them for each of its contexts."""
        context = call.extras.get("vace_context")  # [B, contexts, ...]
        blocks: Any = getattr(self.module, "vace_blocks", ())
        return 0 if context is None else len(blocks) * int(context.shape[1])

    def _in_front(self, call: ModelCall, grid: tuple[int, int, int]) -> int:
        """Tokens of reference images that the network puts before the video's own."""
        reference = call.extras.get("reference_latent")
        if reference is None:
            return 0
        if hasattr(self.module, "patch_embedding_pose"):  # [B, C, images, H, W]
            return int(reference.shape[2]) // self.token_size[0] * grid[1] * grid[2]
        return grid[1] * grid[2] if getattr(self.module, "ref_conv", None) is not None else 0


def _with_attention(
    options: Options,
    works: Sequence[AttentionWork],
    text_length: int,
    batch: int,
    shared: SelfAttention | None,
    has_sides: bool,
) -> Options:
    """Transformer options whose text cross-attention does `works` and whose self-attention does `shared`, around
    whatever override was there before.

    Self- and cross-attention both pass unlabelled. Within a block the first call is self-attention, and the text's is
    the one with as many keys as the context has tokens, for all rows of the batch. With side blocks, the one of each
    context follows right after a block, under its number, and block and side blocks make two calls each.
    """
    previous = options.get("optimized_attention_override")
    place = {"block": -1, "call": 0}

    def attention(func: Callable[..., Any], q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        index = kwargs.get("transformer_options", options).get("block_index", 0)
        place["call"] = place["call"] + 1 if index == place["block"] else 0
        place["block"] = index
        side, call = divmod(place["call"], 2) if has_sides else (0, place["call"])
        plain = not kwargs.get("skip_reshape", False) and k.ndim == 3
        if plain and call > 0 and k.shape[1] == text_length and k.shape[0] == q.shape[0] == batch:
            heads = args[0] if args else kwargs["heads"]
            for work in works:
                k, v = work(index, q, k, v, heads)
        if shared is not None and plain and call == 0 and k.shape[:2] == q.shape[:2]:
            k, v = shared(index + side * len(shared.tokens.slots), k, v)
        if previous:
            return previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    return options | {"optimized_attention_override": attention}
