"""One sampling run under a plan. It asks the techniques, applies what they decide, and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...cache import Entry
from ...messages import Message, say
from ...reuse.plan import Plan
from ...reuse.schedule import FULL
from ..networks import ModelCall
from ..shown import packed_masks, plan_figures
from ..techniques import ORDER, Technique
from ..techniques.base import Decision, Refused
from .finished import FinishedRun, Report
from .request import SamplerCall


class Run:
    """State of one sampling run; made by the OUTER_SAMPLE wrapper, shared by the others, dropped at its end."""

    def __init__(self, plan: Plan, call: SamplerCall):
        self.plan = plan
        self.request, self.identity, self.seed = call.request, call.identity, call.seed
        self.full_schedule = self.schedule = call.schedule
        self.report = Report(
            outcome="miss" if plan.reads else "unread",
            reason=plan.explanation,
            match_score=plan.score if plan.score > -1 else None,
            source_prompt=plan.source.entry.prompt if plan.source else None,
            steps=self.schedule.steps,
            notes=list(plan.notes),
        )
        self.parent: str | None = self.request.before.parent if self.request.before else None
        self.start: torch.Tensor | None = None
        self.given = self.request.given  # on the model's device after the first evaluation
        self.step: int | None = None  # the one under way; None outside an evaluation
        self.shares: dict[int, float] = {}  # step → largest computed share of the tokens in any of its calls
        self.techniques: dict[str, Technique] = {}
        self._decide()

    def _decide(self) -> None:
        """Ask the techniques in order. If one of them finds the source unusable, the run is a plain miss."""
        refused = self._ask(ORDER)
        if refused is not None:
            self.schedule, self.start, self.parent = self.full_schedule, None, None
            self.report.notes, self.report.reason = list(self.plan.notes), refused.why
            self._ask({name: made for name, made in ORDER.items() if not made.needs_source})
        elif self.parent is not None:
            self.report.outcome = "hit"
        elif self.plan.hit:
            self.report.reason = say("miss.no_stage")

    def _ask(self, order: Mapping[str, type[Technique]]) -> Refused | None:
        """Ask techniques in order and apply what they decide; the refusal that makes the run a miss, if any."""
        self.techniques = {name: made(self.request) for name, made in order.items()}
        for technique in self.techniques.values():
            decided = technique.begin(self.schedule)
            if isinstance(decided, Refused):
                if decided.miss:
                    return decided
                self.note(decided.why)
            else:
                self._apply(decided)
        for technique in self.techniques.values():
            x = technique.start(self.schedule)
            if isinstance(x, Refused):
                return x
            self.start = x if x is not None else self.start
        return None

    def _apply(self, decided: Decision | None) -> None:
        if decided is not None:
            self.schedule = decided.schedule or self.schedule
            self.parent = decided.parent or self.parent
            for note in decided.notes:
                self.note(note)

    def note(self, said: Message | None) -> None:
        if said is not None and said not in self.report.notes:
            self.report.notes.append(said)

    # -- before sampling ---------------------------------------------------------------------------------------

    def answered_by(self, entry: Entry) -> None:
        """The stored result of this very request is the answer; no step is computed."""
        report = self.report
        report.outcome, report.reason = "identical", say("lookup.identical", entry=entry.id)
        report.source_id, report.notes = entry.id, []
        self.schedule = self.full_schedule.from_step(self.full_schedule.steps)

    def reused_whole(self) -> torch.Tensor | None:
        """x0 of a run all of whose steps are the source's, [B, C, T, H, W] in model space; None for any other."""
        if self.schedule.first < self.schedule.steps or self.start is None:
            return None
        return self.start / (1.0 - self.schedule.sigmas[-1])

    def progress(self) -> dict[str, Any]:
        """What the open pages are told when sampling begins, and whenever a look has decided how it goes on."""
        schedule = self.schedule
        looked = next((found for t in self.techniques.values() if (found := t.figures().get("looked"))), None)
        undecided = looked is None and set(schedule.kinds) == {FULL}  # the look is still to come
        k1, k2 = (0, 0) if undecided else (schedule.k1, schedule.k2)
        techniques = self.techniques.values()
        return plan_figures(self.plan) | {
            "outcome": self.report.outcome,
            "reason": str(self.report.reason),
            "said": {"reason": self.report.reason.to_json()},
            "match_score": self.report.match_score,
            "steps": schedule.steps,
            "k1": k1,
            "k2": k2,
            "looking": undecided and self.request.before is None,
            "look": schedule.kinds.startswith(FULL),
            "looked": None if looked is None else looked.edited,
            "masks": packed_masks(looked),
            "token_share": [min(t.expected_share(schedule, step) for t in techniques) for step in range(k1, k2)],
        }

    # -- around an evaluation and inside a model call -----------------------------------------------------------

    def before_evaluation(self, x: torch.Tensor, sigma: float) -> torch.Tensor | None:
        """The estimate that the sampler is given without asking the model; None to ask it."""
        self.step = self.schedule.step_at(sigma)
        self.shares.setdefault(self.step, 0.0)
        for technique in self.techniques.values():
            if (x0 := technique.instead(self.schedule, self.step)) is not None:
                return x0
        for technique in self.techniques.values():
            technique.before_evaluation(self.schedule, self.step, sigma, x)
        return None

    def asked_at(self, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, float] | None:
        """The state and its σ at which the model is asked instead of the sampler's; None for the sampler's."""
        assert self.step is not None
        found = (t.asked_at(self.schedule, self.step, sigma, x) for t in self.techniques.values())
        return next((asked for asked in found if asked is not None), None)

    def after_evaluation(self, x0: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """The estimate that the sampler is given in place of the model's, and whether the further path has changed."""
        assert self.step is not None
        before = self.schedule
        if self.given is not None:  # as the host does with every estimate; techniques must not see another one
            self.given = self.given.to(x0)
            x0 = self.given.put_into(x0)
        for technique in self.techniques.values():
            x0 = technique.after_evaluation(self.schedule, self.step, x0)
        for technique in self.techniques.values():
            self._apply(technique.decide(self.schedule, self.step))
        return x0, self.schedule is not before

    def in_call(self, call: ModelCall, counts_blocks: bool) -> dict[str, Any] | None:
        """The call's transformer options with this run's patches; None where it needs none.

        counts_blocks: whether a step cache may answer the call, so that only a block that is entered proves that
            the call is computed.
        """
        works = [technique.in_call(self.schedule, call) for technique in self.techniques.values()]
        computed = next((work.computed for work in works if work.computed is not None), None)
        kv_cache = next((work.kv_cache for work in works if work.kv_cache is not None), None)
        attention = [work.attention for work in works if work.attention is not None]
        step = call.step

        def seen(share: float) -> None:
            self.shares[step] = max(self.shares.get(step, 0.0), share)

        counted = computed is not None or (counts_blocks and self.request.network.block_count > 0)
        if not counted:
            seen(1.0)
            if not attention and kv_cache is None:
                return None
        return self.request.network.patched(call, computed, attention, seen if counted else None, kv_cache)

    # -- ending -------------------------------------------------------------------------------------------------

    def finished(self, latent: torch.Tensor, seconds: float) -> FinishedRun:
        """The run as `ChorusCacheStore` gets it. latent: the sampler's result; seconds: that sampling took."""
        report, request = self.report, self.request
        report.sampling_s = max(0.0, seconds)
        if self.schedule.kinds:
            shares = [round(self.shares.get(k, 0.0), 4) for k in range(self.schedule.steps)]
            report.set_shares(shares, self.schedule.kinds.startswith(FULL))
        else:
            report.k1, report.k2 = self.schedule.k1, self.schedule.k2
            report.token_share = [round(self.shares[k], 4) for k in range(report.k1, report.k2) if k in self.shares]
        report.steps_computed = sum(1 for share in self.shares.values() if share > 0)
        report.step_equivalents = round(sum(self.shares.values()), 4)
        report.source_id = report.source_id or self.parent
        results: Mapping[str, Any] = {
            name: technique.result(self.schedule) for name, technique in self.techniques.items()
        }
        for technique in self.techniques.values():
            vars(report).update(technique.figures())
        if request.before is not None:
            report.add(request.before.report)
        if report.outcome == "identical":
            report.notes = []
        return FinishedRun(
            plan=self.plan,
            report=report,
            request=self.identity.reused if report.outcome == "hit" else self.identity.computed,
            calls=[*(request.before.calls if request.before else []), self.identity.computed],
            sigmas=(*request.before.sigmas[:-1], *self.full_schedule.sigmas)
            if request.before
            else self.full_schedule.sigmas,
            whole_steps=request.whole_steps,
            final=latent.detach().cpu().clone(),
            seed=self.seed,
            noise=None if self.schedule.complete else request.noise,
            noise_digest=request.noise_digest,
            noise_drawn=request.sampler.draws_noise,
            carried=request.carried,
            text_digest=request.text_digest,
            sampler=request.sampler.name,
            parts=(*(request.before.parts if request.before else ()), request.part(self.full_schedule)),
            tokens=request.tokens,
            parent=self.parent,
            results=results,
        )

    def drop(self) -> None:
        """Let go of every tensor; clones of the model may still refer to this object."""
        for technique in self.techniques.values():
            technique.drop()
        self.start = self.given = None
