"""Makes a `Request` of what the host hands to a sampler, or says why the run is sampled without Chorus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...cache import CacheError, Entry
from ...messages import say
from ...prompt.tokens import one_prompt
from ...reuse.given import Given
from ...reuse.plan import Plan
from ...reuse.schedule import Schedule
from ...reuse.trajectory import SIGMA_TOLERANCE
from ..content import NotUnderstood, digest, tensor_digest
from ..embed import same_encoding
from ..faults import Unsuitable
from ..lookup import with_source
from ..networks import Network, network_of
from ..noise_mask import kept_cells, mask_digest
from ..signature import RunningNode
from ..space import Expert, carried_inputs, expert, models_signed, prediction_of, start_latent
from ..techniques import selective
from ..techniques.base import Request
from ..techniques.source import schedules_agree
from ..text import prompt_of_sampler
from .finished import FinishedRun, finished_runs
from .guidance import cfgs_of, guidance_of, is_plain
from .identity import Identity, calls, identity_of
from .samplers import Sampler, known_sampler


@dataclass(frozen=True)
class SamplerCall:
    """A sampling run as it was asked for. seed: of the run, or of the first part of its schedule."""

    request: Request
    schedule: Schedule
    identity: Identity
    seed: int | None


def sampler_call(
    plan: Plan,
    guider: Any,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: Any,
    sigmas: torch.Tensor,
    denoise_mask: torch.Tensor | None,
    seed: int | None,
) -> SamplerCall:
    """Read what the host hands over. Raises Unsuitable."""
    import comfy.model_management
    import comfy.sample

    patcher, call_number = guider.model_patcher, calls.next()
    try:
        model, known = _suitable(plan, guider, noise, sampler)
        network = network_of(patcher)
        positive = guider.original_conds.get("positive") or []
        carried = _carried(guider.original_conds, network)
        if len(sigmas) < 2:
            raise Unsuitable(say("bypassed.no_steps"))
        if not bool((sigmas[1:] < sigmas[:-1]).all()):
            raise Unsuitable(say("bypassed.own_steps"))
        schedule = Schedule(tuple(float(sigma) for sigma in sigmas))
        kept = _kept(plan, patcher, noise, sampler, schedule, denoise_mask)
        before = _before(plan, noise, latent_image, schedule)
        _require_text(plan, positive)
    except NotUnderstood as error:
        raise Unsuitable(say("bypassed.not_understood", why=str(error))) from error
    scale = float(getattr(patcher.get_model_object("model_sampling"), "noise_scale", 1.0))
    if before is None:
        own_noise = noise.detach().float().cpu() * scale
        noise_digest = tensor_digest(own_noise)
    else:
        assert before.noise is not None
        own_noise, noise_digest, seed = before.noise, before.noise_digest, before.seed
    encodings = [cond.get("cross_attn") for cond in positive]
    guidance = guidance_of(guider)
    every = [cond for conds in guider.original_conds.values() for cond in conds or []]

    def sigma_of(fraction: float) -> float:
        return float(patcher.get_model_object("model_sampling").percent_to_sigma(fraction))

    def noise_of(seed: int) -> torch.Tensor:
        # With a generator of its own: the host's function would reseed that of everybody.
        drawn: torch.Tensor = comfy.sample.prepare_noise_inner(latent_image.cpu(), torch.Generator().manual_seed(seed))
        return drawn.float() * scale

    request = Request(
        plan=plan,
        network=network,
        sampler=known,
        options=patcher.model_options["transformer_options"],
        foreign=model.foreign,
        guidance=guidance,
        shape=tuple(noise.shape),
        noise=own_noise,
        noise_digest=noise_digest,
        given=None if kept is None else Given(kept, _in_model_space(patcher.model, latent_image)),
        tokens=one_prompt(encodings[0]) if len(encodings) == 1 and encodings[0] is not None else None,
        positive_ids=frozenset(cond.get("uuid") for cond in positive),
        carried=carried,
        text_digest=_text_digest(positive, network),
        seeded=any(cond.get("noise_augmentation") for cond in every),
        cfg=max([1.0, *cfgs_of(guider)]),
        cfg_known=is_plain(guidance, model.foreign),
        areas=any(cond.get("area") is not None or cond.get("mask") is not None for cond in every),
        whole_steps=_whole_steps(schedule, before, sigma_of),
        before=before,
        stored=_is_stored(),
        sigma_of=sigma_of,
        noise_of=noise_of,
        free_memory=lambda: int(comfy.model_management.get_free_memory(patcher.load_device)),
        into_model_space=patcher.model.process_latent_in,
    )
    identity = identity_of(
        plan,
        guider,
        model,
        sampler,
        schedule.sigmas,
        noise_digest,
        seed if known.draws_noise else None,
        None if before else latent_image,
        before.calls if before else [],
        call_number,
    )
    return SamplerCall(request, schedule, identity, seed)


def with_closest_source(call: SamplerCall) -> SamplerCall:
    """The call with the source, of several that match equally well, that was sampled most like it.

    The same noise counts first: of several takes, the one that is kept. Then the same σ, then the same guidance. Masks
    from a source's attention belong to that source, so that one stays.
    """
    request, plan = call.request, call.request.plan
    masks = plan.stages.get(selective.NAME)
    if plan.source is None or request.before is not None or (masks is not None and masks.way not in ("look", "mask")):
        return call

    def likeness(entry: Entry) -> tuple[bool, bool, bool]:
        kept = entry.settings
        same_sigmas = schedules_agree(entry.sigmas, call.schedule)
        return kept["noise"] == request.noise_digest, same_sigmas, kept.get("guidance") == vars(request.guidance)

    closest = max((plan.source.entry, *plan.alike), key=likeness)  # the first of several, which is the newest
    if closest is plan.source.entry:
        return call
    try:
        return replace(call, request=replace(request, plan=with_source(plan, closest)))
    except CacheError:
        return call  # the one that the look-up found serves as well


def _suitable(plan: Plan, guider: Any, noise: torch.Tensor, sampler: Any) -> tuple[Expert, Sampler]:
    """The model and the sampler of a run that Chorus can serve. Raises Unsuitable, NotUnderstood."""
    patcher = guider.model_patcher
    if (why := plan.declined or finished_runs.declined(plan.id)) is not None:
        raise Unsuitable(why)
    if not (plan.reads or plan.writes):
        raise Unsuitable(say("lookup.off"))
    if noise.ndim not in (4, 5):
        raise Unsuitable(say("bypassed.dimensions", count=noise.ndim))
    known = known_sampler(sampler)
    if known is None:
        raise Unsuitable(say("bypassed.own_steps"))
    if prediction_of(patcher) != "flow":
        raise Unsuitable(say("bypassed.prediction", prediction=prediction_of(patcher)))
    if getattr(patcher.model_options.get("context_handler"), "freenoise", False):
        raise Unsuitable(say("bypassed.free_noise"))
    if tuple(noise.shape) != tuple(plan.space.shape):
        sampled, expected = str(tuple(noise.shape)), str(tuple(plan.space.shape))
        raise Unsuitable(say("bypassed.shape", sampled=sampled, expected=expected))
    if any(cond.get("hooks") for conds in guider.original_conds.values() for cond in conds or []):
        raise Unsuitable(say("bypassed.hooks"))
    model = expert(patcher)
    if model not in plan.experts:
        _raise_other_model(plan, model)
    if model.foreign:  # the same places and code; the graph tells whether their settings are the same, too
        node = RunningNode()
        given = set(models_signed(node, node.models_given(), plan.prompt_nodes))
        if not given or not given <= set(plan.models_signed):
            raise Unsuitable(say("bypassed.patched_later"))
    return model, known


def _raise_other_model(plan: Plan, model: Expert) -> None:
    """Raises Unsuitable with the reason: other weights, an expert that was not connected, or later patches."""
    if any((model.weights, model.loras) == (known.weights, known.loras) for known in plan.experts):
        raise Unsuitable(say("bypassed.patched_later"))
    if len(plan.experts) == 1 and model.weights != plan.experts[0].weights:
        raise Unsuitable(say("bypassed.other_expert"))
    raise Unsuitable(say("bypassed.model"))


def _kept(
    plan: Plan, patcher: Any, noise: torch.Tensor, sampler: Any, schedule: Schedule, mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The cells that a noise mask keeps of the latent, [T, H, W] bool; None without a mask. Raises Unsuitable."""
    kept = None if mask is None else kept_cells(mask, noise.shape)
    if mask_digest(kept) != plan.noise_mask:
        raise Unsuitable(say("bypassed.other_mask"))
    if kept is None:
        return None
    if "denoise_mask_function" in patcher.model_options:
        raise Unsuitable(say("bypassed.noise_mask", why=say("mask.changes")))
    if sampler.inpaint_options.get("random"):
        raise Unsuitable(say("bypassed.noise_mask", why=say("mask.noise")))
    if not schedule.complete or not bool(torch.count_nonzero(noise)):
        # The second sampler would be given the noisy latent of the first one to keep.
        raise Unsuitable(say("bypassed.noise_mask", why=say("mask.parts")))
    return kept


def _in_model_space(model: Any, latent: torch.Tensor) -> torch.Tensor:
    """A LATENT as sampling begins from it, fp32 on the CPU; the host leaves an empty one as it is."""
    latent = latent.detach().float().cpu()
    scaled: torch.Tensor = model.process_latent_in(latent) if bool(torch.count_nonzero(latent)) else latent
    return scaled


def _before(plan: Plan, noise: torch.Tensor, latent_image: torch.Tensor, schedule: Schedule) -> FinishedRun | None:
    """The first part of a schedule that is cut in two (two experts): the second goes on from its state."""
    if bool(torch.count_nonzero(noise)):
        if start_latent(latent_image) != plan.start_latent:
            raise Unsuitable(say("bypassed.start_latent"))
        return None

    def goes_on(run: FinishedRun) -> bool:
        meets = abs(run.sigmas[-1] - schedule.sigmas[0]) < SIGMA_TOLERANCE
        return run.noise is not None and meets and run.goes_on_from(latent_image)

    before = finished_runs.find(plan.id, goes_on)
    if before is None:
        if finished_runs.find(plan.id, lambda run: run.goes_on_from(latent_image)) is not None:
            raise Unsuitable(say("bypassed.gap"))
        raise Unsuitable(say("bypassed.middle"))
    return before


def _require_text(plan: Plan, positive: list[dict[str, Any]]) -> None:
    """Raises Unsuitable unless the look-up's text is sampled: a video must not be kept under another text."""
    sampled = positive[0].get("cross_attn") if positive else None
    if plan.encoded is not None:
        if sampled is None or not same_encoding(plan.encoded, sampled):
            raise Unsuitable(say("bypassed.text"))
    elif prompt_of_sampler(RunningNode(), plan.prompt) != plan.prompt:
        raise Unsuitable(say("bypassed.text_unknown"))


def _carried(conds: dict[str, Any], network: Network) -> str:
    """Digest of what all conditionings of a guider carry beside text; "" when nothing."""
    carried = {name: carried_inputs(group or [], network) for name, group in conds.items()}
    return digest({name: one for name, one in carried.items() if one}) if any(carried.values()) else ""


def _text_digest(positive: list[dict[str, Any]], network: Network) -> str:
    """Digest of all that the positive conditionings hold of the text."""
    encodings = [cond.get("cross_attn") for cond in positive]
    further = [{key: cond[key] for key in sorted(network.text_keys) if cond.get(key) is not None} for cond in positive]
    return digest([encodings, further] if any(further) else encodings)


def _is_stored() -> bool:
    """Whether the graph has a node that keeps the run; True if there is no graph to ask."""
    try:
        return RunningNode().holds("ChorusCacheStore")
    except NotUnderstood:
        return True


def _whole_steps(schedule: Schedule, before: FinishedRun | None, sigma_of: Callable[[float], float]) -> int:
    """The number of steps of the whole schedule; this run may be only a part of it.

    Where a part is still to come, it is taken to be spaced as the model's own σ are.
    """
    if before is not None:
        counted = before.report.steps + schedule.steps
        return counted if schedule.complete else max(counted, before.whole_steps)

    def fraction(sigma: float) -> float:
        """Where on the whole schedule a σ lies, to a thousandth: the inverse of `sigma_of`."""
        return bisect_left(range(1000), -sigma, key=lambda k: -sigma_of(k / 1000)) / 1000

    share = fraction(schedule.sigmas[-1]) - fraction(schedule.sigmas[0])
    return max(schedule.steps, round(schedule.steps / max(1e-3, share)))
