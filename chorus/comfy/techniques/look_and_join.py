"""Look and join: one full step of the target shows where it differs from the source; elsewhere the source stays.

The run begins with the source's noise. Where the estimate of its first step differs from the source's own first
estimate, it goes on by itself; elsewhere the sampler is given the source's picture, up to the last steps, which are
computed in full. Every step keeps its place on the model's own σ, and the sampler is called once. See docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...cache import CacheError
from ...messages import Message, said_by, say
from ...reuse import course
from ...reuse.join import channel_spread, difference
from ...reuse.regions import Regions, build
from ...reuse.schedule import ANSWERED, FULL, SELECTIVE, Schedule
from ..caches import load_trajectory, open_cache
from ..content import tensor_digest
from ..networks import Context, ModelCall
from ..sampling.finished import FinishedRun
from . import resume, selective
from .base import NOTHING, CallWork, Decision, Refused, Technique
from .source import states_for, unfit

NAME = "look_and_join"
MEMORY = 0.4  # of the free memory of the model's device, for keys and values of tokens that are left out


@dataclass(frozen=True)
class _Begun:
    """What the second of two samplers goes on with. final: the source's picture in model space, [B, C, T, H, W]."""

    kinds: str
    joined: bool
    regions: Regions
    final: torch.Tensor


class LookAndJoin(Technique):
    """Decides twice: before sampling, whether a look is possible; after the look, what each further step is."""

    active = False
    joined = True  # False where everything differs
    known: torch.Tensor | None = None  # the latest x0, [B, C, T, H, W]
    final: torch.Tensor | None = None  # the source's picture in model space, [B, C, T, H, W]
    first: torch.Tensor | None = None  # the source's own first estimate, likewise
    noise: torch.Tensor | None = None  # ε of the source, likewise
    regions: Regions | None = None  # where target and source differ
    cells: torch.Tensor | None = None  # the edit mask on the latent's cells, [1, 1, T, H, W]
    places: torch.Tensor | None = None  # positions of the tokens that selective steps compute
    context: Context | None = None
    kinds: str | None = None  # of this sampler's steps, decided after the look
    whole_kinds: str = ""  # of all steps of the schedule, of which this sampler's may be the first part

    # -- before sampling ---------------------------------------------------------------------------------------

    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        request, plan = self.request, self.request.plan
        settings = plan.stages.get(resume.NAME)
        if plan.source is None or settings is None or not settings.looks or plan.another_take:
            return None
        if settings.saves_nothing(request.whole_steps):
            return None
        if request.before is not None:
            return self._go_on(schedule, request.before)
        if (why := unfit(request)) is not None:
            return Refused(why, miss=True)
        if (why := self._refusal(schedule)) is not None:
            return Refused(why)
        try:
            if (why := self._load()) is not None:
                return Refused(why)
        except CacheError as error:
            return Refused(say("lookup.unreadable", error=said_by(error)), miss=True)
        self.context = self._new_context()
        self.active = True
        kept = plan.source.entry.settings
        notes = [] if kept["noise"] == request.noise_digest else [say("note.composition", seed=str(kept["seed"]))]
        if selective.NAME in plan.stages and (why := selective.refusal(request)) is not None:
            notes.append(why)
        return Decision(schedule.looking(FULL * schedule.steps), plan.source.entry.id, tuple(notes))

    def _go_on(self, schedule: Schedule, before: FinishedRun) -> Decision | None:
        """Go on after the first of two samplers that share a schedule, which has looked."""
        begun: _Begun | None = before.results.get(NAME)
        if begun is None:
            return None
        rest = begun.kinds[before.report.steps + 1 :] + FULL * schedule.steps
        self.kinds = (FULL + rest)[
            : schedule.steps
        ]  # another model may compute from here on, so its first step is full
        self.active, self.joined = set(self.kinds) != {FULL}, begun.joined
        if self.active:
            self._use(begun.regions)
            self.final = begun.final
            self.context = self._new_context()
        return Decision(schedule.looking(self.kinds))

    def _new_context(self) -> Context | None:
        """Where selective steps keep what they leave out; None where they are impossible."""
        request = self.request
        return Context(int(MEMORY * request.free_memory())) if selective.refusal(request) is None else None

    def _use(self, regions: Regions) -> None:
        self.regions, self.places = regions, regions.indices()
        self.cells = self.request.network.cells(regions.edit, self.request.shape)[None, None]

    def _refusal(self, schedule: Schedule) -> Message | None:
        """Why there is no look, so that the run starts from an early state instead; None where there is one."""
        request = self.request
        assert request.plan.source is not None
        sigma = min(schedule.asked[0], request.plan.source.entry.sigmas[0])
        if sigma < 1.0 - 1e-3 or request.plan.start_latent:
            return say("note.look_start", sigma=sigma)
        if request.sampler.draws_noise or request.plan.source.entry.settings["noise_drawn"]:
            return say("note.look_noise")
        if request.sampler.reads_uncond:
            return say("note.look_uncond", sampler=request.sampler.name)
        kept = request.plan.source.entry.settings.get("cfg", request.cfg)
        if not isinstance(kept, int | float) or abs(kept - request.cfg) > 1e-6:
            return say("note.look_cfg", here=request.cfg, there=kept)
        if request.whole_steps < 3:
            return say("note.look_steps", steps=request.whole_steps)
        return None

    def _load(self) -> Message | None:
        """The source's noise, first estimate and picture; the reason where one of them cannot be had."""
        request, plan = self.request, self.request.plan
        assert plan.source is not None
        entry = plan.source.entry
        noise = request.noise
        if entry.settings["noise"] != request.noise_digest:
            seed = entry.settings.get("seed")
            noise = request.noise_of(seed) if isinstance(seed, int) and 0 <= seed < 2**64 else noise
            if tensor_digest(noise) != entry.settings["noise"]:
                return say("note.look_seed")
        early, last = entry.sigmas[1], states_for(request, 0.0)
        wanted = states_for(request, early)
        if len(wanted) != 1 or not last:
            return say("note.look_states")
        cache = open_cache(plan.cache_name, plan.place)
        kept = load_trajectory(cache, entry, request.into_model_space, None, {*wanted, *last})
        self.noise, self.first, self.final = noise, kept.at(early), kept.at(0.0)
        return None

    def start(self, schedule: Schedule) -> torch.Tensor | Refused | None:
        """The source's noise."""
        return schedule.asked[0] * self.noise if self.active and self.noise is not None else None

    # -- around an evaluation ------------------------------------------------------------------------------------

    def instead(self, schedule: Schedule, step: int) -> torch.Tensor | None:
        return self.known if self.active and schedule.is_answered(step) else None

    def in_call(self, schedule: Schedule, call: ModelCall) -> CallWork:
        if not self.active or self.context is None or not self.joined or call.step >= schedule.k2:
            return NOTHING
        if schedule.kinds[call.step] == FULL:
            return CallWork(context=self.context)
        if self.places is None or not self.context.has(Context.key(call)):
            return NOTHING  # the host samples other conditionings together than in the look
        return CallWork(kept=self.places, context=self.context)

    def after_evaluation(self, schedule: Schedule, step: int, x0: torch.Tensor) -> torch.Tensor:
        if not self.active or (self.kinds is not None and step >= schedule.k2):
            return x0
        if self.kinds is None:
            self._look(x0, schedule)
        if self.joined:
            assert self.cells is not None and self.final is not None
            x0 = torch.where(self.cells, x0, self.final.to(x0))
        self.known = x0
        return x0

    def decide(self, schedule: Schedule, step: int) -> Decision | None:
        if not self.active or self.kinds is None or schedule.kinds == self.kinds:
            return None
        notes = () if self.joined else (say("note.everywhere"),)
        if self.context is not None and self.context.full:
            notes = (*notes, say("note.context_memory"))
        return Decision(schedule.looking(self.kinds), notes=notes)

    def _look(self, x0: torch.Tensor, schedule: Schedule) -> None:
        """Find where the target differs from the source, and settle what each further step is."""
        request, looks = self.request, course.calibrated()
        assert self.first is not None and self.final is not None
        self.first, self.final = self.first.to(x0.device), self.final.to(x0.device)
        size = request.network.token_size
        apart = difference(x0, self.first, channel_spread(self.final), size)
        # x0 = u + CFG · (c − u), and u is the same in both: so much larger is the difference of the guided estimates.
        apart = apart / max(1.0, request.cfg)
        self._use(regions := self._regions(looks.cut(apart), looks.grow))
        self.first = self.noise = None
        self.joined = regions.edited <= looks.cut.everywhere
        self.whole_kinds = self._course(request.whole_steps, float(regions.visible.float().mean()))
        self.kinds = self.whole_kinds[: schedule.steps]

    def _regions(self, base: torch.Tensor, grow: int) -> Regions:
        """The masks, with what the mask node knew before; a MASK counts alone."""
        given = self.request.plan.stages.get(selective.NAME)
        if given is None:
            return build(base, grow, 0)
        if given.regions is not None:
            known = given.regions.on_grid((base.shape[0], base.shape[1], base.shape[2]))
            if given.way == "mask":
                return Regions(*(mask.to(base.device) for mask in (known.base, known.edit, known.visible)))
            base = base | known.base.to(base.device)
        return build(base, given.edit_radius, given.visible_radius)

    def _course(self, steps: int, share: float) -> str:
        settings = self.request.plan.stages[resume.NAME]
        kinds = self._wanted(steps, share, settings.fixed)
        return course.at_most_saved(kinds, share, settings.most)

    def _wanted(self, steps: int, share: float, fixed: float | None) -> str:
        length = course.calibrated().course(steps)
        if fixed is not None:
            return course.skipping(steps, min(steps - 1, 1 + round(fixed * steps)), 1)
        if not self.joined:
            return course.thinned(steps, length.thinned)
        skipping = course.skipping(steps, min(length.k1, steps - 1), length.looks)
        if self.context is None or self.context.full:
            return skipping
        leaving_out = course.selective(steps, length.every, length.last)
        if share == 0.0:
            return leaving_out.replace(SELECTIVE, ANSWERED)
        return min(leaving_out, skipping, key=lambda kinds: course.cost(kinds, share))

    def expected_share(self, schedule: Schedule, step: int) -> float:
        if not self.active or self.regions is None or step == 0:
            return 1.0
        if schedule.is_answered(step):
            return 0.0
        return round(float(self.regions.visible.float().mean()), 4) if schedule.is_selective(step) else 1.0

    # -- afterwards -----------------------------------------------------------------------------------------------

    def end(self) -> Mapping[str, Any]:
        return {"looked": None if self.regions is None else self.regions.cpu()}

    def result(self, schedule: Schedule) -> _Begun | None:
        if not self.active or self.regions is None or schedule.complete:
            return None
        assert self.final is not None
        return _Begun(self.whole_kinds, self.joined, self.regions.cpu(), self.final.cpu())

    def drop(self) -> None:
        self.known = self.final = self.first = self.noise = self.cells = self.places = None
        if self.context is not None:
            self.context.drop()
