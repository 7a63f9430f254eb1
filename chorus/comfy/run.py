"""One sampling run under a plan: the wrappers around ComfyUI's sampler, and the run's own state.

`attach` puts a plan on a MODEL. When that model is sampled, `outer_sample` makes a `Run`, puts it in the run's own
copy of the model options, and drops it in `finally`: nothing stays behind.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..cache import CacheError
from ..messages import Message, said_by, say
from ..prompt.tokens import label_tokens, real_tokens, token_difference
from ..reuse.plan import Plan, stage_bounds, stretched
from ..reuse.regions import token_grid
from ..reuse.trajectory import SIGMA_TOLERANCE, Trajectory, serving
from .blocks import CrossAttention, TokenDrop, coarse_attention, override_attention, patch_blocks
from .caches import load_trajectory, open_cache, stored_states, warn
from .digest import digest, tensor_digest
from .events import run_started
from .recording import FinishedRun, Recording, Report, finished_runs
from .space import expert, image_conditioning, prediction_of, start_latent

KEY = "chorus"

# Samplers that draw no noise of their own, so that a run is its initial noise and its σ. Others keep raw states.
NOISE_FREE = {
    "sample_euler",
    "sample_euler_cfg_pp",
    "sample_heun",
    "sample_heunpp2",
    "sample_exp_heun_2_x0",
    "sample_dpm_2",
    "sample_lms",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_cfg_pp",
    "sample_ipndm",
    "sample_ipndm_v",
    "sample_deis",
    "sample_res_multistep",
    "sample_res_multistep_cfg_pp",
    "sample_gradient_estimation",
    "sample_gradient_estimation_cfg_pp",
    "sample_unipc",
    "sample_unipc_bh2",
}
# Solvers that choose their own steps: there is no schedule to cut.
OWN_STEPS = {"dpm_fast_function", "dpm_adaptive_function"}


def attach(model: Any, plan: Plan) -> Any:
    """A clone of `model` that samples under `plan`.

    Stage nodes wired in a row or side by side amount to the same: what an earlier one put on the model is kept.
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
    options[KEY] = merged(plan, present)
    return patched


def merged(plan: Plan, present: Plan | None) -> Plan:
    """`plan` with the stages that `present`, of the same look-up, has beyond it."""
    if present is None or present.id != plan.id:
        return plan
    return replace(
        plan,
        reuse=present.reuse if plan.reuse is None else plan.reuse,
        start=present.start if plan.reuse is None else plan.start,
        regions=plan.regions or present.regions,
        regions_note=plan.regions_note or present.regions_note,
        amplification=plan.amplification or present.amplification,
        full_from=present.full_from if plan.full_from is None else plan.full_from,
        asked={**present.asked, **plan.asked},
        stage_seconds=max(plan.stage_seconds, present.stage_seconds),
    )


def outer_sample(
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
    import comfy.model_patcher

    guider = executor.class_obj
    original = guider.model_options
    plan: Plan = original["transformer_options"][KEY]
    began = time.perf_counter()
    before = finished_runs.take(plan.id)  # whatever ends here without finishing stores nothing

    def sample(options: dict):
        guider.model_options = options
        try:
            return executor(
                noise,
                latent_image,
                sampler,
                sigmas,
                denoise_mask,
                callback,
                disable_pbar,
                seed,
                latent_shapes=latent_shapes,
            )
        finally:
            guider.model_options = original

    try:
        run = Run(plan, guider, noise, latent_image, sampler, sigmas, denoise_mask, seed, before)
    except Unsuitable as bypass:
        reason = bypass.why
    except Exception as error:  # a fault of ours must never cost a render
        reason = say("bypassed.fault", error=f"{type(error).__name__}: {error}")
    else:
        reason = None
    if reason is not None:
        warn(f"not active in this run: {reason}")
        finished_runs.bypass(plan.id, reason)
        return sample(original)

    def finish(latent: torch.Tensor, seconds: float) -> None:
        try:
            finished_runs.put(plan.id, run.finished(latent, seconds))
        except Exception as error:  # the render is done; only its entry is lost
            warn(f"the run cannot be stored: {type(error).__name__}: {error}")

    options = comfy.model_patcher.create_model_options_clone(original)
    options["transformer_options"][KEY] = run
    try:
        answered = run.answer_without_sampling()
        run.announce()
        if answered is not None:
            latent, x0 = answered
            if callback is not None:
                callback(run.steps - 1, x0, x0, run.steps)
            run.report.chorus_s += time.perf_counter() - began
            finish(latent, 0.0)
            return latent
        run.guard_against_in_place_caches(options)
        run.report.chorus_s += time.perf_counter() - began
        began = time.perf_counter()
        before_sampling = run.report.chorus_s
        latent = sample(options)
        finish(latent, time.perf_counter() - began - (run.report.chorus_s - before_sampling))
        return latent
    finally:
        run.drop()


def sampler_sample(
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
    """The SAMPLER_SAMPLE wrapper: starts at K1, one sampler call a selective step, the rest in one."""
    run = extra_args["model_options"]["transformer_options"].get(KEY)
    if not isinstance(run, Run):
        return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
    return run.sample(executor, model_wrap, sigmas, extra_args, callback, noise, latent_image, disable_pbar)


def predict_noise(executor, x, timestep, model_options, seed=None):
    """The PREDICT_NOISE wrapper: records the state, and keeps the source's outside the edit mask."""
    run = model_options.get("transformer_options", {}).get(KEY)
    if not isinstance(run, Run):
        return executor(x, timestep, model_options, seed)
    run.enter_evaluation(x, float(timestep.flatten()[0]))
    return run.leave_evaluation(executor(x, timestep, model_options, seed))


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """The APPLY_MODEL wrapper: gives this model call its block and attention patches."""
    transformer_options = transformer_options or {}
    run = transformer_options.get(KEY)
    if isinstance(run, Run):
        transformer_options = run.call_options(executor.class_obj, x, c_crossattn, transformer_options)
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


def _input_copy(executor, x, *args, **kwargs):
    """The host's EasyCache adds to the model input in place, which in fp32 is the sampler's own x."""
    return executor(x.clone(), *args, **kwargs)


class Unsuitable(Exception):
    """Why Chorus leaves a run alone."""

    def __init__(self, why: Message):
        super().__init__(str(why))
        self.why = why


class Run:
    """State of one sampling run; made by `outer_sample`, shared by the wrappers, dropped at its end."""

    def __init__(
        self,
        plan: Plan,
        guider: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None,
        seed: int | None,
        before: FinishedRun | None,
    ):
        self.plan = plan
        self.patcher = guider.model_patcher
        self.sigmas = [float(s) for s in sigmas]
        self.steps = len(self.sigmas) - 1
        self._require_suitable(guider, noise, sampler, denoise_mask)
        conds = guider.original_conds
        positive = conds.get("positive") or []
        self.carried = image_conditioning(positive)
        self.tokens = positive[0].get("cross_attn") if len(positive) == 1 else None
        self.positive_ids = {cond.get("uuid") for cond in positive}
        self.noise_drawn = sampler.sampler_function.__name__ not in NOISE_FREE
        self.noise_scale = float(getattr(self.patcher.get_model_object("model_sampling"), "noise_scale", 1.0))
        self.seed = seed
        self._start_or_continue(noise, latent_image, before)
        self.whole_steps = self.before.whole_steps if self.before else self._whole_steps()
        self.sampler_name = sampler.sampler_function.__name__.removeprefix("sample_")
        self.call = self._call_digest(guider, conds, sampler, latent_image)
        self.calls = [*(self.before.calls if self.before else []), self.call]
        self.request = digest(self.calls)
        self.report = Report(
            outcome="hit" if plan.hit else "miss",
            reason=plan.explanation,
            match_score=plan.score if plan.score > -1 else None,
            source_prompt=plan.source.entry.prompt if plan.source else None,
            steps=self.steps,
        )
        self.trajectory: Trajectory | None = None
        self.k1 = self.k2 = 0
        self.identical = self._find_identical()
        self._prepare()
        # What is under way; written by predict_noise, read by the model calls it makes.
        self.step: int | None = None
        self.selective = False
        self.known: torch.Tensor | None = None  # the run's latest x0 in stage 2, kept where nothing is recomputed
        self.edit: torch.Tensor | None = None  # [1, 1, T, H, W] bool
        self.tokens_seen: dict[int, int] = {}  # step → most tokens any of its model calls put through the blocks
        self.tokens_total = 0
        self.steps_run: set[int] = set()

    # -- making -------------------------------------------------------------------------------------------------

    def _require_suitable(self, guider, noise, sampler, denoise_mask) -> None:
        import comfy.samplers

        plan = self.plan
        if not (plan.reads or plan.writes):
            raise Unsuitable(say("lookup.off"))
        if denoise_mask is not None:
            raise Unsuitable(say("bypassed.noise_mask"))
        if not isinstance(sampler, comfy.samplers.KSAMPLER) or sampler.sampler_function.__name__ in OWN_STEPS:
            raise Unsuitable(say("bypassed.own_steps"))
        if prediction_of(self.patcher) != "flow":
            raise Unsuitable(say("bypassed.prediction", prediction=prediction_of(self.patcher)))
        windows = self.patcher.model_options.get("context_handler")
        if getattr(windows, "freenoise", False):
            raise Unsuitable(say("bypassed.free_noise"))
        if tuple(noise.shape) != tuple(plan.space.shape):
            sampled, expected = str(tuple(noise.shape)), str(tuple(plan.space.shape))
            raise Unsuitable(say("bypassed.shape", sampled=sampled, expected=expected))
        if expert(self.patcher) not in plan.experts:
            raise Unsuitable(say("bypassed.model"))
        if any(cond.get("hooks") for conds in guider.original_conds.values() for cond in conds or []):
            raise Unsuitable(say("bypassed.hooks"))

    def _start_or_continue(self, noise, latent_image, before: FinishedRun | None) -> None:
        """A schedule cut in two (two experts) is one request: the second half goes on from the first's state."""
        self.before = None
        blank = not bool(torch.count_nonzero(noise))
        if not blank:
            if start_latent(latent_image) != self.plan.start_latent:
                raise Unsuitable(say("bypassed.start_latent"))
            self.noise = noise.detach().float().cpu() * self.noise_scale
            self.noise_digest = tensor_digest(self.noise)
            return
        goes_on = before is not None and abs(before.sigmas[-1] - self.sigmas[0]) < SIGMA_TOLERANCE
        if not goes_on or before.complete or not torch.equal(latent_image.cpu().to(before.final), before.final):
            raise Unsuitable(say("bypassed.middle"))
        self.before = before
        self.noise, self.noise_digest, self.seed = before.noise, before.noise_digest, before.seed

    def _call_digest(self, guider, conds, sampler, latent_image) -> str:
        """Everything that shapes this sampler call's result."""
        options = dict(guider.model_options)
        # The host's copy of the wrappers, ours among them, whose names hold this machine's path.
        options.pop("to_load_options", None)
        inner = {k: v for k, v in options.pop("transformer_options", {}).items() if k not in (KEY, "wrappers")}
        wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
        others = {kind: {k: v for k, v in kinds.items() if k != KEY} for kind, kinds in wrappers.items()}
        stripped = {
            name: [{k: v for k, v in c.items() if k not in ("uuid", "model_conds")} for c in group or []]
            for name, group in conds.items()
        }
        known = {"model_patcher", "model_options", "original_conds", "conds", "inner_model", "loaded_models"}
        plain = {k: v for k, v in vars(guider).items() if k not in known}
        return digest(
            [
                self.plan.space.key(),
                self.plan.asked,
                expert(self.patcher),
                [options, inner, {k: v for k, v in others.items() if v}],
                self.patcher.object_patches,
                stripped,
                [type(guider).__qualname__, plain],
                [sampler.sampler_function, sampler.extra_options, sampler.inpaint_options],
                self.sigmas,
                [self.seed if self.noise_drawn else None, self.noise_digest],
                None if self.before else latent_image,
            ]
        )

    def _find_identical(self):
        if not self.plan.reads or self.sigmas[-1] > 0:
            return None
        try:
            return open_cache(self.plan.cache_name, self.plan.place).find_request(self.request)
        except CacheError as error:
            self.note(say("note.not_looked", error=said_by(error)))
            return None

    def _prepare(self) -> None:
        """Settles what this run takes over, amplifies and records."""
        if self.plan.hit and not self.identical:
            self._prepare_reuse()
        self._prepare_words()
        self.recording = self._new_recording()

    def _prepare_reuse(self) -> None:
        """Loads the source's states and settles K1 and K2; a fault makes the run a miss."""
        plan, entry = self.plan, self.plan.source.entry
        if plan.reuse is None and plan.regions is None:
            return self._miss(say("miss.no_stage"))
        if entry.settings["carried"] != self.carried:
            return self._miss(say("miss.image"))
        if "source" not in plan.asked and entry.prompt == plan.prompt and entry.settings["noise"] != self.noise_digest:
            return self._miss(say("miss.seed"))
        reuse_cut, full_cut = (
            None if share is None else self._cut(share.of(self.whole_steps)) for share in (plan.reuse, plan.full_from)
        )
        self.k1, self.k2 = stage_bounds(self.sigmas, reuse_cut, full_cut)
        wanted = self.k1
        while self.k1 and not self._states_for(self.sigmas[self.k1]):
            self.k1 -= 1
        if self.k1 < wanted:
            self.note(say("note.k1_lowered", wanted=wanted, k1=self.k1))
        if not self._selective_possible():
            self.k2 = self.k1
        if plan.regions is not None and plan.regions.empty:
            self.k1 = self.k2  # nothing differs: the steps are the source's whole
        elif plan.regions is not None and plan.regions.whole:
            self.k2 = self.k1  # everything differs: the steps are full ones
        goes_on = self.before is not None and self.before.report.k1 > 0
        if self.k1 == 0 and not (goes_on and self.k2 > 0):
            self.k2 = 0
            return self._miss(say("miss.steps", steps=self.steps))
        path, start = self.sigmas, min(self._cut(plan.start.of(self.whole_steps)), self.sigmas[0])
        if self.k1 and self._states_for(start):
            path = stretched(path, self.k1, start)
        try:
            self.trajectory = load_trajectory(
                open_cache(plan.cache_name, plan.place),
                entry,
                self.patcher.model.process_latent_in,
                self.noise,
                self._states_for(path[self.k1]) or [0.0],  # a second half goes on from its own state
            )
        except CacheError as error:
            return self._miss(say("lookup.unreadable", error=said_by(error)))
        self.sigmas = path
        if self.noise_drawn:
            self.note(say("note.draws_noise", sampler=self.sampler_name))
        return None

    def _states_for(self, sigma: float) -> tuple[float, ...]:
        """The kept σ of the source from which its state at `sigma` is had."""
        entry = self.plan.source.entry
        return serving(stored_states(entry), sigma, entry.settings["noise_drawn"])

    def _selective_possible(self) -> bool:
        regions = self.plan.regions
        if regions is None:
            if self.plan.regions_note:
                self.note(self.plan.regions_note)
            return False
        if self.patcher.model_options.get("context_handler") is not None:
            self.note(say("note.windows"))
            return False
        if "easycache" in self.patcher.model_options["transformer_options"]:
            self.note(say("note.easycache"))
            return False
        network = self.patcher.model.diffusion_model
        if type(network).__name__ != "WanModel":
            self.note(say("note.network", network=type(network).__name__))
            return False
        if regions.grid != token_grid(self.plan.space.shape, network.patch_size):
            self.note(say("note.grid", grid=str(regions.grid)))
            return False
        if self.patcher.model_options["transformer_options"].get("patches", {}).get("double_block"):
            self.note(say("note.patched"))
            return False
        return True

    def _cut(self, fraction: float) -> float:
        """A fraction of the schedule as σ; 0 is before everything."""
        return float(self.patcher.get_model_object("model_sampling").percent_to_sigma(fraction))

    def _whole_steps(self) -> int:
        """How many steps the whole schedule has of which this run's may be the first part only."""
        whole = self.steps / max(1e-3, self._fraction(self.sigmas[-1]) - self._fraction(self.sigmas[0]))
        return max(self.steps, round(whole))

    def _fraction(self, sigma: float) -> float:
        """The fraction of the schedule at which a σ lies, to a thousandth: the inverse of `_cut`."""
        return bisect_left(range(1000), -sigma, key=lambda k: -self._cut(k / 1000)) / 1000

    def _miss(self, reason: Message) -> None:
        self.trajectory, self.k1, self.k2 = None, 0, 0
        self.report.outcome, self.report.reason = "miss", reason

    def _prepare_words(self) -> None:
        """Which of the target's tokens to amplify; nothing without a source, its encodings and the node."""
        self.token_weights = None
        source = self.plan.source
        if self.trajectory is None or self.plan.amplification is None or source.tokens is None:
            return
        if self.tokens is None:
            self.note(say("note.combined"))
            return
        network = self.patcher.model.diffusion_model
        if not hasattr(network, "blocks"):
            self.note(say("note.no_blocks", network=type(network).__name__))
            return
        weights = token_difference(self.tokens.cpu(), source.tokens).new
        if bool(weights.any()):
            self.token_weights = weights
            real = real_tokens(self.tokens.cpu())
            labels = label_tokens(self.plan.prompt, int(real.sum()), self.plan.token_labels or None)
            amplified = zip(labels, weights[real].tolist(), strict=True)
            self.report.tokens = [(word, round(w, 3)) for word, w in amplified if w > 0]

    def _new_recording(self) -> Recording | None:
        """Only cold runs are recorded: a hit's states descend from another prompt's, and chains would decay."""
        if not self.plan.writes or self.trajectory is not None or self.identical:
            return None
        if self.before is not None:
            earlier = self.before.recording
            if earlier is not None and (earlier.noise is None) != self.noise_drawn:
                self.note(say("note.two_samplers"))
                return None
            return earlier
        return Recording(None if self.noise_drawn else self.noise)

    def note(self, said: Message) -> None:
        self.report.notes.append(said)

    # -- without sampling ---------------------------------------------------------------------------------------

    def answer_without_sampling(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(LATENT, its model-space form for the preview) when no step needs to be computed, else None."""
        if self.identical:
            try:
                final = open_cache(self.plan.cache_name, self.plan.place).load(self.identical.id, ["final"])["final"]
            except CacheError as error:
                self.note(say("note.not_loaded", error=said_by(error)))
                self.identical = None
                self._prepare()
                return self.answer_without_sampling()
            self.report.outcome = "identical"
            self.report.reason = say("lookup.identical", entry=self.identical.id)
            self.report.k1 = self.report.k2 = self.steps
            return final, self.patcher.model.process_latent_in(final)
        if self.trajectory is not None and self.k1 == self.steps:
            x = self.trajectory.at(self.sigmas[-1])
            self.report.k1 = self.report.k2 = self.steps
            x0 = x / (1.0 - self.sigmas[-1])
            return self.patcher.model.process_latent_out(x0), x0
        return None

    def announce(self) -> None:
        """Tell the open pages which steps are skipped, selective and full."""
        report = self.report
        whole = report.k1 == self.steps
        try:
            run_started(
                {
                    "outcome": report.outcome,
                    "match_score": report.match_score,
                    "steps": self.steps,
                    "k1": self.steps if whole else self.k1,
                    "k2": self.steps if whole else self.k2,
                    "token_share": [] if whole else self._expected_shares(),
                }
            )
        except Exception as error:  # nobody's render fails for want of a progress bar
            warn(f"the pages could not be told of this run: {type(error).__name__}: {error}")

    def _expected_shares(self) -> list[float]:
        """The share of the tokens that each step of stage 2 will compute; its first is a full one."""
        if self.k2 == self.k1:
            return []
        visible = float(self.plan.regions.visible.float().mean())
        return [1.0] + [round(visible, 4)] * (self.k2 - self.k1 - 1)

    # -- sampling -----------------------------------------------------------------------------------------------

    def guard_against_in_place_caches(self, options: dict) -> None:
        """Gives EasyCache a copy of the model input to add to, outermost."""
        if "easycache" not in options["transformer_options"]:
            return
        import comfy.patcher_extension

        wrappers = self.patcher.wrappers.get(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, {})
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        merged_wrappers = options["transformer_options"].setdefault("wrappers", {})
        present = dict(merged_wrappers.get(kind, wrappers))
        merged_wrappers[kind] = {KEY: [_input_copy], **present}

    def sample(self, executor, model_wrap, sigmas, extra_args, callback, noise, latent_image, disable_pbar):
        """Samples the schedule in the run's stages. Returns what the sampler returns, x/(1 − σ_N)."""
        sigmas = torch.tensor(self.sigmas, dtype=sigmas.dtype, device=sigmas.device)

        def segment(first: int, last: int, start: torch.Tensor | None) -> torch.Tensor:
            """The sampler's own run over σ_first … σ_last, from the given state or from the beginning."""
            given, latent = noise, latent_image
            if start is not None:
                given = start.to(noise) / (self.sigmas[first] * self.noise_scale)
                latent = torch.zeros_like(noise)
            # Segments of a sampler that draws noise must not draw the same noise again.
            seed = extra_args.get("seed")
            args = extra_args if first == 0 or seed is None else {**extra_args, "seed": seed + first}
            return executor(
                model_wrap,
                sigmas[first : last + 1],
                args,
                self._whole_progress(callback, first),
                given,
                latent,
                None,
                disable_pbar,
            )

        if self.k1 == self.k2 == 0:
            return segment(0, self.steps, None)
        # Without a reused step this is a second half, amid the selective steps, and goes on from the first's state.
        begins_here = self.k1 > 0
        x = self.trajectory.at(self.sigmas[self.k1]).to(noise) if begins_here else latent_image * (1.0 - self.sigmas[0])
        if self.k2 > self.k1:
            self.edit = self._edit_cells(noise)
            for step in range(self.k1, self.k2):
                self.step, self.selective = step, step > self.k1  # the first, a full one, says what stands elsewhere
                x = segment(step, step + 1, x) * (1.0 - self.sigmas[step + 1])
            self.selective, self.known, self.edit = False, None, None
        if self.k2 == self.steps:
            return x / (1.0 - self.sigmas[-1])
        return segment(self.k2, self.steps, x)

    def _edit_cells(self, like: torch.Tensor) -> torch.Tensor:
        patch = self.patcher.model.diffusion_model.patch_size
        t, h, w = like.shape[-3:]
        return self.plan.regions.edit_cells(patch, (t, h, w)).to(like.device)[None, None]

    def _whole_progress(self, callback: Callable | None, first: int) -> Callable | None:
        """The host's callback, counting over the whole schedule."""

        def counted(step: int, x0, x, total: int) -> None:
            self.steps_run.add(first + step)
            if callback is not None:
                callback(first + step, x0, x, self.steps)

        return counted

    def enter_evaluation(self, x: torch.Tensor, sigma: float) -> None:
        near = min(range(self.k1, self.steps), key=lambda k: abs(self.sigmas[k] - sigma))
        on_schedule = abs(self.sigmas[near] - sigma) < SIGMA_TOLERANCE
        if on_schedule and self.edit is None:  # in stage 2 a step's further evaluations are its own
            self.step = near
        if self.recording is not None and on_schedule:
            began = time.perf_counter()
            with self._recording_faults():
                self.recording.keep(self.sigmas[near], x)
            self.report.chorus_s += time.perf_counter() - began

    def leave_evaluation(self, x0: torch.Tensor) -> torch.Tensor:
        if self.edit is None:
            return x0
        if self.selective:
            x0 = torch.where(self.edit, x0, self.known)
        self.known = x0
        return x0

    # -- inside a model call ------------------------------------------------------------------------------------

    def call_options(self, model: Any, x: torch.Tensor, context: torch.Tensor | None, options: dict) -> dict:
        """The transformer options of one model call, with this run's patches."""
        network = model.diffusion_model
        blocks, patch = getattr(network, "blocks", None), getattr(network, "patch_size", None)
        if blocks is None or x.ndim != 5 or self.step is None or not isinstance(patch, list | tuple) or len(patch) != 3:
            return options
        grid = token_grid(tuple(x.shape), tuple(patch))
        self.tokens_total = grid[0] * grid[1] * grid[2]
        drop = None
        if self.selective:
            drop = TokenDrop(self.plan.regions.indices(), self.tokens_total)
        step = self.step

        def seen(tokens: int) -> None:
            self.tokens_seen[step] = max(self.tokens_seen.get(step, 0), tokens)

        options = patch_blocks(options, len(blocks), drop, seen)
        work = self._cross_attention(x, context, options, grid, len(blocks))
        return override_attention(options, work) if work else options

    def _cross_attention(self, x, context, options, grid, blocks: int) -> CrossAttention | None:
        strength = 0.0
        if self.token_weights is not None:
            strength = self.plan.amplification.strength_at(self.step, self.k1, self.steps)
        watching = self.recording is not None and self.tokens is not None and self.step in self._watched_steps()
        if context is None or not (strength or watching):
            return None
        chunks = options["uuids"]
        each = x.shape[0] // len(chunks)
        rows = torch.tensor([c in self.positive_ids for c in chunks for _ in range(each)])
        work = CrossAttention(context.shape[1], rows)
        if strength and context.shape[1] % len(self.token_weights) == 0:
            # The host repeats a context to the length of the other one it is batched with.
            work.weights = self.token_weights.repeat(context.shape[1] // len(self.token_weights))
            work.strength, work.where = strength, self.plan.amplification.where
        if watching and bool(rows.any()) and "context_window" not in options:
            row = int(rows.nonzero()[0])
            real = real_tokens(self.tokens.cpu())
            real = torch.nn.functional.pad(real, (0, context.shape[1] - len(real)))

            def watch(q: torch.Tensor, k: torch.Tensor, heads: int) -> None:
                if self.recording is not None and q.shape[1] == grid[0] * grid[1] * grid[2]:
                    with self._recording_faults():
                        self.recording.look(coarse_attention(q[row], k[row], heads, grid, real))

            work.watch, work.watch_blocks = watch, frozenset({blocks // 4, blocks // 2, 3 * blocks // 4})
        return work

    @contextmanager
    def _recording_faults(self):
        """A recording that fails is dropped, and the render goes on."""
        try:
            yield
        except Exception as error:
            self.recording = None
            self.note(say("note.recording", error=f"{type(error).__name__}: {error}"))

    def _watched_steps(self) -> set[int]:
        """Two steps of the schedule's middle, where places are settled and words still matter."""
        return {max(1, round(0.25 * self.steps)), max(1, round(0.4 * self.steps))} & set(range(self.steps))

    # -- ending -------------------------------------------------------------------------------------------------

    def finished(self, latent: torch.Tensor, seconds: float) -> FinishedRun:
        """The run as `ChorusCacheStore` will see it."""
        report = self.report
        report.sampling_s = max(0.0, seconds)
        if report.outcome == "hit":
            report.k1, report.k2 = self.k1, self.k2
        shares = (
            {k: self.tokens_seen.get(k, 0) / self.tokens_total for k in self.steps_run} if self.tokens_total else {}
        )
        report.steps_computed = sum(1 for k in self.steps_run if shares.get(k, 1.0) > 0)
        report.step_equivalents = round(sum(shares.get(k, 1.0) for k in self.steps_run), 4)
        report.token_share = [round(shares.get(k, 1.0), 4) for k in range(self.k1, self.k2) if k in self.steps_run]
        report.source_id = self.identical.id if self.identical else self._parent()
        if self.before is not None:
            report.add(self.before.report)
        return FinishedRun(
            report=report,
            request=self.request,
            calls=self.calls,
            sigmas=tuple([*self.before.sigmas[:-1], *self.sigmas] if self.before else self.sigmas),
            final=latent.detach().cpu().clone(),
            whole_steps=self.whole_steps,
            seed=self.seed,
            noise=self.noise if self.sigmas[-1] > 0 else None,
            noise_digest=self.noise_digest,
            noise_drawn=self.noise_drawn if self.recording is None else self.recording.noise is None,
            carried=self.carried,
            settings={"sampler": self.sampler_name},
            recording=self.recording,
            tokens=self.tokens.detach().cpu() if self.tokens is not None else None,
            parent=self._parent(),
        )

    def _parent(self) -> str | None:
        """The entry that this run, or the first half of its schedule, started from."""
        if self.trajectory is not None:
            return self.plan.source.entry.id
        return self.before.parent if self.before else None

    def drop(self) -> None:
        """Let go of every tensor; clones of the model may still refer to this object."""
        self.trajectory = self.recording = self.token_weights = self.tokens = self.noise = self.before = None
