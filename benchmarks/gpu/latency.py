"""Time and memory at true shapes: random weights of the real sizes, sampled by the host's own code.

A request goes the way of the nodes: look-up in a cache on disk, stages, the attached model, the host's sampler, store.
Its seconds are of all of that. Random weights change everything everywhere, so a MASK says where the look's join
computes. What is computed is counted at the model's blocks, step by step, and must be what the case and its masks say.
A row's limit is its step equivalents × the full-step time of the same model without Chorus.

A schedule of 50 steps without Chorus is made of two of its steps, which its row says: it is "extrapolated".
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from chorus.comfy import lookup, masks, stages, store
from chorus.comfy.networks import network_of
from chorus.comfy.sampling.finished import Report
from chorus.comfy.sampling.wrappers import attach
from chorus.comfy.techniques import look_and_join, resume
from chorus.reuse.plan import Plan
from chorus.reuse.regions import token_grid
from chorus.reuse.schedule import FULL, SELECTIVE, SKIPPED, steps_reached

from . import models
from .models import DILATION, MODELS, SIZES, Size
from .results import rounded, write

FIRST_NOISE_SEED = 1000  # every request has a noise of its own
SHARES = (0.1, 0.25, 0.5)  # of the tokens that are visible in a selective step
WRONG = "?"  # beside the letters of Schedule.kinds: neither all tokens nor those of the masks
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_REPEATS = len(T95) + 1
LOOK, EARLY = resume.METHODS
A_HIT = 0.7  # of the time of a run in full, until a hit was measured


@dataclass(frozen=True)
class Schedule:
    """A schedule of `steps`; reuse, full_from: K1 and K2 of an early start as fractions of it."""

    steps: int
    cfg: float
    reuse: float
    full_from: float

    @property
    def name(self) -> str:
        return f"{self.steps} steps, " + (f"CFG {self.cfg:g}" if self.rows > 1 else "no CFG")

    @property
    def rows(self) -> int:
        """Rows of a step's batch: the host leaves the negative prompt out at CFG 1."""
        return 2 if self.cfg != 1.0 else 1


FEW = Schedule(4, 1.0, reuse=0.25, full_from=0.75)
MANY = Schedule(50, 6.0, reuse=0.26, full_from=0.51)
SCHEDULES = {s.steps: s for s in (FEW, MANY)}


@dataclass(frozen=True)
class Case:
    """How a request is sampled.

    method: of stage 1, None without a source.
    share: wanted share of visible tokens in selective steps, None without masks.
    memory: for keys and values, "size" as its size has it, "default" as Chorus has it.
    steps: so many of the schedule are sampled, None for all.
    """

    name: str
    chorus: bool = True
    method: str | None = None
    share: float | None = None
    amplified: bool = False
    memory: str = "size"
    steps: int | None = None


PLAIN, COLD = Case("without Chorus", chorus=False), Case("cold")
LOOKS = {share: Case(f"look and join, {share:.0%}", method=LOOK, share=share) for share in SHARES}
LOOK_AMPLIFIED = replace(LOOKS[0.25], name="look and join, 25%, amplified", amplified=True)
LOOK_DEFAULT = replace(LOOKS[0.25], name="look and join, 25%, Chorus's own memory limit", memory="default")
EARLY_START = Case("early start", method=EARLY)
EARLY_MASKS = Case("early start, 25%", method=EARLY, share=0.25)
TWO_STEPS = replace(PLAIN, steps=2)
PROFILED = (PLAIN, LOOKS[0.25])


def cases(model: str, schedule: Schedule) -> tuple[Case, ...]:
    """What is measured, in order of worth."""
    if schedule is MANY:
        return TWO_STEPS, LOOKS[0.25], LOOKS[0.1], LOOKS[0.5], EARLY_START
    first = (PLAIN, LOOKS[0.25], COLD, LOOKS[0.1], LOOKS[0.5], EARLY_START)
    if model.startswith("hunyuan"):
        return PLAIN, LOOKS[0.25], COLD, EARLY_START  # a family beside the one that the others are for
    if SIZES[model, "full"].memory is not None:
        first = (*first, LOOK_DEFAULT)
    return (*first, EARLY_MASKS, LOOK_AMPLIFIED)


@dataclass(frozen=True)
class Measured:
    """One request. Seconds of wall time: `stepping` from the first model call to the latent, `outside` the rest."""

    stepping: float
    outside: float
    kinds: str  # what each step of the schedule was, by what the blocks computed
    equivalents: float  # counted at the blocks
    report: Report | None
    peak_bytes: int | None
    latent: torch.Tensor

    @property
    def seconds(self) -> float:
        return self.stepping + self.outside


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its 95 % interval, None from a single value."""

    n: int
    mean: float
    interval: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        if len(values) < 2:
            return cls(len(values), values[0], None)
        error = statistics.stdev(values) / len(values) ** 0.5
        return cls(len(values), statistics.mean(values), T95[len(values) - 2] * error)


class BlockCounter:
    """Counts the tokens that enter a network's blocks in each of its calls, and notes when the first one begins."""

    def __init__(self, network: torch.nn.Module, synchronise: Callable[[], None]):
        self.blocks = [
            block
            for name in ("blocks", "double_blocks", "single_blocks")
            for block in getattr(network, name, ())  # Wan has the first, HunyuanVideo the others
        ]
        self.calls: list[tuple[torch.Tensor, int]] = []  # timesteps and tokens in all blocks
        self.began = 0.0
        self._network = network
        self._synchronise = synchronise
        self._hooks: list[Any] = []

    def __enter__(self) -> BlockCounter:
        self._hooks = [self._network.register_forward_pre_hook(self._begin)]
        self._hooks += [b.register_forward_pre_hook(self._count, with_kwargs=True) for b in self.blocks]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, network: torch.nn.Module, args: tuple) -> None:
        if not self.began:
            self._synchronise()
            self.began = time.perf_counter()
        self.calls.append((args[1], 0))  # read after the run: a value on the GPU would have to be waited for

    def _count(self, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["img"]
        timestep, tokens = self.calls[-1]
        self.calls[-1] = (timestep, tokens + x.shape[0] * x.shape[1])

    def by_timestep(self) -> dict[float, int]:
        """Tokens in all blocks at each timestep, in the order of the calls."""
        found: dict[float, int] = {}
        for timestep, tokens in self.calls:
            at = float(timestep.flatten()[0])
            found[at] = found.get(at, 0) + tokens
        return found


class Bench:
    """Samples requests with one model of random weights; ComfyUI must be importable, its caches point to a folder."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype):
        self.device = device
        self.size = size
        self.patcher = models.build_patcher(size.config, device, dtype)
        self.network: torch.nn.Module = self.patcher.model.diffusion_model
        self.blank = torch.zeros(1, *size.latent)
        grid = token_grid(size.latent, tuple(self.network.patch_size))  # type: ignore[arg-type]
        self.tokens = grid[0] * grid[1] * grid[2]
        self.prompts = models.encodings(*size.text)
        pixels = size.cell * self.network.patch_size[1]  # type: ignore[index]
        self.regions = {share: models.regions_around(grid, share) for share in SHARES}
        self.frames = {
            share: r.base[:1].float().repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)
            for share, r in self.regions.items()
        }
        self.leaves_out = network_of(self.patcher).selective_refusal({}) is None
        self._seed = FIRST_NOISE_SEED

    def visible(self, case: Case) -> float:
        """The share of the tokens that a case's masks leave visible."""
        return 1.0 if case.share is None else float(self.regions[case.share].visible.float().mean())

    def kinds(self, case: Case, schedule: Schedule, shares: Mapping[float, float]) -> str:
        """What each step of the schedule was, a letter for each. shares: computed share of the tokens by timestep."""

        def kind(share: float) -> str:
            known = ((FULL, 1.0), (SELECTIVE, self.visible(case)))
            return next((letter for letter, expected in known if abs(share - expected) < 1e-6), WRONG)

        if case.method != LOOK:  # an early start walks other σ than the schedule's
            walked = "".join(map(kind, shares.values()))
            return SKIPPED * (schedule.steps - len(walked)) + walked if case.method else walked
        import comfy.samplers

        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", schedule.steps)[:-1]
        found = [SKIPPED] * schedule.steps
        for timestep, share in shares.items():
            found[int((sampling.timestep(sigmas).cpu() - timestep).abs().argmin())] = kind(share)
        return "".join(found)

    def early(self, case: Case, schedule: Schedule) -> str:
        """What the steps of an early start must be."""
        k1, k2 = self._bounds(schedule)
        if case.share is None or not self.leaves_out:
            k2 = k1
        # The first step of stage 2 is a full one.
        selective = max(0, k2 - k1 - 1)
        return SKIPPED * k1 + FULL + SELECTIVE * selective + FULL * (schedule.steps - k1 - 1 - selective)

    def _bounds(self, schedule: Schedule) -> tuple[int, int]:
        """K1 and K2 of an early start."""
        import comfy.samplers

        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", schedule.steps).tolist()
        shares = (schedule.reuse, schedule.full_from)
        k1, k2 = (steps_reached(sigmas, float(sampling.percent_to_sigma(share))) for share in shares)
        return k1, k2

    def plan(self, case: Case, schedule: Schedule, cache: str = "source") -> Plan:
        """The plan as the nodes of a graph make it. A request without a source never reads."""
        name = "target" if case.method else "source"
        mode = lookup.MODES[0] if case.method else lookup.MODES[2]
        cache = f"{cache} {schedule.cfg:g}"
        settings = lookup.LookupSettings(f"the {name} prompt", 0.0, mode, cache, "conditioning")
        plan = lookup.look_up([self.patcher], {"samples": self.blank}, settings, conditioning=self.prompts[name])
        choice = "auto" if case.method == LOOK else "fixed"  # of a look's course, nothing is fixed by hand
        if case.method:
            plan = stages.reuse(plan, choice, schedule.reuse, 1.0, 0.0, case.method)
        if case.share is not None:
            plan = masks.with_regions(plan, "mask", self.frames[case.share], DILATION, DILATION, "none")
        if case.amplified:
            plan, _ = stages.amplification(plan, 1.0, "both", 0.5)
        if case.method:
            plan = stages.refinement(plan, choice, schedule.full_from)
        return plan

    def next_seed(self) -> int:
        """Another noise for every request: an identical one would be answered without sampling."""
        self._seed += 1
        return self._seed

    def remember_source(self, schedule: Schedule) -> float:
        """Puts the source of all hits in the cache; returns the seconds of this model's first look-up.

        It is sampled over the schedule of the hits: a look compares estimates of the same sigmas only.
        """
        began = time.perf_counter()
        plan = self.plan(COLD, schedule)
        self.synchronise()
        seconds = time.perf_counter() - began
        self.request(COLD, schedule, plan=plan)
        return seconds

    def request(self, case: Case, schedule: Schedule, *, seed: int | None = None, plan: Plan | None = None) -> Measured:
        """Samples one request. plan: one made before; else the case's is made, in the time that is measured."""
        import comfy.sample

        seed = self.next_seed() if seed is None else seed
        noise = comfy.sample.prepare_noise(self.blank, seed)
        positive = self.prompts["target" if case.method else "source"]
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        with (
            torch.inference_mode(),
            self._memory(case),
            BlockCounter(self.network, self.synchronise) as counter,
        ):
            if plan is None and case.chorus:
                plan = self.plan(case, schedule, "source" if case.method else "cold")
            latent = comfy.sample.sample(
                self.patcher if plan is None else attach(self.patcher, plan),
                noise,
                schedule.steps,
                schedule.cfg,
                "euler",
                "simple",
                positive,
                self.prompts["negative"],
                self.blank,
                start_step=0,
                last_step=case.steps or schedule.steps,
                disable_pbar=True,
                seed=seed,
            )
            self.synchronise()
            sampled = time.perf_counter()
            report = None
            if plan is not None:
                report = store.store(plan, {"samples": latent}, None, 0.75, "fp16").report
        ended = time.perf_counter()
        whole_step = len(counter.blocks) * self.tokens * schedule.rows
        shares = {timestep: tokens / whole_step for timestep, tokens in counter.by_timestep().items()}
        return Measured(
            stepping=sampled - counter.began,
            outside=ended - began - (sampled - counter.began),
            kinds=self.kinds(case, schedule, shares),
            equivalents=sum(shares.values()),
            report=report,
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None,
            latent=latent,
        )

    @contextmanager
    def _memory(self, case: Case) -> Iterator[None]:
        """Keys and values may take as much memory as the case says."""
        before = look_and_join.MEMORY
        if case.memory == "size" and self.size.memory is not None:
            look_and_join.MEMORY = self.size.memory
        try:
            yield
        finally:
            look_and_join.MEMORY = before

    def fault(self, case: Case, schedule: Schedule, measured: Measured) -> str:
        """What is wrong with a measurement; "" if as much was computed as its case says."""
        report, kinds, counted = measured.report, measured.kinds, measured.equivalents
        if report is not None and case.method and report.outcome != "hit":
            return f"no hit: {report.reason}"
        if not bool(measured.latent.isfinite().all()):
            return "the latent is not finite"
        if WRONG in kinds:
            return f"{kinds}: a step computed neither all tokens nor the {self.visible(case):.4f} that the masks leave"
        if not case.method and kinds != (expected := FULL * (case.steps or schedule.steps)):
            return f"the steps were {kinds}, not {expected}"
        if case.method == EARLY and kinds != (expected := self.early(case, schedule)):
            return f"the steps were {kinds}, not {expected}"
        if case.method == LOOK and (fault := self._not_joined(case, measured)):
            return fault
        if report is not None and abs(report.step_equivalents - counted) > 1e-3:
            return f"the report says {report.step_equivalents:.4f} step equivalents, the blocks {counted:.4f}"
        return ""

    def _not_joined(self, case: Case, measured: Measured) -> str:
        """Why these are not the steps of a look and a join. What comes when is the method's own matter."""
        report, kinds = measured.report, measured.kinds
        assert report is not None
        if report.looked is None or not torch.equal(report.looked.visible.cpu(), self.regions[case.share].visible):
            return f"{kinds}: the masks are not those of the case"
        if kinds[0] != FULL or kinds == FULL * len(kinds):
            return f"{kinds}: no full step first, or nothing saved afterwards"
        short = any(note.code == "note.context_memory" for note in report.notes)
        if self.leaves_out and not short and self.visible(case) < 0.3 and SELECTIVE not in kinds:
            return f"{kinds}: no selective step, and no reason for that"
        return ""

    def synchronisations(self, case: Case, schedule: Schedule) -> dict[str, Any]:
        """How often one request waits for the GPU, by the profiler, and the lines that PyTorch warns of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.request(case, schedule)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchroniz" in str(w.message).lower()]
        places = Counter(f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in waits)
        kinds = (torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            self.request(case, schedule)
        calls = {e.key: e.count for e in profile.key_averages() if "ynchronize" in e.key or e.key == "cudaMemcpyAsync"}
        return {"profiler": calls, "warned_of": dict(places.most_common(40))}

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Row:
    """One case on one schedule: what was measured of it, and why not more.

    measured: the first one is kept apart where there are more, as it warms up kernels and allocator.
    """

    schedule: Schedule
    case: Case
    status: str = "not measured"
    reason: str = "the time budget was used up before"
    measured: list[Measured] = field(default_factory=list)
    waits: dict[str, Any] | None = None

    @property
    def open(self) -> bool:
        return self.status in ("not measured", "measured", "extrapolated")

    @property
    def warm(self) -> list[Measured]:
        return self.measured[1:] or self.measured

    def close(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    def keep(self, measured: Measured) -> None:
        self.measured.append(replace(measured, latent=measured.latent[:0]))  # only its figures are wanted on
        self.status, self.reason = ("extrapolated" if self.case.steps else "measured"), ""


class Measurement:
    """All rows of one model on one schedule, measured in rounds until the budget or the repeats are used up."""

    def __init__(self, bench: Bench, model: str, schedule: Schedule, deadline: float, repeats: int):
        self.bench = bench
        self.schedule = schedule
        self.deadline = deadline
        self.repeats = repeats
        self.rows = [Row(schedule, case) for case in cases(model, schedule)]
        self.first_lookup_seconds: float | None = None
        self.match_score: float | None = None
        self._step_seconds = 0.0  # of a full step

    def run(self) -> Iterator[str]:
        """Measures; yields what was just done."""
        if not self._safely(self.rows, self._source):
            return
        yield "the source is stored"
        for number in range(self.repeats + 1):  # the first round warms up
            done = False
            for row in self.rows:
                if row.open and self._once(row):
                    done = True
                    yield f"round {number}: {row.case.name}"
            if number == 0:
                yield from self._profile()
            if not done:
                return

    def _profile(self) -> Iterator[str]:
        for row in self.rows:
            if row.case not in PROFILED or not row.measured or self.bench.device.type != "cuda":
                continue
            if time.perf_counter() + 3 * row.measured[-1].seconds > self.deadline:
                continue

            def profile(row: Row = row) -> None:
                row.waits = self.bench.synchronisations(row.case, row.schedule)

            try:
                self._safely([], profile)
            except Exception as error:  # a profiler that does not work here costs no figures
                row.waits = {"failed": f"{type(error).__name__}: {error}"}
            yield f"synchronisations: {row.case.name}"

    def _source(self) -> None:
        self.first_lookup_seconds = self.bench.remember_source(self.schedule)

    def _once(self, row: Row) -> bool:
        """Measures a row once more; False where the budget does not allow it."""
        steps = (row.case.steps or row.schedule.steps) * (A_HIT if row.case.method else 1.0)
        expected = max((m.seconds for m in row.measured), default=steps * self._step_seconds)
        if time.perf_counter() + expected > self.deadline:
            return False

        def sample() -> None:
            measured = self.bench.request(row.case, row.schedule)
            row.keep(measured)
            if fault := self.bench.fault(row.case, row.schedule, measured):
                row.close("fault", fault)  # its figures are kept
            if measured.report is not None and measured.report.match_score is not None:
                self.match_score = measured.report.match_score
            if not row.case.chorus:
                self._step_seconds = measured.stepping / (row.case.steps or row.schedule.steps)

        return self._safely([row], sample)

    def _safely(self, rows: Sequence[Row], work: Callable[[], None]) -> bool:
        """Does `work`. If the memory does not suffice, closes `rows`; the benchmark goes on."""
        import comfy.model_management

        try:
            work()
            return True
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            for row in rows:
                row.close("out of memory", str(error).splitlines()[0])
        gc.collect()
        comfy.model_management.soft_empty_cache()
        return False

    # -- results ------------------------------------------------------------------------------------------------

    def plain(self) -> Row | None:
        """The row without Chorus, where it was measured."""
        return next((r for r in self.rows if not r.case.chorus and r.measured), None)

    def full_step(self) -> float | None:
        """Seconds of a full step of the model without Chorus."""
        row = self.plain()
        if row is None:
            return None
        return statistics.mean(m.stepping for m in row.warm) / (row.case.steps or row.schedule.steps)

    def seconds(self, row: Row | None) -> Estimate | None:
        """A whole request's wall time."""
        if row is None or not row.measured:
            return None
        factor = row.schedule.steps / (row.case.steps or row.schedule.steps)
        return Estimate.of([factor * m.stepping + m.outside for m in row.warm])

    def row_json(self, row: Row) -> dict[str, Any]:
        """A row as it is written. Seconds and GB (10⁹ bytes); None for what was not measured."""
        report = row.measured[-1].report if row.measured else None
        seconds, step, plain = self.seconds(row), self.full_step(), self.seconds(self.plain())
        counted = row.measured[-1].equivalents if row.measured else None
        if counted is not None and row.case.steps:
            counted *= row.schedule.steps / row.case.steps
        peaks = [m.peak_bytes for m in row.measured if m.peak_bytes is not None]
        return {
            "schedule": row.schedule.name,
            "case": row.case.name,
            "status": row.status,
            "reason": row.reason,
            "n": len(row.warm) if row.measured else 0,
            "mean": rounded(seconds.mean if seconds else None),
            "interval": rounded(seconds.interval if seconds else None),
            "first": rounded(row.measured[0].seconds if row.measured else None),
            "steps": row.measured[-1].kinds if row.measured else "",
            "visible": rounded(self.bench.visible(row.case)) if row.case.share else None,
            "step_equivalents": rounded(counted),
            "stepping_s": rounded(statistics.mean(m.stepping for m in row.warm) if row.measured else None),
            "outside_s": rounded(statistics.mean(m.outside for m in row.warm) if row.measured else None),
            "peak_memory_gb": rounded(max(peaks) / 1e9 if peaks else None),
            "wall_over_limit": rounded(seconds.mean / (counted * step) if seconds and counted and step else None),
            "speedup": rounded(plain.mean / seconds.mean if seconds and plain else None),
            "notes": [str(note) for note in report.notes] if report is not None else [],
            "synchronisations": row.waits,
        }


def main(arguments: Sequence[str]) -> int:
    """Measure one model. Returns 3 where a row computed something else than its case says."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.latency", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--steps", type=int, choices=SCHEDULES, default=FEW.steps)
    parser.add_argument("--small", action="store_true", help="scaled down, on the CPU")
    parser.add_argument("--seconds", type=float, default=420.0, help="begin nothing that would end later")
    parser.add_argument("--repeats", type=int, choices=range(MOST_REPEATS + 1), default=MOST_REPEATS, metavar="N")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    models.import_comfyui(cpu=options.small)
    import comfy.model_management

    device, dtype = models.device_and_type(options.small)
    size, schedule = SIZES[options.model, "small" if options.small else "full"], SCHEDULES[options.steps]
    result: dict[str, Any] = {
        "about": (__doc__ or "").strip(),
        **models.circumstances(device),
        "model": options.model,
        "size": "small" if options.small else "full",
        "dtype": str(dtype).removeprefix("torch."),
        "config": dict(size.config),
        "latent": list(size.latent),
        "seeds": {"weights_and_prompts": models.SEED, "first_noise": FIRST_NOISE_SEED},
        "memory_for_keys_and_values": size.memory or look_and_join.MEMORY,
        "rows": [],
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, models.caches_in(Path(folder)):
        try:
            bench = Bench(size, device, dtype)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            result["out_of_memory"] = str(error).splitlines()[0]
            write(result, options.output)
            print(f"{options.model} does not fit on {result['machine']}: {result['out_of_memory']}", flush=True)
            return 0
        measurement = Measurement(bench, options.model, schedule, began + options.seconds, options.repeats)
        for done in measurement.run():
            result |= {
                "tokens": bench.tokens,
                "first_lookup_seconds": rounded(measurement.first_lookup_seconds),
                "match_score": rounded(measurement.match_score),
                "full_step_seconds": rounded(measurement.full_step()),
                "seconds": round(time.perf_counter() - began, 1),
                "rows": [measurement.row_json(row) for row in measurement.rows],
            }
            write(result, options.output)  # after each request, so that stopping early leaves results
            print(f"{result['seconds']:6.1f} s  {done}", flush=True)
    show(result["rows"])
    return 3 if any(row["status"] == "fault" for row in result["rows"]) else 0


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows in a few columns, and why some were not measured."""

    def text(value: float | None, form: str) -> str:
        return format(value, form) if value is not None and math.isfinite(value) else "–"

    print(f"{'':46}{'n':>3}{'seconds':>10}{'equiv.':>8}{'÷ limit':>9}{'speedup':>9}{'GB':>7}")
    for r in rows:
        figures = (("mean", "10.3f"), ("step_equivalents", "8.2f"), ("wall_over_limit", "9.3f"), ("speedup", "9.2f"))
        line = "".join(text(r[key], form).rjust(int(form.partition(".")[0])) for key, form in figures)
        print(f"{r['case']:46}{r['n']:>3}{line}{text(r['peak_memory_gb'], '.1f'):>7}  {r['steps'][:60]}")
        if r["reason"]:
            print(f"    {r['status']}: {r['reason']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
