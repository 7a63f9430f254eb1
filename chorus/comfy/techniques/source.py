"""What the techniques that start from a source ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...cache import Entry
from ...messages import Message, say
from ...reuse.join import token_means, with_frames
from ...reuse.regions import token_grid
from ...reuse.schedule import Schedule
from ...reuse.trajectory import SIGMA_TOLERANCE, clean_component, serving
from ..caches import load_trajectory, open_cache, stored_estimates, stored_states
from ..content import tensor_digest
from ..sampling.guidance import Guidance, Part
from .base import Request


def unfit(request: Request) -> Message | None:
    """Why the match cannot be started from after all; None where it can."""
    plan = request.plan
    assert plan.source is not None
    kept = plan.source.entry.settings
    if kept["carried"] != request.carried:
        return say("miss.image")
    if same_text(request) and not plan.chosen and kept["noise"] != request.noise_digest:
        return say("miss.seed")
    return None


def same_text(request: Request) -> bool:
    """Whether the match was sampled from the very same text."""
    plan = request.plan
    assert plan.source is not None
    kept = plan.source.entry.settings
    return bool(kept["text"] == request.text_digest if "text" in kept else plan.source.entry.prompt == plan.prompt)


def parts_of(entry: Entry) -> list[Part] | None:
    """What each of the entry's samplers did; None where nothing sure is kept of it.

    Entries from before that was kept have the settings of the first sampler only.
    """
    kept, calls = entry.settings.get("parts"), entry.settings.get("calls", ())
    if kept is None:
        first = Part(entry.sigmas[0], entry.settings["sampler"], entry.settings.get("guidance"))
        return [first] if isinstance(calls, list | tuple) and len(calls) < 2 else None
    try:
        parts = [Part(float(one["sigma"]), one["sampler"], one["guidance"]) for one in kept]
    except (TypeError, ValueError, KeyError):
        return None
    return sorted(parts, key=lambda part: -part.sigma)


def sampled_otherwise(
    request: Request, schedule: Schedule, parts: Sequence[Part] | None, same_text: bool
) -> Message | None:
    """Why estimates of this sampler's steps and of the match's cannot be compared; None where they can.

    parts: of the match. same_text: whether it has the very same text; then another sampler is what people want to see.
    """
    if not parts:
        return say("note.look_parts")
    for sigma in schedule.sigmas[:-1]:
        begun = [part for part in parts if part.sigma >= sigma - SIGMA_TOLERANCE]
        part = begun[-1] if begun else parts[0]
        if (why := _guided_otherwise(request.guidance, part.guidance)) is not None:
            return why
        if same_text and part.sampler != request.sampler.name:
            return say("note.look_sampler", here=request.sampler.name, there=part.sampler)
    return None


def _guided_otherwise(here: Guidance, kept: Any) -> Message | None:
    """Why estimates of a run and of its match cannot be compared; None where they can. kept: the match's guidance."""
    if not isinstance(kept, dict) or kept.keys() != vars(here).keys():
        return say("note.look_states")
    if kept["cfgs"] != here.cfgs:
        return say("note.look_cfg", here=str(here.cfgs), there=str(kept["cfgs"]))
    if here.ranged or kept["ranged"] or kept["negative"] != here.negative:
        return say("note.look_conditions")
    if here.step_cache or kept["step_cache"]:
        return say("note.look_step_cache")
    if kept != vars(here):
        return say("note.look_guider")
    return None


def schedules_agree(walked: tuple[float, ...], schedule: Schedule) -> bool:
    """Whether a run over the σ `walked` is one over this schedule, or over one that begins with it."""
    walked = walked if schedule.complete else walked[: len(schedule.sigmas)]
    same = len(walked) == len(schedule.sigmas)
    return same and all(abs(a - b) <= SIGMA_TOLERANCE for a, b in zip(walked, schedule.sigmas, strict=True))


def states_for(request: Request, sigma: float) -> tuple[float, ...]:
    """The kept σ of the source from which its state at `sigma` can be made; () if it cannot."""
    entry = _entry(request)
    return serving(stored_states(entry), sigma, entry.settings["noise_drawn"])


@dataclass
class Picture:
    """What a look needs of the source, in model space, on the CPU.

    noise: ε it was sampled from; final: its result; both in the latent's shape.
    first: its estimate at σ_0; second: at the σ of a second look; both [B, C, T, H, W], means over tokens.
    before: its clean component at that σ, which is kept outside the mask until then, so that both estimates are of the
        same state. It and `second` are None where there is no second look.
    """

    noise: torch.Tensor
    first: torch.Tensor
    final: torch.Tensor
    second: torch.Tensor | None = None
    before: torch.Tensor | None = None


def picture(request: Request, second_sigma: float | None) -> Picture | Message:
    """The source's picture, or why it cannot be had. second_sigma: of a second look. Raises CacheError."""
    entry = _entry(request)
    noise = _noise(request, entry)
    if noise is None:
        return say("note.look_seed")
    first = _estimate(entry, entry.sigmas[0])
    if first is None:
        return say("note.look_states")
    name = None if second_sigma is None else _estimate(entry, second_sigma)
    there = states_for(request, second_sigma) if second_sigma is not None and name is not None else ()
    cache = open_cache(request.plan.cache_name, request.plan.place)
    kept = load_trajectory(cache, entry, request.into_model_space, noise, {*there, 0.0})
    found = Picture(noise, _means(request, cache.load(entry.id, [first])[first]), kept.at(0.0))
    if tuple(found.first.shape[2:]) != token_grid(tuple(with_frames(noise).shape), request.network.token_size):
        return say("note.look_tokens")
    if second_sigma is not None and name is not None and there:
        found.second = _means(request, cache.load(entry.id, [name])[name])
        found.before = clean_component(kept.at(second_sigma), noise, second_sigma)
    return found


def _means(request: Request, estimate: torch.Tensor) -> torch.Tensor:
    """A kept estimate as means over tokens. Entries of format 3, and states, have all cells."""
    whole = estimate.shape == torch.Size(request.shape)
    return token_means(estimate, request.network.token_size) if whole else with_frames(estimate.float())


def _estimate(entry: Entry, sigma: float) -> str | None:
    """The name of the kept estimate at σ; None where there is none.

    Entries from before estimates were kept have the clean component after the first step, which was that step's
    estimate.
    """
    kept = stored_estimates(entry)
    if not kept and sigma == entry.sigmas[0]:
        after = min(stored_states(entry), key=lambda at: abs(at - entry.sigmas[1]))
        if abs(after - entry.sigmas[1]) < SIGMA_TOLERANCE:
            kept = {sigma: stored_states(entry)[after]}
    return next((name for at, name in kept.items() if abs(at - sigma) < SIGMA_TOLERANCE), None)


def _entry(request: Request) -> Entry:
    assert request.plan.source is not None
    return request.plan.source.entry


def _noise(request: Request, entry: Entry) -> torch.Tensor | None:
    """The noise of the source, drawn again from its seed; None where that gives another one."""
    if entry.settings["noise"] == request.noise_digest:
        return request.noise
    seed = entry.settings.get("seed")
    noise = request.noise_of(seed) if isinstance(seed, int) and 0 <= seed < 2**64 else None
    return noise if noise is not None and tensor_digest(noise) == entry.settings["noise"] else None
