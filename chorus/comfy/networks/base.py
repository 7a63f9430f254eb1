"""The base of all families, and what one model call is to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...messages import Message, say
from ...reuse.regions import on_cells

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
        """Keys and values to use instead of k and v, each [B, L, C]; the same objects where nothing changes.

        q: of the video's tokens and of references, [B, tokens, C] or by heads, [B, tokens, heads, C / heads].
        k, v: of the text.
        """


class KVCache:
    """Keys and values of all tokens in a full step, which stand for tokens that later steps leave out.

    Kept in half precision on their own device, apart for each set of conditionings that the host samples in one call.
    room: bytes that may be taken, asked once, when the first block is kept, since the model is loaded by then. With
        more than that nothing is kept, and `full` says so.
    """

    def __init__(self, room: Callable[[], int]):
        self._room = room
        self._most: int | None = None
        self.full = False
        self._kept: dict[tuple[Any, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @staticmethod
    def key(call: ModelCall) -> Any:
        """Which conditionings a call samples, in their order."""
        return tuple(map(str, call.options.get("uuids") or ())), call.shape

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self._kept.values() for t in pair)

    def keep(self, key: Any, block: int, blocks: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k, v: [B, L, ...] of one block; blocks: how many there are, to know beforehand whether all will fit."""
        if block == 0:
            self._kept = {kept: pair for kept, pair in self._kept.items() if kept[0] != key}
            self._most = self._room() if self._most is None else self._most
            self.full = self.full or self.bytes + 4 * k.numel() * blocks > self._most
        if self.full:
            self._kept.clear()
            return
        self._kept[key, block] = (_halved(k), _halved(v))

    def has(self, key: Any) -> bool:
        """Whether something is kept for such calls."""
        return (key, 0) in self._kept

    def completed(
        self, key: Any, block: int, places: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole sequence, [B, L, ...] each, with the new ones k, v at their `places`.

        k, v: [B, len(places), ...]. They stay there: they are later than those of the full step.
        """
        whole = tuple(
            kept.index_copy_(1, places, new.to(kept)).to(new)
            for kept, new in zip(self._kept[key, block], (k, v), strict=True)
        )
        return whole[0], whole[1]

    def drop(self) -> None:
        """Let go of all of them."""
        self._kept.clear()


def _halved(x: torch.Tensor) -> torch.Tensor:
    return x.detach().clone() if x.element_size() <= 2 else x.detach().to(torch.float16)


_INPUT_NAMES = {
    "area": "mask",
    "audio_embed": "audio",
    "audio_inject_scale": "audio",
    "camera_conditions": "camera",
    "clip_vision_output": "clip_vision",
    "clip_vision_output_ref": "clip_vision",
    "concat_mask": "mask",
    "context_latents": "source_or_reference",
    "control_video": "control_video",
    "driving_mask_28ch": "control_mask",
    "end_percent": "range",
    "face_video_pixels": "face_video",
    "fps": "frame_rate",
    "frame_rate": "frame_rate",
    "guide_attention_entries": "keyframes",
    "keyframe_idxs": "keyframes",
    "mask": "mask",
    "mask_strength": "mask",
    "pose_video_latent": "pose_video",
    "ref_audio": "audio",
    "ref_latent": "reference_image",
    "ref_mask_28ch": "control_mask",
    "reference_latents": "reference_image",
    "reference_motion": "previous_frames",
    "set_area_to_bounds": "mask",
    "start_percent": "range",
    "strength": "mask",
    "time_dim_concat": "reference_image",
    "time_dim_replace": "start_image",
    "unclip_conditioning": "clip_vision",
    "vace_frames": "control_or_reference",
    "vace_mask": "control_mask",
    "vace_strength": "control_strength",
}
"""Keys of a conditioning by the names of `chorus/cache/inputs.py`."""


class Network:
    """A model of which Chorus knows only that it is sampled step by step: stage 1 works, the rest is declined."""

    text_keys: frozenset[str] = frozenset({"pooled_output", "attention_mask", "attention_mask_img_shape"})
    """Keys of a conditioning, beside `cross_attn`, that hold the prompt's text in some form."""

    block_count: int = 0
    """Blocks through which the tokens pass; 0 where Chorus does not know them."""

    plain_parts: frozenset[str] = frozenset()
    """Parts of the network that do not need the whole token grid; any other may."""

    def __init__(self, module: torch.nn.Module):
        self.module = module

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.module.named_children())

    def named_inputs(self, carried: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """What a conditioning carries beside text, each under the name by which people are told of it.

        Only to say what differs: whether anything does is found without these names.
        """
        named: list[tuple[str, Any]] = []
        for key, value in carried.items():
            if key == "concat_latent_image":
                named += self.concatenated_inputs(value).items()
            else:
                named.append((_INPUT_NAMES.get(key, "other"), value))
        return named

    def concatenated_inputs(self, latent: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of a latent [B, C, T, H, W] that the network gets beside the noisy one, by their names."""
        if latent.ndim != 5:
            return {"start_image": latent}
        return {"start_image": latent[:, :, :1], "later_frames": latent[:, :, 1:]}

    def token_grid(self, shape: Sequence[int]) -> tuple[int, int, int] | None:
        """Tokens of a latent [B, C, T, H, W] along T, H and W; None where the family does not tell."""
        return None

    def selective_refusal(self, options: Mapping[str, Any]) -> Message | None:
        """Why only a part of the tokens cannot be computed; None where it can. options: the transformer options."""
        if not self.block_count:
            return say("note.network", network=self.name)
        others = self.parts - self.plain_parts
        if others:
            return say("note.parts", network=self.name, parts=", ".join(sorted(others)))
        if any(options.get("patches", {}).values()):
            return say("note.patched")
        if "optimized_attention_override" in options:
            return say("note.attention")
        return None

    def words_refusal(self) -> Message | None:
        """Why words cannot be amplified or watched in attention; None where they can."""
        return None if self.block_count else say("note.no_blocks", network=self.name)

    @property
    def token_size(self) -> tuple[int, int, int]:
        """Cells of a token along T, H and W; where the family does not tell, those of most video models."""
        return (1, 2, 2)

    def cells(self, mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A mask [T, H, W] on the grid of `token_size` as cells of a latent [..., T, H, W]."""
        return on_cells(mask, self.token_size, (shape[-3], shape[-2], shape[-1]))

    def patched(
        self,
        call: ModelCall,
        computed: torch.Tensor | None,
        works: Sequence[AttentionWork],
        seen: Callable[[float], None] | None,
        kv_cache: KVCache | None = None,
    ) -> Options:
        """Transformer options with which the call computes the tokens `computed` only, and does `works` at the text.

        computed: [V] positions on the token grid in frame-major order, None for all.
        kv_cache: keeps the keys and values of a call that computes all tokens; gives them to one that does not, for the
            tokens that it leaves out. None: these are not attended to at all.
        seen: called with the computed share of the tokens when the blocks are really entered.
        """
        return dict(call.options)
