"""Stages 2 and 3: from K1 to K2 only the tokens around the difference are computed, from K2 on all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...messages import Message, say
from ...reuse.calibration import Share, calibration_of
from ...reuse.plan import Plan
from ...reuse.regions import Regions
from ...reuse.schedule import Schedule, steps_reached
from ..networks import ModelCall
from . import resume
from .base import NOTHING, CallWork, Decision, Refused, Request, Technique
from .resume import fraction_of_steps

NAME, REFINE = "regions", "refine"
# Patches that may use the whole picture of an evaluation, or answer one evaluation with another one's result.
_WHOLE = ("wrapper", "option model_function_wrapper", "option sampler_", "object diffusion_model")


@dataclass(frozen=True)
class Masks:
    """What the mask node is set to.

    regions: where source and target differ as far as it is known before sampling; None with the reason in `note`, where
        only a look can tell, or without a source.
    way: where the masks come from. edit_radius, visible_radius: their dilations in tokens.
    """

    regions: Regions | None
    note: Message | None
    way: str
    edit_radius: int
    visible_radius: int


@dataclass(frozen=True)
class Refinement:
    """What the stage 3 node is set to. fixed: K2 / N chosen by hand, None for the calibrated distance behind K1."""

    fixed: float | None

    def share(self, plan: Plan) -> Share:
        """K2 / N by the number of steps."""
        if self.fixed is not None:
            return Share.fixed(self.fixed)
        calibration = calibration_of(plan.embedder)
        reuse = plan.stages.get(resume.NAME)
        return calibration.full_from(calibration.reuse(plan.score) if reuse is None else reuse.share(plan))


def with_refinement(plan: Plan, choice: str, fraction: float) -> Plan:
    """The plan with stage 3: K2 as a fraction of the steps, fixed or at the calibrated distance behind K1."""
    return plan.with_stage(REFINE, Refinement(fraction_of_steps("K2", fraction) if choice == "fixed" else None))


def regions_of(plan: Plan) -> Regions | None:
    """The masks of a plan, where it has some."""
    masks = plan.stages.get(NAME)
    return masks.regions if masks is not None else None


def refusal(request: Request) -> Message | None:
    """Why no step of a request can compute a part of the tokens only; None where it can."""
    if request.guidance.windows:
        return say("note.windows")
    if request.areas:
        return say("note.areas")
    if any(place.startswith(_WHOLE) for place in request.foreign):
        return say("note.patched")
    if request.sampler.reads_uncond:
        return say("note.reads_uncond", sampler=request.sampler.name)
    if "easycache" in request.options:
        return say("note.easycache")
    return request.network.selective_refusal(request.options)


class Selective(Technique):
    """Outside the edit mask the run's own latest estimate is kept. The source's state would contradict what the full
    first step has made of the target.
    """

    known: torch.Tensor | None = None  # the latest x0, [B, C, T, H, W]
    edit: torch.Tensor | None = None  # [1, 1, T, H, W] bool
    regions: Regions | None = None  # on the network's token grid

    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        request = self.request
        goes_on = schedule.k1 == 0 and request.before is not None and request.before.report.k1 > 0
        reuses = (schedule.k1 or goes_on) and not schedule.kinds
        if request.plan.source is None or NAME not in request.plan.stages or not reuses:
            return None
        regions = regions_of(request.plan)
        if regions is None:
            masks = request.plan.stages[NAME]
            note = say("note.look_masks") if masks.way == "look" else masks.note
            return Refused(note) if note is not None else None
        if regions.whole or regions.empty:
            return None  # everything differs, or nothing does: the steps are full ones
        if (why := refusal(request)) is not None:
            return Refused(why)
        grid = request.network.token_grid(request.shape)
        if grid is None:
            return Refused(say("note.grid", grid=str(regions.grid)))
        regions = regions.on_grid(grid)
        if request.given is not None:
            kept = request.given.tokens(request.network.token_size)
            # It is never edited, and the other tokens have to see it.
            regions = Regions(regions.base & ~kept, regions.edit & ~kept, regions.visible | kept)
            if regions.empty:
                return None
        full = request.plan.stages.get(REFINE)
        k2 = schedule.steps
        if full is not None:
            k2 = steps_reached(schedule.sigmas, request.sigma_of(full.share(request.plan).of(request.whole_steps)))
        k2 = max(k2, schedule.k1)
        if k2 == schedule.k1:
            return Refused(say("note.masks_unused")) if request.plan.stages[NAME].way == "mask" else None
        self.regions = regions
        self.edit = request.network.cells(regions.edit, request.shape)[None, None]
        if goes_on and request.before is not None:
            self.known = request.before.results.get(NAME)
        return Decision(replace(schedule, k2=k2))

    def _is_partial(self, schedule: Schedule, step: int) -> bool:
        return schedule.in_stage_2(step) and self.known is not None

    def in_call(self, schedule: Schedule, call: ModelCall) -> CallWork:
        if not self._is_partial(schedule, call.step):
            return NOTHING
        assert self.regions is not None
        return CallWork(computed=self.regions.indices())

    def after_evaluation(self, schedule: Schedule, step: int, x0: torch.Tensor) -> torch.Tensor:
        if self.edit is None or not schedule.in_stage_2(step):
            return x0
        if self.known is not None:
            x0 = torch.where(self.edit.to(x0.device), x0, self.known.to(x0))
        self.known = x0
        return x0

    def expected_share(self, schedule: Schedule, step: int) -> float:
        if self.regions is None or not schedule.in_stage_2(step):
            return 1.0
        full = step == schedule.k1 and self.known is None
        return 1.0 if full else round(float(self.regions.visible.float().mean()), 4)

    def result(self, schedule: Schedule) -> torch.Tensor | None:
        return None if self.known is None or schedule.complete else self.known.cpu()

    def drop(self) -> None:
        self.known = self.edit = self.regions = None
