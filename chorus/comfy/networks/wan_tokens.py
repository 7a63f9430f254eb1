"""The computed tokens of a Wan, also for what a network of its kind has beside, between and inside the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from .base import Options
from .tokens import Tokens

Hooks = tuple[torch.nn.Module, Callable[..., Any], Callable[..., Any] | None]
"""A part of the network, with what is done to its arguments and to its result."""

SOUND_TOKENS = 16
"""Of each frame in HuMo, a number that the host's attention to sound has fixed."""


@dataclass
class WanTokens(Tokens):
    """In a network of blocks only, the tokens are gathered before the first block and put back after the last one."""

    _shorter: dict[str, Any] = field(default_factory=dict)  # gathered once for all blocks

    def shorter(self, args: dict[str, Any]) -> dict[str, Any]:
        if not self._shorter:
            assert self.whole is not None
            self._shorter = {"pe": args["pe"].index_select(1, self.rows)}
            modulation = args["vec"]
            if modulation.ndim == 4 and modulation.shape[1] > 1:  # one a frame, shared out as the host does
                each = modulation.repeat_interleave(-(-self.whole.shape[1] // modulation.shape[1]), dim=1)
                self._shorter["vec"] = each.index_select(1, self.rows)
        return self._shorter


@dataclass(frozen=True)
class FrameParts:
    """Tokens in parts of equal length, each of one frame, for attention that gives each frame what belongs to it.

    How many tokens a frame has is never read from the device: there are as many parts as there could have to be.

    taken: [P * S + R] which tokens lie in the P parts of S tokens, some of them twice, and then those of no frame.
    frames: [P] the frame of each part. back: [V + R] where each token is in `taken`.
    """

    taken: torch.Tensor
    frames: torch.Tensor
    back: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor, framed: int, frames: int, others: int) -> FrameParts:
        """rows: [V + R] ascending places of the tokens in a sequence of `framed` tokens, as many for each frame, and of
        `others` behind them that belong to no frame and are all among `rows`.
        """
        device, count = rows.device, len(rows) - others
        frame = rows[:count] // (framed // frames)
        numbers = torch.arange(frames, device=device)
        begins, ends = (torch.searchsorted(frame, numbers, right=right) for right in (False, True))
        size = max(1, count // (4 * frames))  # so that at most a quarter is computed in vain
        parts = (ends - begins + size - 1) // size
        up_to = parts.cumsum(0)
        nth = torch.arange(count, device=device) - begins[frame]
        back = (up_to - parts)[frame] * size + nth
        most = count // size + frames
        behind = torch.arange(others, device=device)
        taken = torch.zeros(most * size, dtype=torch.int64, device=device)
        taken[back] = torch.arange(count, device=device)
        part_frames = torch.searchsorted(up_to, torch.arange(most, device=device), right=True).clamp(max=frames - 1)
        return cls(torch.cat([taken, count + behind]), part_frames, torch.cat([back, most * size + behind]))


@dataclass
class TokensOfParts(WanTokens):
    """In a network with further parts, the tokens are put back right before its head: all parts get the computed ones.

    These parts have no slot for a patch. They have hooks for the time of one call.
    """

    _parts: FrameParts | None = None

    def patch(self, options: Options) -> Options:
        options = super().patch(options)
        if self.computed is None:
            return options
        wrappers = options.get("wrappers", {})
        around = wrappers.get("diffusion_model", {})
        return options | {"wrappers": wrappers | {"diffusion_model": around | {"chorus tokens": [self._call]}}}

    def _call(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The DIFFUSION_MODEL wrapper."""
        with ExitStack() as hooks:
            for part, before, after in self._hooks(executor.class_obj):
                hooks.callback(part.register_forward_pre_hook(before, with_kwargs=True).remove)
                if after is not None:
                    hooks.callback(part.register_forward_hook(after).remove)
            return executor(*args, **kwargs)

    def _hooks(self, network: Any) -> Iterator[Hooks]:
        yield network.head, self._before_head, None
        for block in getattr(network, "vace_blocks", ()):
            yield block, self._before_side_block, None
        for block in network.blocks:
            if hasattr(block, "audio_cross_attn_wrapper"):
                yield block.audio_cross_attn_wrapper, self._before_sound_of_humo, self._after_frames
        if hasattr(network, "audio_injector"):
            yield network.audio_injector, self._before_sound_of_s2v, self._after_sound_of_s2v
        if hasattr(network, "face_adapter"):
            for face in network.face_adapter.fuser_blocks:
                yield face, self._before_face, self._after_frames

    def _leave(self, out: dict[str, Any]) -> dict[str, Any]:
        return out

    def _before_head(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        image, *others = args
        return (super()._leave({"img": image})["img"], *others), kwargs

    def _before_side_block(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Of VACE. The first one gets its context and the video whole; each next one gets what the one before gave."""
        (context,) = args
        kwargs = kwargs | {"freqs": self._shorter["pe"]}
        if block.block_id == 0:
            context = context.index_select(1, self.rows)
            kwargs["x"] = kwargs["x"].index_select(1, self.rows)
        return (context,), kwargs

    def _before_sound_of_humo(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """sound: [B, frames * SOUND_TOKENS, C], also of the frames of references."""
        image, sound = args
        image, sound = self._by_frame(image, self._length, sound.unflatten(1, (-1, SOUND_TOKENS)))
        return (image, sound.flatten(1, 2)), kwargs

    def _before_face(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """face: [B, frames, tokens, C]."""
        image, face = args
        return self._by_frame(image, self._length, face), kwargs

    def _before_sound_of_s2v(
        self, injector: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...] | None:
        """sound, summary: [B, frames, ..., C], for the first `framed` tokens; after some of the blocks only."""
        image, block, sound, summary, framed, *others = args
        if block not in injector.injected_block_id:
            return None
        image, sound, summary = self._by_frame(image, framed, sound, summary)
        return (image, block, sound, summary, image.shape[1] - (self._length - framed), *others), kwargs

    def _after_sound_of_s2v(self, injector: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return self._after_frames(injector, args, out) if args[1] in injector.injected_block_id else out

    def _after_frames(self, _: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        assert self._parts is not None
        return out.index_select(1, self._parts.back)

    def _by_frame(self, image: torch.Tensor, framed: int, *of_frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computed tokens in `FrameParts`, and what each part attends to.

        framed: so many tokens of the whole sequence belong to frames; the others follow, and all of them are computed.
        of_frames: [B, frames, ...] each.
        """
        if self._parts is None:
            self._parts = FrameParts.of(self.rows, framed, of_frames[0].shape[1], self._length - framed)
        parts = self._parts
        return image.index_select(1, parts.taken), *(each.index_select(1, parts.frames) for each in of_frames)

    @property
    def _length(self) -> int:
        """Of the whole sequence."""
        assert self.whole is not None
        return self.whole.shape[1]
