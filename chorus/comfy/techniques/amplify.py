"""TGAA: amplifies the words that the source's prompt lacks in the text attention; the effect fades out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from ...messages import say
from ...prompt.tokens import label_tokens, real_tokens, token_difference
from ...reuse.amplification import Amplification, amplify
from ...reuse.plan import Plan
from ...reuse.schedule import Schedule
from ..networks import ModelCall
from .base import NOTHING, CallWork, Decision, Refused, Technique
from .resume import fraction_of_steps

NAME = "amplify"


def with_amplification(plan: Plan, strength: float, where: str, fade: float) -> tuple[Plan, str]:
    """The plan with TGAA, and the amplified words with their weights, for people."""
    began = time.perf_counter()
    settings = Amplification(strength, where, fraction_of_steps("fade", fade))
    shown = _words(plan, strength)
    return plan.with_stage(NAME, settings, time.perf_counter() - began), shown


def _words(plan: Plan, strength: float) -> str:
    if plan.source is None:
        return "no source, nothing to amplify"
    if plan.tokens is None or plan.source.tokens is None:
        return "the words are compared when sampling starts"
    weights = token_difference(plan.tokens, plan.source.tokens).new[real_tokens(plan.tokens)].tolist()
    labels = label_tokens(plan.prompt, len(weights), plan.token_labels or None)
    louder = [f"{word} ×{1 + strength * w:.2f}" for word, w in zip(labels, weights, strict=True) if w > 0]
    return " · ".join(louder) or "the prompts say the same, nothing to amplify"


class Amplify(Technique):
    weights: torch.Tensor | None = None  # [L] in [0, 1]: how new each token is

    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        request, plan = self.request, self.request.plan
        goes_on = request.before is not None and request.before.report.k1 > 0
        if NAME not in plan.stages or plan.source is None or plan.source.tokens is None:
            return None
        if not (schedule.k1 or goes_on):
            return None
        if request.tokens is None:
            return Refused(say("note.combined"))
        if (why := request.network.words_refusal()) is not None:
            return Refused(why)
        weights = token_difference(request.tokens, plan.source.tokens).new
        self.weights = weights if bool(weights.any()) else None
        return None

    def in_call(self, schedule: Schedule, call: ModelCall) -> CallWork:
        amplification = self.request.plan.stages.get(NAME)
        if self.weights is None or call.context is None or amplification is None or call.step in schedule.looks:
            return NOTHING
        before = self.request.before  # the fade goes on over the boundary of two experts
        done, k1 = (before.report.steps, before.report.k1) if before else (0, schedule.k1)
        strength = amplification.strength_at(done + call.step, k1, done + schedule.steps)
        length = call.context.shape[1]
        if not strength or length % len(self.weights):
            return NOTHING
        # The host repeats a context to the length of the other one it is batched with.
        weights = self.weights.repeat(length // len(self.weights))

        def louder(block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> tuple[Any, Any]:
            return amplify(k, v, weights, call.rows, strength, amplification.where)

        return CallWork(attention=louder)

    def figures(self) -> Mapping[str, Any]:
        if self.weights is None or self.request.tokens is None:
            return {}
        real = real_tokens(self.request.tokens)
        plan = self.request.plan
        labels = label_tokens(plan.prompt, int(real.sum()), plan.token_labels or None)
        named = zip(labels, self.weights[real].tolist(), strict=True)
        return {"tokens": [(word, round(weight, 3)) for word, weight in named if weight > 0]}

    def drop(self) -> None:
        self.weights = None
