"""What each stage node adds to a plan."""

from __future__ import annotations

import time
from dataclasses import replace

from ..prompt.tokens import label_tokens, real_tokens, token_difference
from ..reuse.amplification import Amplification
from ..reuse.plan import Plan, Share, calibration_of

CHOICES = ("auto", "fixed")


def _fraction(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} {value}: expected a fraction of the schedule, 0 to 1")
    return value


def with_reuse(plan: Plan, choice: str, fraction: float, maximum: float, start: float = 0.0) -> Plan:
    """Stage 1: K1 as a share of the schedule, from score and number of steps or fixed, never above `maximum`.

    start: the fraction at which the source's state is taken; 0 as calibrated, 1 at K1 itself.
    """
    calibration = calibration_of(plan.embedder)
    most = _fraction("maximum", maximum)
    if choice == "auto":
        reuse = calibration.reuse(plan.score, most)
    else:
        reuse = Share.fixed(min(_fraction("K1", fraction), most))
    asked = (choice, fraction if choice == "fixed" else None, maximum, start)
    taken_at = Share.fixed(_fraction("start", start)) if start else calibration.start()
    return plan.with_stage("reuse", asked, reuse=reuse, start=taken_at)


def with_refinement(plan: Plan, choice: str, fraction: float) -> Plan:
    """Stage 3: K2 as a fraction of the schedule: as far behind K1 as calibrated, or fixed."""
    calibration = calibration_of(plan.embedder)
    if choice == "fixed":
        return plan.with_stage("refine", (choice, fraction), full_from=Share.fixed(_fraction("K2", fraction)))
    k1 = calibration.reuse(plan.score) if plan.reuse is None else plan.reuse
    return plan.with_stage("refine", (choice, None), full_from=calibration.full_from(k1))


def with_amplification(plan: Plan, strength: float, where: str, fade: float) -> tuple[Plan, str]:
    """TGAA: which words speak louder. Returns the plan and the words with their weights, for people."""
    began = time.perf_counter()
    amplification = Amplification(strength, where, _fraction("fade", fade))
    plan = plan.with_stage("amplify", (strength, where, fade), amplification=amplification)
    shown = _words(plan, strength)
    return replace(plan, stage_seconds=plan.stage_seconds + time.perf_counter() - began), shown


def _words(plan: Plan, strength: float) -> str:
    if plan.source is None:
        return "no source, nothing to amplify"
    if plan.tokens is None or plan.source.tokens is None:
        return "the words are compared when sampling starts"
    difference = token_difference(plan.tokens, plan.source.tokens)
    weights = difference.new[real_tokens(plan.tokens)].tolist()
    labels = label_tokens(plan.prompt, len(weights), plan.token_labels or None)
    louder = [f"{word} ×{1 + strength * w:.2f}" for word, w in zip(labels, weights, strict=True) if w > 0]
    return " · ".join(louder) or "the prompts say the same, nothing to amplify"
