"""What the stage nodes call. A fault in a stage leaves the stage out, with a note, and never ends the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..messages import Message
from ..reuse.plan import Plan
from . import masks
from .faults import or_else
from .lookup import source_preview
from .sampling.wrappers import attach
from .techniques import amplify, resume, selective

CHOICES = resume.CHOICES


def on_model(model: Any, plan: Plan) -> Any:
    """A clone of a MODEL that samples under the plan; the MODEL itself where the request is declined."""
    if plan.declined is not None:
        return model
    return or_else(lambda fault: model, lambda: attach(model, plan))


def reuse(plan: Plan, choice: str, fraction: float, maximum: float, start: float) -> Plan:
    return _with(plan, lambda: resume.with_reuse(plan, choice, fraction, maximum, start))


def refinement(plan: Plan, choice: str, fraction: float) -> Plan:
    return _with(plan, lambda: selective.with_refinement(plan, choice, fraction))


def amplification(plan: Plan, strength: float, where: str, fade: float) -> tuple[Plan, str]:
    """The plan, and the amplified words with their weights, for people."""
    return or_else(
        lambda fault: (_noted(plan, fault), str(fault)),
        lambda: amplify.with_amplification(plan, strength, where, fade),
    )


def regions(
    plan: Plan, way: str, mask: torch.Tensor | None, edit_radius: int, visible_radius: int, checkpoint: str
) -> tuple[Plan, torch.Tensor, torch.Tensor, Message | None]:
    """The plan with its masks; the edit mask as MASK [F, H, W]; the overlay as IMAGE [F, H, W, 3]; a note."""

    def made() -> tuple[Plan, torch.Tensor, torch.Tensor, Message | None]:
        with_masks = masks.with_regions(plan, way, mask, edit_radius, visible_radius, checkpoint)
        edit, overlay = masks.frame_masks(with_masks, source_preview(with_masks))
        return with_masks, edit, overlay, with_masks.stages[selective.NAME].note

    def without(fault: Message) -> tuple[Plan, torch.Tensor, torch.Tensor, Message | None]:
        frames = source_preview(plan)
        return _noted(plan, fault), torch.zeros(frames.shape[:3]), frames, fault

    return or_else(without, made)


def all_stages(plan: Plan) -> Plan:
    """Every stage at its calibrated settings, as the all-in-one node has them."""
    plan = reuse(plan, "auto", 0.0, 0.8, 0.0)
    plan, *_ = regions(plan, "attention", None, 1, 1, "none")
    plan, _ = amplification(plan, 0.25, "outputs", 0.5)
    return refinement(plan, "auto", 0.0)


def _with(plan: Plan, stage: Callable[[], Plan]) -> Plan:
    return or_else(lambda fault: _noted(plan, fault), stage)


def _noted(plan: Plan, fault: Message) -> Plan:
    return replace(plan, notes=(*plan.notes, fault))
