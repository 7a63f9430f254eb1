"""Hands a finished run to the cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..cache import CacheError, NewEntry
from ..messages import Message, said_by, say
from ..prompt.tokens import real_tokens
from ..reuse.plan import Plan
from ..reuse.profiles import PROFILES, Profile
from . import workflows
from .caches import open_cache, warn
from .events import cache_changed, not_kept
from .sampling.finished import Bypassed, FinishedRun, Recording, Report, finished_runs
from .savings import cold_time

_HALF = torch.finfo(torch.float16).max  # encodings of some language models have larger values
PREVIEW_SIDE, PREVIEW_FRAMES = 256, 24


@dataclass(frozen=True)
class Stored:
    """What became of storing a run.

    entry_id: of the new entry, "" when there is none. plan: as it was when sampling began; report: None without a run.
    """

    entry_id: str
    said: Message
    report: Report | None
    plan: Plan


def store(
    plan: Plan,
    latent: dict[str, Any],
    frames: torch.Tensor | None,
    keep: float,
    precision: str,
    graph: torch.Tensor | None = None,
) -> Stored:
    """Hand the run that made `latent` over to the cache.

    keep: checkpoints up to this fraction of the schedule; precision: one of PROFILES; frames: IMAGE [F, H, W, 3] for
    the preview; graph: what `workflows.packed` made of the graph.
    A run that did not finish does not wait here, so nothing is stored.
    """
    began = time.perf_counter()
    samples = latent["samples"]
    run = None if samples.is_nested else finished_runs.find(plan.id, partial(_returned, samples.detach().cpu()))
    if run is None:
        told = Bypassed(plan.declined) if plan.declined else finished_runs.bypassed(plan.id)
        if told is not None:
            report = Report("bypassed", told.reason, None, None, chorus_s=plan.lookup_seconds, notes=list(told.notes))
            return Stored("", say("not_kept.bypassed", reason=told.reason), report, plan)
        if finished_runs.find(plan.id, lambda run: True) is not None:
            return Stored("", say("not_kept.other_latent"), None, plan)
        return Stored("", say("not_kept.no_run"), None, plan)
    plan, report = run.plan, run.report
    if not run.complete:
        return Stored("", say("not_kept.unfinished", sigma=run.sigmas[-1]), report, plan)
    finished_runs.remove(run)
    report.chorus_s += plan.lookup_seconds + plan.stage_seconds
    _count_hit(plan, run)
    entry_id, stored = _commit(plan, run, frames, keep, precision, graph)
    report.chorus_s += time.perf_counter() - began
    return Stored(entry_id, stored, report, plan)


def _returned(samples: torch.Tensor, run: FinishedRun) -> bool:
    """Whether this LATENT, [B, C, T, H, W], is the run's result; the host may have rounded it since."""
    final = run.final.to(samples.dtype)
    return samples.shape == final.shape and torch.allclose(samples, final, rtol=0.0, atol=0.0, equal_nan=True)


def summary(stored: Stored) -> str:
    """What became of a run, in a line or two, for the node's text output."""
    if stored.report is None or stored.said.code in ("not_kept.bypassed", "not_kept.unfinished"):
        return str(stored.said)
    return f"{stored.report.headline()}\n{stored.said}"


def _count_hit(plan: Plan, run: FinishedRun) -> None:
    """Compute how much time the run saved, and count the hit for the entry that it started from."""
    report = run.report
    if report.source_id is None or report.outcome not in ("hit", "identical"):
        return
    try:
        cache = open_cache(plan.cache_name, plan.place)
        cold = cold_time(cache, plan.space, run.sampler, report)
        if cold is not None:
            report.cold_s, report.cold_runs = cold.seconds, cold.runs
        cache.record_hit(report.source_id, max(0.0, report.saved_s))
    except CacheError as error:
        warn(f"the hit was not counted: {error}")
    else:
        cache_changed(plan.cache_name)


def _commit(
    plan: Plan, run: FinishedRun, frames: torch.Tensor | None, keep: float, precision: str, graph: torch.Tensor | None
) -> tuple[str, Message]:
    if run.report.outcome == "identical":
        return "", say("not_kept.there")
    if not plan.writes:
        return "", say("not_kept.mode")
    if not bool(torch.isfinite(run.final).all()):
        return "", say("not_kept.not_finite")
    assert plan.vector is not None
    profile = PROFILES[precision]
    tensors: dict[str, torch.Tensor] = {"final": run.final}
    coding: dict[str, str] = {"final": profile.final_coding}
    if frames is not None:
        tensors["preview"], coding["preview"] = preview(frames), "webp"
    if graph is not None:
        tensors[workflows.TENSOR] = graph
    if run.recording is not None:
        _add_source(tensors, coding, run, run.recording, keep, profile)
    settings = {
        "sampler": run.sampler,
        "guidance": run.parts[0].guidance,
        "parts": [vars(part) for part in run.parts],
        "plan": plan.id,
        "calls": run.calls,
        "seed": run.seed,
        "noise": run.noise_digest,
        "noise_drawn": run.noise_drawn,
        "carried": run.carried,
        "text": run.text_digest,
        "precision": precision,
        "stages": {name: _plain(settings) for name, settings in plan.stages.items()},
        "report": run.report.figures(),
    }
    try:
        new = NewEntry(
            space=plan.space,
            request=run.request,
            prompt=plan.prompt,
            embedder=plan.embedder,
            vector=plan.vector,
            sigmas=run.sigmas,
            settings=settings,
            seconds=run.report.sampling_s,
            is_source=run.recording is not None,
            parent=run.parent,
            tensors=tensors,
            coding=coding,
        )
        entry = open_cache(plan.cache_name, plan.place).put(new)
    except (CacheError, ValueError) as error:
        warn(f"nothing stored: {error}")
        not_kept(plan.cache_name, "", said_by(error))
        return "", say("not_kept.fault", error=said_by(error))
    cache_changed(plan.cache_name)
    kept = sum(name.startswith("checkpoint/") for name in tensors)
    if not kept:
        return entry.id, say("kept.storing", entry=entry.id)
    return entry.id, say("kept.storing_states", entry=entry.id, count=kept)


def _plain(settings: Any) -> dict[str, Any]:
    """What a stage's node was set to, without masks and other large values."""
    return {
        name: value for name, value in vars(settings).items() if value is None or isinstance(value, int | float | str)
    }


def _add_source(
    tensors: dict[str, torch.Tensor],
    coding: dict[str, str],
    run: FinishedRun,
    recording: Recording,
    keep: float,
    profile: Profile,
) -> None:
    """Add what lets other requests start from this one."""
    # A second look goes on from the state whose estimate is kept, whatever else is.
    for sigma in {*profile.kept(run.sigmas, keep, run.noise_drawn), *recording.estimates}:
        if sigma in recording.states:
            state, name = recording.states[sigma], f"checkpoint/{sigma:.6f}"
            tensors[name] = state.half() if profile.half else state
            coding[name] = profile.state_coding(sigma, run.noise_drawn, sigma in recording.estimates)
    for sigma, estimate in recording.estimates.items():
        name = f"estimate/{sigma:.6f}"
        tensors[name] = estimate.half() if profile.half else estimate
        coding[name] = profile.estimate_coding
    words = {}
    if run.tokens is not None:
        words["tokens"] = run.tokens[real_tokens(run.tokens)].clamp(-_HALF, _HALF).half()
    if recording.attention is not None:
        words["attention"] = recording.attention.half()
    tensors |= words
    coding |= dict.fromkeys(words, "raw" if profile.raw else "rows")


def preview(frames: torch.Tensor) -> torch.Tensor:
    """IMAGE [F, H, W, 3] in [0, 1] → uint8 frames, at most PREVIEW_SIDE on a side and PREVIEW_FRAMES of them."""
    if frames.ndim != 4 or frames.shape[-1] < 3:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: expected an IMAGE, [frames, H, W, 3]")
    every = -(-frames.shape[0] // PREVIEW_FRAMES)
    small = frames[::every, ..., :3].detach().float().cpu().movedim(-1, 1)
    side = max(small.shape[-2:])
    if side > PREVIEW_SIDE:
        small = F.interpolate(small, scale_factor=PREVIEW_SIDE / side, mode="area")
    return (small.movedim(1, -1).clamp(0, 1) * 255).round().to(torch.uint8)
