"""The wrappers around ComfyUI's sampler: how a plan gets onto a MODEL, and the life of a run.

Nothing stays behind: the plan lies on a clone, and the run in the options of one sampling, which end with it. Any
fault of Chorus ends as the run that the graph would have been without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ...cache import CacheError
from ...messages import Message, said_by, say
from ...reuse.plan import Plan
from ..caches import open_cache, warn
from ..events import run_started
from ..faults import Unsuitable, is_own
from ..lookup import refreshed
from ..networks import ModelCall
from ..patches import KEY
from .finished import finished_runs
from .guidance import STEP_CACHES
from .request import sampler_call, with_closest_source
from .run import Run


def attach(model: Any, plan: Plan) -> Any:
    """A clone of `model` that samples under `plan`.

    Stage nodes give the same result in a row and side by side: what an earlier one put on the model is kept.
    """
    import comfy.patcher_extension

    patched = model.clone()
    options = patched.model_options["transformer_options"]
    present = options.get(KEY)
    if present is None:
        wrappers = comfy.patcher_extension.WrappersMP
        patched.add_wrapper_with_key(wrappers.OUTER_SAMPLE, KEY, outer_sample)
        patched.add_wrapper_with_key(wrappers.SAMPLER_SAMPLE, KEY, sampler_sample)
        patched.add_wrapper_with_key(wrappers.PREDICT_NOISE, KEY, predict_noise)
        patched.add_wrapper_with_key(wrappers.APPLY_MODEL, KEY, apply_model)
    options[KEY] = plan.merged(present)
    return patched


@contextmanager
def timed(run: Run) -> Iterator[None]:
    """Chorus's own work, whose time the report counts."""
    began = time.perf_counter()
    try:
        yield
    finally:
        run.report.chorus_s += time.perf_counter() - began


def outer_sample(  # type: ignore[no-untyped-def]
    executor,
    noise,
    latent_image,
    sampler,
    sigmas,
    denoise_mask=None,
    callback=None,
    disable_pbar=False,
    seed=None,
    latent_shapes=None,
):
    """The OUTER_SAMPLE wrapper: the life of a run."""
    guider = executor.class_obj
    asked: Plan | None = None
    snapshot: _Snapshot | None = None

    def sample(options: dict[str, Any] | None, given_sigmas: torch.Tensor) -> torch.Tensor:
        """The host's own sampling, under other model options where there are some."""
        original = guider.model_options
        guider.model_options = original if options is None else options
        try:
            latent: torch.Tensor = executor(
                noise,
                latent_image,
                sampler,
                given_sigmas,
                denoise_mask,
                callback,
                disable_pbar,
                seed,
                latent_shapes=latent_shapes,
            )
            return latent
        finally:
            guider.model_options = original

    def plain(reason: Message) -> torch.Tensor:
        """The run as it would have been without Chorus: the options then hold a Plan and not a Run, so the other
        wrappers call the host unchanged.
        """
        warn(f"not active in this run: {reason}")
        if asked is not None:
            finished_runs.bypass(asked.id, reason, latent_image)
        return sample(None, sigmas if snapshot is None else snapshot.restored())

    try:
        began = time.perf_counter()
        asked = guider.model_options["transformer_options"][KEY]
        snapshot = _Snapshot(guider, sigmas)
        plan = refreshed(asked)
        call = with_closest_source(sampler_call(plan, guider, noise, latent_image, sampler, sigmas, denoise_mask, seed))
        run = Run(call.request.plan, call)
        answer = _without_sampling(run, guider)
        options = _options(run, guider)
        _announce(run)
        run.report.chorus_s += time.perf_counter() - began
    except Unsuitable as left_alone:
        return plain(left_alone.why)
    except Exception as error:
        return plain(say("bypassed.fault", error=f"{type(error).__name__}: {error}"))
    try:
        if answer is None:
            began, before = time.perf_counter(), run.report.chorus_s
            latent = sample(options, sigmas)
            seconds = time.perf_counter() - began - (run.report.chorus_s - before)
        else:
            latent, seconds = answer, 0.0
            if callback is not None:
                shown = run.request.into_model_space(latent)
                callback(run.schedule.steps - 1, shown, shown, run.schedule.steps)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        _drop(run)  # its tensors may be what memory was short of
        if is_own(error):
            return plain(say("bypassed.fault", error=fault))
        if run.parent is None:
            raise  # nothing was changed: the graph fails so without Chorus, too
        return plain(say("bypassed.failed_hit", error=fault))
    else:
        _keep(run, latent, seconds)
        return latent
    finally:
        _drop(run)


def _without_sampling(run: Run, guider: Any) -> torch.Tensor | None:
    """The LATENT of a run of which no step needs to be computed, else None."""
    stored = _stored_result(run)
    if stored is None and (x0 := run.reused_whole()) is not None:
        latent: torch.Tensor = guider.model_patcher.model.process_latent_out(x0)
        return latent
    return stored


def _stored_result(run: Run) -> torch.Tensor | None:
    """The LATENT of an identical request, [B, C, T, H, W]; None where none is stored."""
    run.note(run.identity.not_understood)
    if not run.plan.reads or not run.schedule.complete:
        return None
    try:
        cache = open_cache(run.plan.cache_name, run.plan.place)
        found = cache.find_request(run.identity.computed) or cache.find_request(run.identity.reused)
        if found is None:
            return None
        final = cache.load(found.id, ["final"])["final"]
    except CacheError as error:
        run.note(say("note.not_looked", error=said_by(error)))
        return None
    if tuple(final.shape) != run.request.shape:
        return None
    run.answered_by(found)
    return final


def _options(run: Run, guider: Any) -> dict[str, Any]:
    """The model options under which the run is sampled."""
    import comfy.model_patcher
    import comfy.patcher_extension

    options: dict[str, Any] = comfy.model_patcher.create_model_options_clone(guider.model_options)
    inner = options["transformer_options"]
    inner[KEY] = run
    if "easycache" in inner and run.parent is not None:
        # EasyCache adds to the model input in place, which in fp32 is the sampler's own x. In a hit it gets a copy;
        # in a run in full it changes x as it does without Chorus.
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        by_kind = inner.setdefault("wrappers", {})
        present = by_kind.get(kind, guider.model_patcher.wrappers.get(kind, {}))
        by_kind[kind] = {KEY: [_input_copy], **present}
    return options


def _announce(run: Run) -> None:
    try:
        run_started(run.progress())
    except Exception as error:  # a page that cannot be told costs no render
        warn(f"the pages could not be told of this run: {type(error).__name__}: {error}")


def _keep(run: Run, latent: torch.Tensor, seconds: float) -> None:
    """Let the run wait for its store node."""
    try:
        plan = run.plan
        finished = run.finished(latent, seconds)
        if run.request.stored or not finished.complete:
            finished_runs.put(plan.id, finished)
        if finished.complete and run.request.before is not None:
            finished_runs.used(run.request.before)
    except Exception as error:  # the render is done; only its entry is lost
        fault = f"{type(error).__name__}: {error}"
        warn(f"the run cannot be stored: {fault}")
        finished_runs.bypass(run.plan.id, say("bypassed.fault", error=fault))


def _drop(run: Run) -> None:
    try:
        run.drop()
    except Exception as error:  # the only harm is memory that is held for longer
        warn(f"a run could not let go of its tensors: {type(error).__name__}: {error}")


class _Snapshot:
    """What sampling changes, kept to begin again after a fault: conditionings, σ (uni_pc writes into them), random
    states.
    """

    def __init__(self, guider: Any, sigmas: torch.Tensor):
        self.guider = guider
        self.conds = {name: [dict(cond) for cond in conds or []] for name, conds in guider.conds.items()}
        self.sigmas = sigmas.clone()
        self.random = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restored(self) -> torch.Tensor:
        """Puts all of it back; the σ as they were."""
        self.guider.conds = self.conds
        torch.set_rng_state(self.random)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        return self.sigmas


def _run_of(options: dict[str, Any]) -> Run | None:
    """The run in transformer options; None for a run that is sampled without Chorus."""
    run = options.get(KEY)
    return run if isinstance(run, Run) else None


def sampler_sample(  # type: ignore[no-untyped-def]
    executor,
    model_wrap,
    sigmas,
    extra_args,
    callback,
    noise,
    latent_image=None,
    denoise_mask=None,
    disable_pbar=False,
):
    """The SAMPLER_SAMPLE wrapper: one call of the sampler over the path that the run walks."""
    options = extra_args["model_options"]["transformer_options"]
    run = _run_of(options)
    if run is None or run.start is None:
        return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
    with timed(run):
        schedule, first = run.schedule, run.schedule.first
        path = torch.tensor(schedule.path, dtype=sigmas.dtype, device=sigmas.device)
        scale = float(getattr(model_wrap.inner_model.model_sampling, "noise_scale", 1.0))
        # The host adds its share of the latent, from which it also takes what a noise mask keeps.
        begun_from = torch.zeros_like(noise) if denoise_mask is None else latent_image
        given = (run.start.to(noise) - (1.0 - path[0]) * begun_from) / (path[0] * scale)
        options["sample_sigmas"] = path  # what patches and context windows count steps by
        args = dict(extra_args)
        if (seed := extra_args.get("seed")) is not None:
            # A sampler that draws noise must not draw what the source drew. On the CPU the host adds 1 to it.
            args["seed"] = (seed + first) % (2**64 - 1)

        def counted(step: int, x0: Any, x: Any, total: int) -> None:
            callback(first + step, x0, x, schedule.steps)

    return executor(
        model_wrap,
        path,
        args,
        counted if callback is not None else None,
        given,
        begun_from,
        denoise_mask,
        disable_pbar,
    )


def predict_noise(executor, x, timestep, model_options, seed=None):  # type: ignore[no-untyped-def]
    """The PREDICT_NOISE wrapper: what happens around an evaluation of the model, after CFG."""
    run = _run_of(model_options.get("transformer_options", {}))
    if run is None:
        return executor(x, timestep, model_options, seed)
    with timed(run):
        sigma = float(timestep.flatten()[0])
        answered = run.before_evaluation(x, sigma)
        if answered is not None:
            return answered.to(x)
        if (asked := run.asked_at(x, sigma)) is not None:
            x, timestep = asked[0], torch.full_like(timestep, asked[1])
    x0 = executor(x, timestep, model_options, seed)
    with timed(run):
        x0, decided = run.after_evaluation(x0)
        if decided:
            _announce(run)
    return x0


def apply_model(  # type: ignore[no-untyped-def]
    executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
):
    """The APPLY_MODEL wrapper: gives a model call its patches, where it needs some."""
    options = transformer_options or {}
    run = _run_of(options)
    if run is None:
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
    with timed(run):
        eager: Any = nullcontext()
        given = {name: value for name, value in options.items() if name != KEY}
        if run.step is not None:
            call = ModelCall(tuple(x.shape), c_crossattn, run.step, _positive_rows(run, x, given), given, kwargs)
            patched = run.in_call(call, _skips_calls(given))
            if patched is not None:
                given = patched
                # A compiled network would be compiled again for every patched call.
                if "torch._dynamo" in sys.modules:
                    eager = torch.compiler.set_stance("force_eager")
    with eager:
        return executor(x, t, c_concat, c_crossattn, control, given, **kwargs)


def _positive_rows(run: Run, x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """[B] bool: which rows of a call's batch belong to the positive prompt."""
    ids = options.get("uuids") or [None]
    each = x.shape[0] // len(ids)
    return torch.tensor([one in run.request.positive_ids for one in ids for _ in range(each)])


def _skips_calls(options: dict[str, Any]) -> bool:
    """Whether a step cache of the host may answer a call instead of the network."""
    return not STEP_CACHES.isdisjoint(options)


def _input_copy(executor: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return executor(x.clone(), *args, **kwargs)
