"""Look and join: one full step of the target shows where it differs from the source; elsewhere the source stays.

The run begins with the source's noise. Where the estimate of its first step differs from the source's own first
estimate, it goes on by itself; elsewhere the sampler is given the source's picture, up to the last steps, which are
computed in full. A second look, further on, finds what the first could not see yet. Every step keeps its place on the
model's own σ, and the sampler is called once. See docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...cache import CacheError
from ...messages import Message, said_by, say
from ...reuse import course
from ...reuse.join import channel_spread, difference, joined, rim, token_means, with_frames
from ...reuse.regions import Regions, build
from ...reuse.schedule import FULL, SELECTIVE, SKIPPED, Schedule
from ..networks import KVCache, ModelCall
from ..sampling.finished import FinishedRun
from ..sampling.guidance import Part
from . import resume, selective
from .base import NOTHING, CallWork, Decision, Refused, Technique
from .source import Picture, parts_of, picture, same_text, sampled_otherwise, schedules_agree, unfit

NAME = "look_and_join"
MEMORY = 0.4  # of the free memory of the model's device, for keys and values of tokens that are left out


@dataclass(frozen=True)
class _Begun:
    """What the second of two samplers goes on with.

    kinds: of the steps that are over; second_look: the step of it, 0 for none; known: the latest estimate; final: the
        source's result; both in model space, [B, C, T, H, W]. parts: what the source's samplers did, None where nobody
        knows; same_text: whether its text is the very same.
    """

    kinds: str
    second_look: int
    joined: bool
    blind: bool
    regions: Regions
    known: torch.Tensor
    final: torch.Tensor
    parts: list[Part] | None
    same_text: bool


class LookAndJoin(Technique):
    """Decides before sampling whether a look is possible, and after each look what every further step is."""

    active = False
    joined = True  # False after a global change, where nothing of the source is kept
    blind = False  # whether the look showed no difference at all, though the texts differ
    source: Picture | None = None  # until its last look is done
    outside: torch.Tensor | None = None  # x0 outside the edit mask, [B, C, T, H, W]
    known: torch.Tensor | None = None  # the latest x0 before all steps are full, likewise
    latest: torch.Tensor | None = None  # the latest x0: a sampler after this one may take the schedule to be longer
    regions: Regions | None = None  # where target and source differ
    weights: torch.Tensor | None = None  # of the own estimate beside what is outside, [1, 1, T, H, W] in [0, 1]
    tokens: torch.Tensor | None = None  # positions of the tokens that selective steps compute
    share = 1.0  # of the tokens that these are; read from the device once a look
    kv_cache: KVCache | None = None
    rule: course.CourseRule | None = None
    walk: course.Course | None = None  # of the whole schedule, of which this sampler's may be a part
    over = 0  # steps of the whole schedule before this sampler's
    moved: float | None = None  # σ of an evaluation that is not at the sampler's own
    parts: list[Part] | None = None  # what the source's samplers did
    same_text = False  # whether the source's text is the very same

    # -- before sampling ---------------------------------------------------------------------------------------

    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        request, plan = self.request, self.request.plan
        settings = plan.stages.get(resume.NAME)
        if plan.source is None or settings is None or not settings.looks or plan.another_take:
            return None
        if settings.saves_nothing(request.whole_steps) or len(request.shape) not in (4, 5):
            return None
        if request.before is not None:
            return self._go_on(schedule, request.before)
        if (why := unfit(request)) is not None:
            return Refused(why, miss=True)
        if (why := self._refusal(schedule)) is not None:
            # The same prompt and seed over other σ, or by another sampler, is another version of the same video.
            if same_text(request) and not plan.chosen and settings.fixed is None:
                if why.code == "note.look_sigmas":
                    return Refused(say("miss.other_steps"), miss=True)
                if why.code == "note.look_sampler":
                    return Refused(say("miss.other_sampler"), miss=True)
            return Refused(why)
        rule = course.calibrated().rule(request.whole_steps)
        second_sigma = schedule.sigmas[rule.second_look] if 0 < rule.second_look < schedule.steps else None
        try:
            source = picture(request, second_sigma)
        except CacheError as error:
            return Refused(say("lookup.unreadable", error=said_by(error)), miss=True)
        if isinstance(source, Message):
            return Refused(source)
        self.source, self.rule = source, rule if source.second is not None else replace(rule, second_look=0)
        steps, limits = request.whole_steps, self._limits()
        shortest = course.after_look(FULL, steps, self.rule, limits, share=0.0, leaves_out=False)
        if set(shortest.kinds) == {FULL}:
            return Refused(say("miss.nothing_saved"), miss=True)
        self.kv_cache = self._new_kv_cache()
        self.active = True
        kept = plan.source.entry.settings
        notes = [] if kept["noise"] == request.noise_digest else [say("note.composition", seed=str(kept["seed"]))]
        if selective.NAME in plan.stages and (why := selective.refusal(request)) is not None:
            notes.append(why)
        looking = schedule.looking(FULL * schedule.steps, self.rule.looks)
        return Decision(looking, plan.source.entry.id, tuple(notes))

    def _go_on(self, schedule: Schedule, before: FinishedRun) -> Decision | None:
        """Go on after a sampler that has looked, over the part of the schedule that is left.

        The rest is decided anew: only the last sampler knows how many steps there are.
        """
        begun: _Begun | None = before.results.get(NAME)
        if begun is None and not before.report.look:
            return None
        sampler, guidance = self.request.sampler, self.request.guidance
        skips = not (sampler.draws_noise or sampler.reads_uncond or guidance.step_cache or guidance.ranged)
        if begun is None or not skips:  # or the sampler before this one could not go on, either
            return Decision(schedule.looking(FULL * schedule.steps), notes=(say("note.look_second"),))
        if sampled_otherwise(self.request, schedule, begun.parts, begun.same_text) is not None:
            return Decision(schedule.looking(FULL * schedule.steps), notes=(say("note.look_second_other"),))
        rule = course.calibrated().rule(self.request.whole_steps)
        self.rule = replace(rule, second_look=begun.second_look)
        self.joined, self.blind = begun.joined, begun.blind
        self.kv_cache = self._new_kv_cache()
        self.parts, self.same_text = begun.parts, begun.same_text
        self._use(begun.regions)
        walk, self.over = self._settled(begun.kinds), len(begun.kinds)
        rest = walk.kinds[self.over :]
        if rest.lstrip(SKIPPED).startswith(SELECTIVE):  # another model may compute here, which has kept no keys yet
            rest = rest.replace(SELECTIVE, FULL, 1)
        self.walk = replace(walk, kinds=begun.kinds + rest)
        self.known, self.latest, self.outside = begun.known, begun.known, begun.final
        self.active = True
        return Decision(schedule.looking(rest[: schedule.steps]))

    def _refusal(self, schedule: Schedule) -> Message | None:
        """Why there is no look, so that the run starts from an early state instead; None where there is one."""
        request = self.request
        assert request.plan.source is not None
        entry = request.plan.source.entry
        kept, sigma = entry.settings, min(schedule.sigmas[0], entry.sigmas[0])
        if sigma < 1.0 - 1e-3 or (request.plan.start_latent and request.given is None):
            return say("note.look_start", sigma=sigma)
        if request.sampler.draws_noise or kept["noise_drawn"]:
            return say("note.look_noise")
        if request.sampler.reads_uncond:
            return say("note.look_uncond", sampler=request.sampler.name)
        if request.seeded and kept["noise"] != request.noise_digest:
            return say("note.look_seeded")
        self.parts, self.same_text = parts_of(entry), same_text(request)
        if (why := sampled_otherwise(request, schedule, self.parts, self.same_text)) is not None:
            return why
        # Estimates of other σ differ for that reason, and the source's picture may be that of fewer steps.
        if not schedules_agree(entry.sigmas, schedule):
            return say("note.look_sigmas")
        if request.whole_steps < course.LEAST_STEPS:
            return say("note.look_steps", steps=request.whole_steps)
        return None

    def _new_kv_cache(self) -> KVCache | None:
        """Where selective steps keep what they leave out; None where no token can be left out, or nobody wants it."""
        request = self.request
        if selective.NAME not in request.plan.stages or selective.refusal(request) is not None:
            return None
        return KVCache(lambda: int(MEMORY * request.free_memory()))

    def start(self, schedule: Schedule) -> torch.Tensor | Refused | None:
        """The source's noise, and what little the first σ has of a latent under a noise mask."""
        if self.source is None:
            return None
        sigma, given = schedule.sigmas[0], self.request.given
        x = sigma * self.source.noise
        return x if given is None else x + (1.0 - sigma) * given.latent

    # -- around an evaluation ------------------------------------------------------------------------------------

    def instead(self, schedule: Schedule, step: int) -> torch.Tensor | None:
        return self.known if self.active and schedule.is_skipped(step) else None

    def asked_at(
        self, schedule: Schedule, step: int, sigma: float, x: torch.Tensor
    ) -> tuple[torch.Tensor, float] | None:
        """After a global change: at the place that the course says, where the latest estimate leads to."""
        self.moved = None
        if not self.active or self.walk is None or self.known is None or schedule.begins_at(sigma) is None:
            return None
        place = self.walk.places.get(self.over + step)
        if place is None or self.over + step >= self.walk.full_from:
            return None
        self.moved = sigma + place * (schedule.sigmas[step + 1] - sigma)
        return torch.lerp(self.known.to(x), x, self.moved / sigma), self.moved

    def in_call(self, schedule: Schedule, call: ModelCall) -> CallWork:
        if not self.active or self.kv_cache is None or not self.joined or call.step >= schedule.k2:
            return NOTHING
        if schedule.kinds[call.step] == FULL:
            return CallWork(kv_cache=self.kv_cache)
        if self.tokens is None or not self.kv_cache.has(KVCache.key(call)):
            return NOTHING  # the host samples other conditionings together than in the look
        return CallWork(computed=self.tokens, kv_cache=self.kv_cache)

    def after_evaluation(self, schedule: Schedule, step: int, x0: torch.Tensor) -> torch.Tensor:
        if not self.active:
            return x0
        if self.source is not None:
            self._look(x0, step)
        elif self.walk is not None and self.over + step >= self.walk.full_from:
            self.latest = x0
            return x0
        if self.joined:
            assert self.weights is not None and self.outside is not None
            self.weights, self.outside = self.weights.to(x0), self.outside.to(x0)  # copied once
            x0 = joined(self.outside, x0, self.weights)
        before, self.known, self.latest = self.known, x0, x0
        return x0 if self.moved is None else self._over_the_step(schedule, step, before, x0)

    def _over_the_step(
        self, schedule: Schedule, step: int, before: torch.Tensor | None, x0: torch.Tensor
    ) -> torch.Tensor:
        """One estimate for a step on whose way the model was asked.

        Up to there the state follows the estimate from before, and from there on x0: a straight step with the mean of
        both, by the shares of the way in 1/σ, ends where this does.
        """
        assert before is not None and self.moved is not None
        sigma, after = schedule.sigmas[step], schedule.sigmas[step + 1]
        return torch.lerp(before.to(x0), x0, (1.0 - after / self.moved) / (1.0 - after / sigma))

    def decide(self, schedule: Schedule, step: int) -> Decision | None:
        if not self.active or self.walk is None:
            return None
        kinds = self.walk.kinds[self.over :][: schedule.steps]
        notes = self._fewer_skipped()
        if self.blind:
            notes = (*notes, say("note.look_blind"))
        elif not self.joined:
            notes = (*notes, say("note.everywhere"))
        if self.kv_cache is not None and self.kv_cache.full:
            notes = (*notes, say("note.context_memory"))
        return Decision(None if schedule.kinds == kinds else schedule.looking(kinds), notes=notes)

    def _fewer_skipped(self) -> tuple[Message, ...]:
        """A note where a fixed K1 asks for more skipped steps than there can be."""
        settings = self.request.plan.stages[resume.NAME]
        if settings.fixed is None or self.request.before is not None:
            return ()
        assert self.walk is not None
        skipped = self.walk.kinds.count(SKIPPED)
        wanted = round(min(settings.fixed, settings.most) * self.request.whole_steps)
        return (say("note.k1_look", skipped=skipped, wanted=wanted),) if skipped < wanted else ()

    def _look(self, x0: torch.Tensor, step: int) -> None:
        """At a step of a look, find where the target differs from the source, and settle what each further step is."""
        assert self.source is not None and self.rule is not None
        first, past = self.walk is None, FULL if self.walk is None else self.walk.kinds[: step + 1]
        compared = self.source.first if first else self.source.second if step == self.rule.second_look else None
        if compared is None:
            return
        cut = course.calibrated().cut
        apart = self._difference(x0, compared)
        sampled = self._sampled(apart)
        # x0 = u + CFG · (c − u), and u is the same in both: so much larger is the difference of guided estimates.
        cfg = self.request.cfg if self.request.cfg_known else 1.0
        if first and self._may_be_blind() and bool(apart[sampled].max() < cut.noticed):
            self.blind, changed = True, sampled
        elif first and not self._masked() and cut.moves_everything(apart / cfg):
            changed = sampled
        else:
            changed = torch.zeros_like(sampled).masked_scatter(sampled, cut(apart[sampled] / cfg))
        regions = self._regions(changed if self.regions is None else changed | self.regions.base).within(sampled)
        self._use(regions)
        # A MASK says itself what is kept; otherwise the difference counts, not how far the mask reaches beyond it.
        marked = float(regions.base[sampled].float().mean())
        self.joined = not self.blind and (marked < 1.0 if self._masked() else marked <= cut.everywhere)
        self.walk = self._settled(past)
        self._choose_outside(step)

    def _sampled(self, apart: torch.Tensor) -> torch.Tensor:
        """[T, H, W] bool on the token grid of `apart`: the tokens that no noise mask keeps."""
        if self.request.given is None:
            return torch.ones_like(apart, dtype=torch.bool)
        return ~self.request.given.tokens(self.request.network.token_size).to(apart.device)

    def _settled(self, past: str) -> course.Course:
        """The course with what the steps after the `past` ones are, by what is known of the difference."""
        assert self.rule is not None
        steps, limits = self.request.whole_steps, self._limits()
        if self.joined:
            leaves_out = self.kv_cache is not None and not self.kv_cache.full
            return course.after_look(past, steps, self.rule, limits, share=self.share, leaves_out=leaves_out)
        return course.after_global_change(past, steps, self.rule, limits)

    def _difference(self, x0: torch.Tensor, compared: torch.Tensor) -> torch.Tensor:
        """Between an estimate [B, C, T, H, W] and the source's, given as means over tokens: [T, H, W] in spreads."""
        assert self.source is not None
        spread = channel_spread(with_frames(self.source.final))
        return difference(token_means(x0, self.request.network.token_size), compared, spread)

    def _choose_outside(self, step: int) -> None:
        """Keep the source's own c outside the mask until a second look, and its result from the last look on."""
        assert self.source is not None and self.rule is not None and self.walk is not None
        source, rule, kinds = self.source, self.rule, self.walk.kinds
        last_joined = max((k for k, kind in enumerate(kinds) if kind != FULL), default=0)
        looks_again = self.joined and step < rule.second_look < last_joined and kinds[rule.second_look] == FULL
        self.outside = source.before if looks_again else source.final
        if not looks_again:
            self.source = None

    def _may_be_blind(self) -> bool:
        """Whether a look without any difference tells nothing: the texts differ, and no MASK says where they do."""
        return not same_text(self.request) and not self._masked()

    def _masked(self) -> bool:
        """Whether a MASK counts alone."""
        given = self.request.plan.stages.get(selective.NAME)
        return given is not None and given.way == "mask" and given.regions is not None

    def _use(self, regions: Regions) -> None:
        self.regions, self.tokens = regions, regions.indices()
        self.share = len(self.tokens) / regions.visible.numel()
        sizes = self.request.shape[2:] if len(self.request.shape) == 5 else (1, *self.request.shape[2:])
        cells, given = self.request.network.cells(regions.edit, sizes), self.request.given
        if given is not None:  # what is given is the same in both: no rim beside it
            cells = cells | given.cells.to(cells.device)
        weights = rim(cells)[None, None]
        self.weights = weights if len(self.request.shape) == 5 else weights[:, :, 0]

    def _regions(self, base: torch.Tensor) -> Regions:
        """The masks, with what the mask node knew before; a MASK counts alone."""
        given = self.request.plan.stages.get(selective.NAME)
        if given is None:
            return build(base, course.calibrated().grow, 0)
        if given.regions is not None:
            known = given.regions.on_grid((base.shape[0], base.shape[1], base.shape[2]))
            if given.way == "mask":
                return Regions(*(mask.to(base.device) for mask in (known.base, known.edit, known.visible)))
            base = base | known.base.to(base.device)
        return build(base, given.edit_radius, given.visible_radius)

    def _limits(self) -> course.Limits:
        """What people have set by hand."""
        steps, settings = self.request.whole_steps, self.request.plan.stages[resume.NAME]
        full = self.request.plan.stages.get(selective.REFINE)
        k2 = None if full is None or full.fixed is None else min(steps - 1, max(1, round(full.fixed * steps)))
        return course.Limits(None if settings.fixed is None else round(settings.fixed * steps), settings.most, k2)

    def expected_share(self, schedule: Schedule, step: int) -> float:
        if not self.active or self.regions is None or step == 0:
            return 1.0
        if schedule.is_skipped(step):
            return 0.0
        return round(self.share, 4) if schedule.is_selective(step) else 1.0

    # -- afterwards -----------------------------------------------------------------------------------------------

    def figures(self) -> Mapping[str, Any]:
        return {"looked": None if self.regions is None or self.blind else self.regions.cpu()}

    def result(self, schedule: Schedule) -> _Begun | None:
        if self.regions is None or schedule.complete:
            return None
        assert self.walk is not None and self.rule is not None
        assert self.latest is not None and self.outside is not None
        return _Begun(
            self.walk.kinds[: self.over + schedule.steps],
            self.rule.second_look,
            self.joined,
            self.blind,
            self.regions.cpu(),
            self.latest.cpu(),
            self.outside.cpu(),
            self.parts,
            self.same_text,
        )

    def drop(self) -> None:
        self.source = self.outside = self.known = self.latest = self.weights = self.tokens = None
        if self.kv_cache is not None:
            self.kv_cache.drop()
