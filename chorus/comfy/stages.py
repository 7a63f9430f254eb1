"""The functions that the stage nodes call: each takes a plan and returns a new one."""

from __future__ import annotations

from typing import Any

import torch

from ..messages import Message
from ..reuse import course
from ..reuse.plan import Plan
from . import masks
from .lookup import source_preview
from .sampling.finished import finished_runs
from .sampling.wrappers import attach
from .techniques import amplify, resume, selective

CHOICES, METHODS = resume.CHOICES, resume.METHODS


def on_model(model: Any, plan: Plan) -> Any:
    """A clone of a MODEL that samples under the plan; the MODEL itself where the request is declined."""
    return model if plan.declined is not None else attach(model, plan)


reuse = resume.with_reuse
amplification = amplify.with_amplification
refinement = selective.with_refinement


def regions(
    plan: Plan, way: str, mask: torch.Tensor | None, edit_radius: int, visible_radius: int, checkpoint: str
) -> tuple[Plan, torch.Tensor, torch.Tensor, Message | None]:
    """The plan with its masks; the edit mask as MASK [F, H, W]; the overlay as IMAGE [F, H, W, 3]; a note."""
    plan = masks.with_regions(plan, way, mask, edit_radius, visible_radius, checkpoint)
    edit, overlay = masks.frame_masks(plan, source_preview(plan))
    return plan, edit, overlay, plan.stages[selective.NAME].note


def all_stages(plan: Plan) -> Plan:
    """The plan with every stage at its calibrated settings, for the all-in-one node."""
    plan = reuse(plan, "auto", 0.0, 0.8)
    plan = masks.with_regions(plan, "look", None, course.calibrated().grow, course.calibrated().margin, "none")
    plan, _ = amplification(plan, 0.25, "outputs", 0.5)
    return refinement(plan, "auto", 0.0)


def decline(plan: Plan, why: Message) -> None:
    """After a fault in a stage's node: the request is sampled as if no Chorus node were there."""
    finished_runs.decline(plan.id, why)
