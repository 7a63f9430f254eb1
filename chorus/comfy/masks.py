"""The SRD masks of a plan, as far as they are known before sampling, and what people see of them.

They come from recorded attention, a MASK or segment-anything; those from the look are made while sampling.
"""

from __future__ import annotations

import importlib.util
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..messages import BadInput, Message, say
from ..prompt.tokens import token_difference
from ..reuse.plan import Plan
from ..reuse.regions import build, dilate, from_attention, from_frames, token_grid
from .lookup import source_preview
from .techniques import selective

WAYS = ("look", "attention", "mask", "segment anything")
_TINT = torch.tensor([1.0, 0.25, 0.15])


def with_regions(
    plan: Plan,
    way: str,
    mask: torch.Tensor | None,
    edit_radius: int,
    visible_radius: int,
    checkpoint: str,
) -> Plan:
    """The plan with its masks, or with a note why its middle steps are full ones."""
    began = time.perf_counter()
    _require(way, mask, checkpoint)
    regions, note = None, say("note.mask_later") if plan.source is not None and way == "look" else None
    if plan.source is not None and way != "look":
        base, note = _base(plan, way, mask, checkpoint)
        if base is not None:
            regions = build(base, edit_radius, visible_radius)
    return plan.with_stage(
        selective.NAME, selective.Masks(regions, note, way, edit_radius, visible_radius), time.perf_counter() - began
    )


def _require(way: str, mask: torch.Tensor | None, checkpoint: str) -> None:
    """Raises BadInput where a way lacks what it needs: on every run, so that no later one fails at its first hit."""
    if way not in WAYS:
        raise BadInput(say("masks.way", way=way, ways=", ".join(WAYS)))
    if way == "mask" and mask is None:
        raise BadInput(say("masks.connect"))
    if way == "segment anything":
        if importlib.util.find_spec("segment_anything") is None:
            raise BadInput(say("masks.not_installed"))
        if checkpoint not in sam_checkpoints() or not _sam_kinds(checkpoint):
            raise BadInput(say("masks.checkpoint", checkpoint=checkpoint))


def _sam_kinds(checkpoint: str) -> list[str]:
    return [kind for kind in ("vit_h", "vit_l", "vit_b") if kind in checkpoint]


def _base(
    plan: Plan, way: str, mask: torch.Tensor | None, checkpoint: str
) -> tuple[torch.Tensor | None, Message | None]:
    grid = token_grid(plan.space.shape, plan.token_size)
    if way == "mask":
        assert mask is not None
        return from_frames(mask, grid), None
    base, note = _attention_base(plan, grid)
    if base is None or way == "attention":
        return base, note
    return from_frames(_segment(source_preview(plan), base, checkpoint), grid), None


def _attention_base(plan: Plan, grid: tuple[int, int, int]) -> tuple[torch.Tensor | None, Message | None]:
    source = plan.source
    assert source is not None  # masks are asked for on a hit only
    if plan.tokens is None:
        return None, say("note.no_text")
    if source.tokens is None or source.attention is None:
        return None, say("note.no_attention")
    difference = token_difference(plan.tokens, source.tokens)
    if not bool(difference.gone.any()):
        if bool(difference.new.any()):
            return None, say("note.only_new")
        return torch.zeros(grid, dtype=torch.bool), say("note.same_words")
    return from_attention(source.attention, difference.gone, grid), None


def frame_masks(plan: Plan, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(edit MASK [F, H, W], overlay IMAGE [F, H, W, 3]) over the source's `frames`. The edit mask is
    tinted, everything outside the visible mask dimmed.
    """
    regions = selective.regions_of(plan)
    if regions is None:
        return torch.zeros(frames.shape[:3]), frames
    edit, visible = (_at_frames(m, frames.shape[:3]) for m in (regions.edit, regions.visible))
    lit = frames * (0.35 + 0.65 * visible[..., None])
    overlay = torch.lerp(lit, _TINT.expand_as(lit), 0.45 * edit[..., None])
    rim = (dilate(edit > 0, 1) & ~(edit > 0))[..., None]
    return edit, torch.where(rim, _TINT.expand_as(lit), overlay)


def _at_frames(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return F.interpolate(mask.float()[None, None], tuple(size), mode="nearest")[0, 0]


def _segment(frames: torch.Tensor, base: torch.Tensor, checkpoint: str) -> torch.Tensor:
    """[F, H, W] masks by segment-anything, each frame prompted with the box around its attention mask."""
    import numpy as np

    predictor = _predictor(checkpoint)
    boxes = _at_frames(base, frames.shape[:3]) > 0
    out = torch.zeros(frames.shape[:3])
    for index, (frame, inside) in enumerate(zip(frames, boxes, strict=True)):
        if not bool(inside.any()):
            continue
        ys, xs = (axis.numpy() for axis in inside.nonzero(as_tuple=True))
        predictor.set_image((frame.numpy() * 255).astype(np.uint8))
        found, _, _ = predictor.predict(
            box=np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]), multimask_output=False
        )
        out[index] = torch.from_numpy(found[0].astype(np.float32))
    predictor.reset_image()
    return out


def sam_checkpoints() -> list[str]:
    """Checkpoints in ComfyUI's models/sams folder."""
    import folder_paths

    if "sams" not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path("sams", str(Path(folder_paths.models_dir) / "sams"))
    names: list[str] = folder_paths.get_filename_list("sams")
    return names


@lru_cache(maxsize=1)
def _predictor(checkpoint: str) -> Any:
    import comfy.model_management
    import folder_paths
    from segment_anything import SamPredictor, sam_model_registry

    model = sam_model_registry[_sam_kinds(checkpoint)[0]](folder_paths.get_full_path_or_raise("sams", checkpoint))
    return SamPredictor(model.to(comfy.model_management.get_torch_device()).eval())
