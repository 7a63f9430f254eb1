"""Early start, the other way of stage 1: begin with an early state of the source and skip K1 steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...cache import CacheError
from ...messages import Message, said_by, say
from ...reuse.calibration import Share, calibration_of
from ...reuse.plan import Plan
from ...reuse.schedule import Schedule, steps_reached
from ..caches import load_trajectory, open_cache
from .base import Decision, Refused, Technique
from .source import states_for, unfit

NAME = "reuse"
CHOICES = ("auto", "fixed")
METHODS = ("look and join", "early start")


@dataclass(frozen=True)
class Reuse:
    """What the stage 1 node is set to.

    fixed: K1 / N chosen by hand, None to take it from the score. most: K1 / N never exceeds it.
    start: where on the schedule the source's state is taken, 0 to 1; 0 as calibrated, 1 at K1 itself.
    method: one of METHODS. A place that was chosen by hand is that of an early start.
    """

    fixed: float | None
    most: float
    start: float
    method: str = METHODS[0]

    @property
    def looks(self) -> bool:
        """Whether the run begins with a look."""
        return self.method == METHODS[0] and not self.start

    def saves_nothing(self, steps: int) -> bool:
        """Whether no step may be skipped, by what was set by hand."""
        return self.most * steps < 1.0 or (self.fixed is not None and round(self.fixed * steps) == 0)

    def share(self, plan: Plan) -> Share:
        """K1 / N by the number of steps."""
        if self.fixed is not None:
            return Share.fixed(min(self.fixed, self.most))
        return calibration_of(plan.embedder).reuse(plan.score, self.most)

    def starts_at(self, plan: Plan) -> Share:
        """Where on the schedule the source's state is taken, by the number of steps; never later than K1."""
        return Share.fixed(self.start) if self.start else calibration_of(plan.embedder).start()


def with_reuse(
    plan: Plan, choice: str, fraction: float, maximum: float, start: float = 0.0, method: str = METHODS[0]
) -> Plan:
    """The plan with stage 1: K1 as a fraction of the steps, fixed or as calibrated, never above `maximum`."""
    fixed = fraction_of_steps("K1", fraction) if choice == "fixed" else None
    settings = Reuse(fixed, fraction_of_steps("maximum", maximum), fraction_of_steps("start", start), method)
    return plan.with_stage(NAME, settings)


def fraction_of_steps(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} {value}: expected a fraction of the number of steps, 0 to 1")
    return value


class Resume(Technique):
    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        request, plan = self.request, self.request.plan
        settings = plan.stages.get(NAME)
        if plan.source is None or settings is None or schedule.kinds:
            return None
        if (before := request.before) is not None:
            if not before.report.k1:
                return Refused(before.report.reason, miss=True)
            if settings.start < 1.0:
                return None  # it goes on from the state of the first half, which began at the calibrated start
        if (why := unfit(request)) is not None:
            return Refused(why, miss=True)
        whole = request.whole_steps
        notes: list[Message] = []
        wanted = steps_reached(schedule.sigmas, request.sigma_of(settings.share(plan).of(whole)))
        affordable = k1 = self._affordable(schedule, wanted, settings, notes)
        while k1 and not states_for(request, schedule.sigmas[k1]):
            k1 -= 1
        if k1 < affordable:
            notes.append(say("note.k1_lowered", wanted=affordable, k1=k1))
        if k1 == 0:
            if before is not None:
                return None
            # What lowered K1 to 0 is the reason; without such a note it was 0 from the beginning.
            return Refused(notes[0] if notes else say("miss.steps", steps=schedule.steps), miss=True)
        start = min(request.sigma_of(settings.starts_at(plan).of(whole)), schedule.sigmas[0])
        if request.sampler.draws_noise:
            notes.append(say("note.draws_noise", sampler=request.sampler.name))
        changed = schedule.from_step(k1, start if states_for(request, start) else None)
        return Decision(changed, plan.source.entry.id, tuple(notes))

    def start(self, schedule: Schedule) -> torch.Tensor | Refused | None:
        """x of the source where the path begins, around the request's own noise."""
        request, plan = self.request, self.request.plan
        if not schedule.k1 or plan.source is None or schedule.kinds:
            return None
        sigma = schedule.path[0]
        wanted = states_for(request, sigma)
        if not wanted:
            return Refused(say("miss.no_state", sigma=sigma), miss=True)
        try:
            cache = open_cache(plan.cache_name, plan.place)
            kept = load_trajectory(cache, plan.source.entry, request.into_model_space, request.noise, wanted)
        except CacheError as error:
            return Refused(say("lookup.unreadable", error=said_by(error)), miss=True)
        x = kept.at(sigma)
        return x if request.given is None else request.given.noised(x, request.noise, sigma)

    def _affordable(self, schedule: Schedule, wanted: int, settings: Reuse, notes: list[Message]) -> int:
        """K1, lowered if need be, so that enough steps remain for the sampler and for CFG."""
        request = self.request
        k1 = wanted
        if schedule.complete:
            if settings.fixed is not None and k1 == schedule.steps:
                return k1  # all steps are skipped: the result is the source's own
            k1 = min(k1, schedule.steps - request.sampler.least_steps)
            if settings.fixed is None:
                needed = math.ceil(request.cfg * calibration_of(request.plan.embedder).steps_per_cfg)
                k1 = min(k1, max(0, schedule.steps - needed))
            if k1 < wanted:
                notes.append(say("note.k1_remaining", wanted=wanted, k1=k1, cfg=request.cfg, steps=schedule.steps))
        elif k1 == schedule.steps and settings.start >= 1.0:
            notes.append(say("note.first_expert_skipped"))
        elif k1 == schedule.steps:
            # The first of two experts computes the way from the calibrated start to the first σ of the second one.
            k1 -= 1
            notes.append(say("note.k1_first_expert", wanted=wanted, k1=k1))
        return max(0, k1)
