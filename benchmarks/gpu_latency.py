"""Time and memory at true shapes: random weights of the real sizes, sampled by the host's own code.

A request goes the way of the nodes: look-up in a cache on disk, stages, the attached model, the host's sampler, store.
Its seconds are of all of that. What is computed is counted at the model's blocks, and must be what masks and K1
dictate. A row's limit is its step equivalents × the full-step time of the same model without Chorus.

One step of each kind is measured of a schedule too long to run, and the row made from them, which it says: it is
"extrapolated". Its look-up, stages and store are those measured on the short schedule. What ends a run, about a copy of
the latent, counts as part of its last step.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from chorus.comfy import lookup, masks, stages, store
from chorus.comfy.caches import close_caches
from chorus.comfy.sampling.finished import Report
from chorus.comfy.sampling.wrappers import attach
from chorus.reuse.plan import Plan
from chorus.reuse.regions import Regions, build, token_grid
from chorus.reuse.schedule import steps_reached
from tools import comfyui

RESULTS = Path(__file__).parent / "results"
SHIFT = 5.0
SEED = 7  # of weights and prompts; the noise of every request has its own, from 1000 on
FIRST_NOISE_SEED = 1000
SHARES = (0.84, 0.38, 0.15)  # of the tokens that are visible in a selective step
DILATION = 1  # tokens, of the edit and of the visible mask, as ChorusSRDMask starts with
WORDS, CHANGED_WORDS = 24, 3  # tokens of a prompt, and how many the target's differ in
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_REPEATS = len(T95) + 1


@dataclass(frozen=True)
class Size:
    """A model to build.

    config: as the host detects it from a checkpoint; latent: [C, T, H, W]; text: tokens × width of the encoding;
    cell: pixels a side of a latent cell.
    """

    config: Mapping[str, Any]
    latent: tuple[int, int, int, int]
    text: tuple[int, int]
    cell: int


def _wan(dim: int, ffn: int, layers: int, heads: int, text: int = 4096) -> dict[str, Any]:
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": (1, 2, 2),
        "dim": dim,
        "ffn_dim": ffn,
        "num_layers": layers,
        "num_heads": heads,
        "text_dim": text,
        "freq_dim": 256,
        "in_dim": 16,
        "out_dim": 16,
    }


def _hunyuan(hidden: int, depth: int, heads: int, text: int = 3584) -> dict[str, Any]:
    return {
        "image_model": "hunyuan_video",
        "patch_size": [1, 1, 1],
        "in_channels": 65,
        "out_channels": 32,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": depth,
        "depth_single_blocks": 0,
        "context_in_dim": text,
        "vec_in_dim": None,
        "vision_in_dim": 1152,
        "axes_dim": [16, 56, 56],
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": False,
        "byt5": True,
        "use_cond_type_embedding": True,
        "meanflow": False,
        "meanflow_sum": True,
    }


_480P_WAN, _480P_HUNYUAN = (16, 21, 60, 104), (32, 21, 30, 52)  # 81 frames of 832×480, 32,760 tokens either way

SIZES = {
    ("wan-1.3b", "full"): Size(_wan(1536, 8960, 30, 12), _480P_WAN, (512, 4096), 8),
    ("wan-14b", "full"): Size(_wan(5120, 13824, 40, 40), _480P_WAN, (512, 4096), 8),
    ("hunyuan-1.5", "full"): Size(_hunyuan(2048, 54, 16), _480P_HUNYUAN, (128, 3584), 16),
    ("wan-1.3b", "small"): Size(_wan(256, 512, 3, 2, 64), (16, 2, 28, 28), (64, 64), 8),
    ("wan-14b", "small"): Size(_wan(256, 512, 4, 2, 64), (16, 2, 28, 28), (64, 64), 8),
    ("hunyuan-1.5", "small"): Size(_hunyuan(256, 2, 2, 64), (32, 2, 14, 14), (64, 64), 16),
}
MODELS = tuple(dict.fromkeys(model for model, _ in SIZES))


@dataclass(frozen=True)
class Schedule:
    """A schedule of `steps`; reuse, full_from: K1 and K2 as fractions of it; whole: it is sampled from end to end."""

    steps: int
    cfg: float
    reuse: float
    full_from: float
    whole: bool

    @property
    def name(self) -> str:
        return f"{self.steps} steps, " + (f"CFG {self.cfg:g}" if self.rows > 1 else "no CFG")

    @property
    def rows(self) -> int:
        """Rows of a step's batch: the host leaves the negative prompt out at CFG 1."""
        return 2 if self.cfg != 1.0 else 1


FEW = Schedule(4, 1.0, reuse=0.25, full_from=0.75, whole=True)
MANY = Schedule(50, 6.0, reuse=0.26, full_from=0.51, whole=False)


@dataclass(frozen=True)
class Case:
    """How a request is sampled. share: wanted share of visible tokens in the selective steps, None without masks."""

    name: str
    chorus: bool = True
    reuse: bool = False
    share: float | None = None
    amplified: bool = False


PLAIN, COLD, STAGE1 = Case("without Chorus", chorus=False), Case("cold"), Case("stage 1 only", reuse=True)
TGAA = Case("stage 1, TGAA", reuse=True, amplified=True)
SRD = tuple(Case(f"SRD {share:.0%}", reuse=True, share=share) for share in SHARES)
ALL_STAGES = Case(f"SRD {SHARES[1]:.0%}, TGAA", reuse=True, share=SHARES[1], amplified=True)
CASES = {FEW: (PLAIN, COLD, STAGE1, TGAA, *SRD, ALL_STAGES), MANY: (PLAIN, COLD, STAGE1, *SRD, ALL_STAGES)}


@dataclass(frozen=True)
class Bounds:
    """Steps [first, last) that are sampled, and the K1 and K2 of the whole schedule."""

    first: int
    last: int
    k1: int
    k2: int

    def kinds(self, case: Case) -> dict[str, int]:
        """How many steps a case skips, computes selectively and computes in full."""
        begin = max(self.first, self.k1) if case.reuse else self.first
        # The first step of stage 2 is a full one.
        selective = 0 if case.share is None else max(0, min(self.last, self.k2) - begin - 1)
        return {"skipped": begin - self.first, "selective": selective, "full": self.last - begin - selective}

    def equivalents(self, case: Case, visible: float | None) -> float:
        """The step equivalents that follow from K1, K2 and the visible share of the tokens."""
        kinds = self.kinds(case)
        return kinds["selective"] * (visible or 0.0) + kinds["full"]


@dataclass(frozen=True)
class Measured:
    """One request. Seconds of wall time: `stepping` from the first model call to the latent, `outside` the rest."""

    stepping: float
    outside: float
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

    def __add__(self, other: Estimate) -> Estimate:
        known = self.interval is not None and other.interval is not None
        interval = (self.interval**2 + other.interval**2) ** 0.5 if known else None  # type: ignore[operator]
        return Estimate(min(self.n, other.n), self.mean + other.mean, interval)

    def times(self, factor: float) -> Estimate:
        return Estimate(self.n, factor * self.mean, None if self.interval is None else factor * self.interval)


class BlockCounter:
    """Counts the tokens that enter a network's blocks, and notes when its first call begins."""

    def __init__(self, network: torch.nn.Module, synchronise: Callable[[], None]):
        self.blocks = [
            block
            for name in ("blocks", "double_blocks", "single_blocks")
            for block in getattr(network, name, ())  # Wan has the first, HunyuanVideo the others
        ]
        self.tokens = 0
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

    def _count(self, block: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["img"]
        self.tokens += x.shape[0] * x.shape[1]


class Bench:
    """Samples requests with one model of random weights; ComfyUI must be importable, its caches point to a folder."""

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype):
        self.device = device
        self.patcher = build_patcher(size.config, device, dtype)
        self.network: torch.nn.Module = self.patcher.model.diffusion_model
        self.blank = torch.zeros(1, *size.latent)
        grid = token_grid(size.latent, tuple(self.network.patch_size))  # type: ignore[arg-type]
        self.tokens = grid[0] * grid[1] * grid[2]
        self.prompts = encodings(*size.text)
        mask_grid = token_grid(size.latent, masks.WAN_PATCH)
        pixels = size.cell * masks.WAN_PATCH[1]
        self.regions = {share: regions_of(mask_grid, share) for share in SHARES}
        self.frames = {
            share: r.base[:1].float().repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)
            for share, r in self.regions.items()
        }
        self._seed = FIRST_NOISE_SEED

    def visible(self, case: Case) -> float | None:
        """The share of the tokens that a case's masks leave visible."""
        return None if case.share is None else float(self.regions[case.share].visible.float().mean())

    def bounds(self, case: Case, schedule: Schedule, *, whole: bool) -> Bounds:
        """What of a schedule a case samples: all, or for a hit step K1 after a skipped one, and a selective one."""
        import comfy.samplers

        sampling = self.patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", schedule.steps).tolist()
        shares = (schedule.reuse, schedule.full_from)
        k1, k2 = (steps_reached(sigmas, float(sampling.percent_to_sigma(share))) for share in shares)
        if whole:
            return Bounds(0, schedule.steps, k1, k2)
        return Bounds(k1 - 1 if case.reuse else k1, k1 + (1 if case.share is None else 2), k1, k2)

    def plan(self, case: Case, schedule: Schedule, cache: str = "source") -> Plan:
        """The plan as the nodes of a graph make it. A request without reuse never reads."""
        name = "target" if case.reuse else "source"
        mode = lookup.MODES[0] if case.reuse else lookup.MODES[2]
        settings = lookup.LookupSettings(f"the {name} prompt", 0.0, mode, cache, "conditioning")
        plan = lookup.look_up([self.patcher], {"samples": self.blank}, settings, conditioning=self.prompts[name])
        if case.reuse:
            plan = stages.reuse(plan, "fixed", schedule.reuse, 1.0, 0.0)
        if case.share is not None:
            plan = masks.with_regions(plan, "mask", self.frames[case.share], DILATION, DILATION, "none")
        if case.amplified:
            plan, _ = stages.amplification(plan, 1.0, "both", 0.5)
        if case.reuse:
            plan = stages.refinement(plan, "fixed", schedule.full_from)
        return plan

    def next_seed(self) -> int:
        """Another noise for every request: an identical one would be answered without sampling."""
        self._seed += 1
        return self._seed

    def remember_source(self) -> float:
        """Puts the source of all hits in the cache; returns the seconds of this model's first look-up."""
        began = time.perf_counter()
        plan = self.plan(COLD, FEW)
        self.synchronise()
        seconds = time.perf_counter() - began
        self.request(COLD, FEW, self.bounds(COLD, FEW, whole=True), plan=plan)
        return seconds

    def request(
        self,
        case: Case,
        schedule: Schedule,
        bounds: Bounds,
        *,
        seed: int | None = None,
        plan: Plan | None = None,
    ) -> Measured:
        """Samples one request. plan: one made before; else the case's is made, in the time that is measured."""
        import comfy.sample

        seed = self.next_seed() if seed is None else seed
        noise = comfy.sample.prepare_noise(self.blank, seed)
        positive = self.prompts["target" if case.reuse else "source"]
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        with torch.inference_mode(), BlockCounter(self.network, self.synchronise) as counter:
            if plan is None and case.chorus:
                plan = self.plan(case, schedule, "source" if case.reuse else "cold")
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
                start_step=bounds.first,
                last_step=bounds.last,
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
        return Measured(
            stepping=sampled - counter.began,
            outside=ended - began - (sampled - counter.began),
            equivalents=counter.tokens / whole_step,
            report=report,
            peak_bytes=torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None,
            latent=latent,
        )

    def fault(self, case: Case, bounds: Bounds, measured: Measured) -> str:
        """What is wrong with a measurement; "" if as much was computed as masks and K1 say."""
        if not bool(measured.latent.isfinite().all()):
            return "the latent is not finite"
        expected, counted = bounds.equivalents(case, self.visible(case)), measured.equivalents
        if abs(counted - expected) > 1e-6 * expected:
            return f"the blocks computed {counted:.4f} step equivalents, masks and K1 dictate {expected:.4f}"
        if measured.report is not None and abs(measured.report.step_equivalents - counted) > 1e-3:
            return f"the report says {measured.report.step_equivalents:.4f} step equivalents, the blocks {counted:.4f}"
        return ""

    def unsupported(self, case: Case, measured: Measured, bounds: Bounds, schedule: Schedule, seed: int) -> str:
        """The reason that Chorus gave for not doing what the case asks with this model; "" if it did."""
        report = measured.report
        if report is None:
            return ""
        if report.outcome == "bypassed" or (case.reuse and report.outcome != "hit"):
            return str(report.reason)
        if case.share is not None and not report.token_share:
            return "; ".join(map(str, report.notes))
        if case.amplified:
            without = self.request(replace(case, amplified=False), schedule, bounds, seed=seed)
            if torch.equal(without.latent, measured.latent):
                return f"TGAA changes nothing in {type(self.network).__name__}: it acts on Wan's text cross-attention"
        return ""

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build_patcher(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """The host's patcher around its own model, with random weights made on `device`."""
    import comfy.model_detection
    import comfy.model_management
    import comfy.model_patcher

    model_config = comfy.model_detection.model_config_from_unet_config(dict(config))
    if model_config is None:
        raise ValueError(f"this ComfyUI knows no model of the configuration {dict(config)}")
    model_config.sampling_settings["shift"] = SHIFT  # what ModelSamplingSD3 sets
    model_config.set_inference_dtype(dtype, None, device=device)
    model = model_config.get_model({}, "", device=device)
    model.diffusion_model.to(device)
    fill(model.diffusion_model)
    patcher = comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())
    patcher.load(device, full_load=True)  # moves nothing; it tells the host that the weights are loaded
    return patcher


@torch.no_grad()
def fill(network: torch.nn.Module) -> None:
    """Random weights under which activations keep their size: matrices 1/√inputs, norms 1, biases 0."""
    generator: torch.Generator | None = None
    for name, parameter in network.named_parameters():
        if generator is None:
            generator = torch.Generator(parameter.device).manual_seed(SEED)
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def encodings(length: int, width: int) -> dict[str, list]:
    """CONDITIONING of the source, the target and the negative prompt, zero-padded as UMT5's is."""
    generator = torch.Generator().manual_seed(SEED)
    source, other, negative = (torch.zeros(1, length, width) for _ in range(3))
    source[:, :WORDS] = torch.randn(1, WORDS, width, generator=generator)
    other[:, :WORDS] = torch.randn(1, WORDS, width, generator=generator)
    negative[:, :WORDS] = torch.randn(1, WORDS, width, generator=generator)
    target = source.clone()
    target[:, :CHANGED_WORDS] = other[:, :CHANGED_WORDS]
    named = {"source": source, "target": target, "negative": negative}
    return {name: [[rows, {"pooled_output": None}]] for name, rows in named.items()}


def regions_of(grid: tuple[int, int, int], share: float) -> Regions:
    """Masks around a centred rectangle in the frame's proportions, with nearest to `share` of the tokens visible."""
    _, height, width = grid

    def around(h: int, w: int) -> Regions:
        base = torch.zeros(grid, dtype=torch.bool)
        top, left = (height - h) // 2, (width - w) // 2
        base[:, top : top + h, left : left + w] = True
        return build(base, DILATION, DILATION)

    def grown(side: int, most: int) -> float:
        return min(most, side + 4 * DILATION) / most

    sides = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1)]
    near = [(h, w) for h, w in sides if abs(h / height - w / width) <= 0.1]
    h, w = min(near, key=lambda s: abs(grown(s[0], height) * grown(s[1], width) - share))
    return around(h, w)


@dataclass
class Row:
    """One case on one schedule: what was measured of it, and why not more."""

    schedule: Schedule
    case: Case
    status: str = "not measured"
    reason: str = "the time budget was used up before"
    measured: list[Measured] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return self.status in ("not measured", "measured", "extrapolated")

    def close(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    def keep(self, measured: Measured) -> None:
        self.measured.append(replace(measured, latent=measured.latent[:0]))  # only its figures are wanted on
        self.status, self.reason = ("measured" if self.schedule.whole else "extrapolated"), ""


class Measurement:
    """All rows of one model, measured in rounds until the budget or the repeats are used up."""

    def __init__(self, bench: Bench, deadline: float, repeats: int):
        self.bench = bench
        self.deadline = deadline
        self.repeats = repeats
        self.rows = [Row(schedule, case) for schedule, cases in CASES.items() for case in cases]
        self.first_lookup_seconds: float | None = None
        self.match_score: float | None = None
        self._step_seconds = 0.0  # of a warm full step with one batch row

    def run(self) -> Iterator[str]:
        """Measures; yields what was just done, after each round."""
        yield from self._warm_up()
        for number in range(self.repeats):
            done = [self._once(row) for row in self.rows if row.open]
            if not any(done):
                return
            yield f"round {number + 1} of at most {self.repeats}"

    def _warm_up(self) -> Iterator[str]:
        """The source, and one step of each row, which also tells what this model does not support."""
        if not self._safely(self.rows, self._source):
            return
        yield "the source is stored"
        for row in self.rows:
            self._safely([row], partial(self._try, row))
        yield "warm"

    def _source(self) -> None:
        self.first_lookup_seconds = self.bench.remember_source()

    def _try(self, row: Row) -> None:
        bounds, seed = self.bench.bounds(row.case, row.schedule, whole=False), self.bench.next_seed()
        if not self._affordable(row, bounds):
            return
        measured = self.bench.request(row.case, row.schedule, bounds, seed=seed)
        reason = self.bench.unsupported(row.case, measured, bounds, row.schedule, seed)
        if reason:
            row.close("not supported", reason)
        elif fault := self.bench.fault(row.case, bounds, measured):
            row.close("fault", fault)
        elif measured.report is not None and measured.report.match_score is not None:
            self.match_score = measured.report.match_score
        if row.case is PLAIN and row.open:
            self._step_seconds = measured.stepping / row.schedule.rows

    def _once(self, row: Row) -> bool:
        """Measures a row once more; False where the budget does not allow it."""
        bounds = self.bench.bounds(row.case, row.schedule, whole=row.schedule.whole)
        if not self._affordable(row, bounds):
            return False

        def sample() -> None:
            measured = self.bench.request(row.case, row.schedule, bounds)
            fault = self.bench.fault(row.case, bounds, measured)
            if fault:
                row.close("fault", fault)
            else:
                row.keep(measured)

        return self._safely([row], sample)

    def _affordable(self, row: Row, bounds: Bounds) -> bool:
        equivalents = bounds.equivalents(row.case, self.bench.visible(row.case))
        expected = max((m.seconds for m in row.measured), default=equivalents * row.schedule.rows * self._step_seconds)
        return time.perf_counter() + expected < self.deadline

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

    def find(self, schedule: Schedule, case: Case) -> Row | None:
        """The row, where it was measured."""
        return next((r for r in self.rows if (r.schedule, r.case) == (schedule, case) and r.measured), None)

    def full_step(self, schedule: Schedule) -> float | None:
        """Seconds of a full step of the model without Chorus."""
        plain = self.find(schedule, PLAIN)
        if plain is None:
            return None
        steps = self.bench.bounds(PLAIN, schedule, whole=schedule.whole)
        return statistics.mean(m.stepping for m in plain.measured) / (steps.last - steps.first)

    def seconds(self, row: Row) -> Estimate | None:
        """A whole request's wall time; extrapolated, None where a part of it was not measured."""
        if not row.measured:
            return None
        if row.schedule.whole:
            return Estimate.of([m.seconds for m in row.measured])
        kinds = self.bench.bounds(row.case, row.schedule, whole=True).kinds(row.case)
        around = self.find(FEW, row.case)
        full = row if row.case.share is None else self.find(row.schedule, STAGE1)
        if around is None or full is None:
            return None
        outside = Estimate.of([m.outside for m in around.measured])
        seconds = outside + Estimate.of([m.stepping for m in full.measured]).times(kinds["full"])
        if row.case.share is None:
            return seconds
        full_step = statistics.mean(m.stepping for m in full.measured)
        return seconds + Estimate.of([m.stepping - full_step for m in row.measured]).times(kinds["selective"])

    def row_json(self, row: Row) -> dict[str, Any]:
        """A row as it is written. Seconds and GB (10⁹ bytes); None for what was not measured."""
        bounds = self.bench.bounds(row.case, row.schedule, whole=True)
        seconds, step = self.seconds(row), self.full_step(row.schedule)
        status, reason = row.status, row.reason
        if row.measured and seconds is None:
            status, reason = "not measured", "it needs rows that were not: its 4-step one and stage 1's full step"
        plain = self.find(row.schedule, PLAIN)
        plain_seconds = self.seconds(plain) if plain else None
        visible = self.bench.visible(row.case)
        counted = None
        if row.measured:
            counted = row.measured[-1].equivalents if row.schedule.whole else bounds.equivalents(row.case, visible)
        peaks = [m.peak_bytes for m in row.measured if m.peak_bytes is not None]
        sampled = self.bench.bounds(row.case, row.schedule, whole=row.schedule.whole)
        report = row.measured[-1].report if row.measured else None
        return {
            "schedule": row.schedule.name,
            "case": row.case.name,
            "status": status,
            "reason": reason,
            "n": len(row.measured),
            "mean": rounded(seconds.mean if seconds else None),
            "interval": rounded(seconds.interval if seconds else None),
            "steps": row.schedule.steps,
            "steps_by_kind": bounds.kinds(row.case),
            "step_equivalents": rounded(counted),
            "token_share": report.token_share[-1] if report is not None and report.token_share else None,
            "sampled": {
                "steps": [sampled.first, sampled.last],
                "step_equivalents": rounded(row.measured[-1].equivalents if row.measured else None),
                "stepping_s": rounded(statistics.mean(m.stepping for m in row.measured) if row.measured else None),
                "outside_s": rounded(statistics.mean(m.outside for m in row.measured) if row.measured else None),
            },
            "peak_memory_gb": rounded(max(peaks) / 1e9 if peaks else None),
            "wall_over_limit": rounded(seconds.mean / (counted * step) if seconds and counted and step else None),
            "speedup": rounded(plain_seconds.mean / seconds.mean if seconds and plain_seconds else None),
        }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Chorus keeps its caches in `folder`."""
    before = os.environ.get("CHORUS_CACHE_DIR")
    os.environ["CHORUS_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        close_caches()
        if before is None:
            del os.environ["CHORUS_CACHE_DIR"]
        else:
            os.environ["CHORUS_CACHE_DIR"] = before


def import_comfyui(cpu: bool) -> None:
    """Make ComfyUI's modules importable, without its server; a ComfyUI that is there already stays as it is."""
    if "comfy.cli_args" in sys.modules:
        return
    sys.path.insert(0, str(comfyui.find()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.system()}, CPU"


def commit() -> str:
    """The checkout's commit, "" outside git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


def show(console: Console, schedule: Schedule, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows of one schedule, and below them why some were not measured."""
    made = Table("request", "n", "seconds", "± 95 %", "equiv.", "tokens", "GB", "÷ limit", "speedup")
    made.box, made.padding, made.columns[0].no_wrap = SIMPLE, (0, 1, 0, 0), True
    made.title = schedule.name if schedule.whole else f"{schedule.name}, extrapolated from one step of each kind"

    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for r in rows:
        made.add_row(
            r["case"],
            str(r["n"]),
            text(r["mean"], ".3f"),
            text(r["interval"], ".3f"),
            text(r["step_equivalents"], ".2f"),
            text(r["token_share"], ".1%"),
            text(r["peak_memory_gb"], ".1f"),
            text(r["wall_over_limit"], ".3f"),
            text(r["speedup"], ".2f"),
        )
    console.print(made)
    for r in rows:
        if r["status"] not in ("measured", "extrapolated"):
            console.print(f"{r['case']}: {r['status']}: {r['reason']}")


def main(arguments: Sequence[str]) -> int:
    """Measure one model. Returns 1 where a row computed another amount than masks and K1 dictate."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_latency", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: scaled down, on the CPU")
    parser.add_argument("--budget-seconds", type=float, default=420.0, help="begin nothing that would end later")
    parser.add_argument("--repeats", type=int, choices=range(1, MOST_REPEATS + 1), default=MOST_REPEATS, metavar="N")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu_latency_MODEL[_small].json")
    options = parser.parse_args(arguments)
    small = options.size == "small"
    if not small and not torch.cuda.is_available():
        parser.error("--size full needs a CUDA device; --size small runs on the CPU")
    output = options.output or RESULTS / f"gpu_latency_{options.model}{'_small' if small else ''}.json"
    import_comfyui(cpu=small)
    import comfy.ldm.modules.attention
    import comfy.model_management
    import comfyui_version

    console = Console()
    device = torch.device("cpu") if small else comfy.model_management.get_torch_device()
    size, dtype = SIZES[options.model, options.size], torch.float32 if small else torch.bfloat16
    result: dict[str, Any] = {
        "about": (__doc__ or "").strip(),
        "command": " ".join([parser.prog, *arguments]),
        "commit": commit(),
        "machine": machine(device),
        "comfyui": comfyui_version.__version__,
        "torch": torch.__version__,
        "attention": comfy.ldm.modules.attention.optimized_attention.__name__,
        "model": options.model,
        "size": options.size,
        "dtype": str(dtype).removeprefix("torch."),
        "config": dict(size.config),
        "latent": list(size.latent),
        "seeds": {"weights_and_prompts": SEED, "first_noise": FIRST_NOISE_SEED},
        "rows": [],
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, caches_in(Path(folder)):
        try:
            bench = Bench(size, device, dtype)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            result["out_of_memory"] = str(error).splitlines()[0]
            _write(result, output)
            console.print(f"{options.model} does not fit on {result['machine']}: {result['out_of_memory']}")
            return 0
        measurement = Measurement(bench, began + options.budget_seconds, options.repeats)
        for done in measurement.run():
            result |= {
                "tokens": bench.tokens,
                "first_lookup_seconds": rounded(measurement.first_lookup_seconds),
                "match_score": rounded(measurement.match_score),
                "full_step_seconds": {s.name: rounded(measurement.full_step(s)) for s in CASES},
                "seconds": round(time.perf_counter() - began, 1),
                "rows": [measurement.row_json(row) for row in measurement.rows],
            }
            _write(result, output)  # after each round, so that stopping early leaves results
            console.print(f"{result['seconds']:6.1f} s  {done}")
    for schedule in CASES:
        show(console, schedule, [row for row in result["rows"] if row["schedule"] == schedule.name])
    return int(any(row["status"] == "fault" for row in result["rows"]))


def _write(result: Mapping[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
