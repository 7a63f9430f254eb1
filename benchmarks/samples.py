"""Sampling for the benchmarks: through the real host, every sample kept, so that a run goes on where it stopped.

A sample is known by what shaped it: the request, the system, the source, the weights and, where the cache was read,
the code of Chorus. Tables that ask for the same sample share it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from chorus.reuse.course import CourseRule
from small_wan import judge
from tools import inprocess
from tools.demo_graph import CHECKOUT, Graph, only

from . import metrics
from .systems import COLD, Request, SmallWan, Subject, System, distilled, graph

KEPT = CHECKOUT / "bench_output"
_Item, _Made = TypeVar("_Item"), TypeVar("_Made")


class Host(Protocol):
    """Something that runs graphs."""

    def run(self, made: Graph) -> tuple[np.ndarray, dict | None, float]:
        """(frames [T, H, W, 3], the store node's report if it ran, seconds)."""

    def close(self) -> None: ...


class InProcess:
    """ComfyUI in this process."""

    def __init__(self, caches: Path, booted: inprocess.ComfyHost | None = None) -> None:
        """caches: the folder of all caches, kept so that a source is sampled once; booted: one that runs already."""
        os.environ["CHORUS_CACHE_DIR"] = str(caches.absolute())
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.host = booted or inprocess.boot(Path(self._folder.name))
        self.sampler_seconds = 0.0  # of the last graph's KSampler
        self._time_sampler(importlib.import_module("nodes"))

    def _time_sampler(self, nodes: Any) -> None:
        inner = nodes.common_ksampler

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*arguments, **options)
            finally:
                self.sampler_seconds = time.perf_counter() - began

        nodes.common_ksampler = timed

    @contextmanager
    def going_by(self, rule: CourseRule | None, highest: float | None, steps: int) -> Iterator[None]:
        """Look and join with so many steps by this rule and bound, instead of the calibrated ones; see `System`."""
        module = self.host.module("chorus.reuse.course")
        calibrated = module.calibrated
        looks = calibrated()
        if rule is not None:
            looks = replace(looks, rules={steps: module.CourseRule(**vars(rule))})
        if highest is not None:
            looks = replace(looks, cut=replace(looks.cut, highest=highest))
        module.calibrated = lambda: looks
        try:
            yield
        finally:
            module.calibrated = calibrated

    def run(self, made: Graph) -> tuple[np.ndarray, dict | None, float]:
        began = time.perf_counter()
        history = self.host.execute(made)
        seconds = time.perf_counter() - began
        frames = self.host.output(only(made, "VAEDecode"))[0][0].cpu().numpy()
        shown = [o["chorus"][0] for o in history["outputs"].values() if "chorus" in o]
        return frames, shown[0] if shown else None, seconds

    def forget_caches(self) -> None:
        """Close the open caches: each source has one of its own."""
        self.host.module("chorus.comfy.caches").close_caches()

    def close(self) -> None:
        self.forget_caches()
        self._folder.cleanup()


@cache
def digest(*patterns: str) -> str:
    """Of the files of the checkout that match."""
    found = sorted(file for pattern in patterns for file in CHECKOUT.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in found)).hexdigest()[:16]


def measured_digest(subject: Subject, request: Request) -> str:
    """Of everything but Chorus that a sample depends on: the subject's files, the template, the measures."""
    files = (*subject.files, *(subject.distillation if distilled(request) else ()))
    template = f"workflows/api/{subject.templates[distilled(request)]}.json"
    return digest(*files, template, "benchmarks/metrics.py", "benchmarks/systems.py", "tools/demo_graph.py")


def code_digest(subject: Subject, request: Request) -> str:
    """Of everything that a sample from the cache depends on."""
    return measured_digest(subject, request) + digest("chorus/**/*.py", "chorus/**/*.json", "nodes/*.py")


def _shaped_by(subject: Subject, request: Request, system: System, source: Request | None) -> str:
    code = (code_digest if system.reads else measured_digest)(subject, request)
    parts = [asdict(request), asdict(system) | {"name": ""}, asdict(source) if source and system.reads else None, code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Bench:
    """Samples requests under systems. kept: the folder of finished samples."""

    def __init__(
        self,
        kept: Path = KEPT,
        subject: Subject | None = None,
        host: Host | None = None,
        videos: Path | None = None,
        frames: Path | None = None,
        order: int | None = None,
    ):
        """order: of what `each` makes, for processes that share the work; None for the given one.

        videos: a folder where every video that is sampled is written, for eyes and for other tools' measures.

        frames: likewise, in eight bits and else exactly, for measures that compare videos.
        """
        self._videos, self._frames = videos, frames
        self.subject: Any = subject or SmallWan()
        self._host = host
        self._kept = kept
        kept.mkdir(parents=True, exist_ok=True)
        self._file = kept / f"samples-{os.getpid()}.jsonl"
        self._samples: dict[str, dict] = {}
        self._order = order
        self._opened = 0
        self._count = [0]  # of samples made by this process; shared with what `of` gives
        self._read: dict[Path, int] = {}  # bytes of each file of samples
        self._read_samples()

    def _read_samples(self) -> None:
        """Read what this and other processes have sampled since the last time."""
        for file in self._kept.glob("samples-*.jsonl"):
            with file.open("rb") as kept:
                kept.seek(self._read.get(file, 0))
                new = kept.read()
            whole = new[: new.rfind(b"\n") + 1]  # a line at the end may not be complete yet
            self._read[file] = self._read.get(file, 0) + len(whole)
            for line in whole.decode("utf-8").splitlines():
                try:
                    sample = json.loads(line)
                except ValueError:
                    continue  # an incomplete line of a run that was killed
                self._samples[sample["id"]] = sample

    @property
    def host(self) -> Any:
        """The host, started when it is first needed."""
        if self._host is None:
            self._host = InProcess(self._kept / "caches")
        return self._host

    def close(self) -> None:
        if self._host is not None:
            self._host.close()

    def of(self, subject: Any) -> Bench:
        """A bench for another subject on the same host, whose samples lie apart and whose videos are kept."""
        kept = self._kept / subject.name.replace(" ", "_")
        bench = Bench(kept, subject, self.host, frames=kept / "frames", order=self._order)
        bench._count = self._count
        return bench

    def each(self, items: Sequence[_Item], make: Callable[[_Item], _Made]) -> list[_Made]:
        """`make` of every item, in an order of this process's own where several share the work."""
        numbers = list(range(len(items)))
        if self._order is not None:
            random.Random(self._order).shuffle(numbers)
        made = {number: make(items[number]) for number in numbers}
        return [made[number] for number in range(len(items))]

    @property
    def sampled(self) -> int:
        """How many samples this process has made, for all subjects together."""
        return self._count[0]

    def frames(self, sample: dict) -> np.ndarray:
        """The video of a sample, [T, H, W, 3] in [0, 1], where this bench keeps them."""
        assert self._frames is not None
        return np.load(self._frames / f"{sample['id']}.npy").astype(np.float32) / 255

    def sample(self, request: Request, system: System = COLD, source: Request | None = None) -> dict:
        """The sample: outcome, cost, alignment and quality of one request. A system that reads needs a source."""
        if system.source_noise and source is not None:
            request = Request(**{**vars(request), "seed": source.seed})
        name = _shaped_by(self.subject, request, system, source)
        return self.once(name, lambda: {"system": system.name, **self._sample(name, request, system, source)})

    def once(self, name: str, make: Callable[[], dict]) -> dict:
        """What `make` gives, kept under `name`: made once, also over several runs of the bench."""
        if name not in self._samples:
            self._read_samples()
        if name not in self._samples:
            sample = {"id": name, **make()}
            with self._file.open("a", encoding="utf-8") as kept:
                kept.write(json.dumps(sample) + "\n")
            self._samples[name] = sample
            self._count[0] += 1
        return self._samples[name]

    def overlap(self, request: Request, source: Request) -> float | None:
        """Intersection over union, on the token grid, of the attention mask with the source's main object.

        The judge fits the object to the source's own video; None where it is not the one the prompt asked for.
        """
        system = System("mask", k1=1, k2=2, edit_dilation=0, visible_dilation=0, method="early start")
        name = "overlap " + _shaped_by(self.subject, request, system, source)
        return self.once(name, lambda: {"iou": self._overlap(request, system, source)})["iou"]

    def _overlap(self, request: Request, system: System, source: Request) -> float | None:
        assert source.caption is not None
        frames, _, _ = self._run(source, System("source", reads=False), None, "off")
        if not all(judge.correct(frames, source.caption).values()):
            return None
        made = graph(self.subject, request, system, cache=self.cache_of(source), mode="read only")
        self.host.run(made)
        plan = self.host.host.output(only(made, "ChorusSRDMask"))[0][0]
        regions = self.host.host.module("chorus.comfy.techniques.selective").regions_of(plan)
        if regions is None:
            return 0.0
        place = torch.from_numpy(judge.main_mask(frames, source.caption))
        grid = tuple(regions.grid)
        truth = torch.nn.functional.adaptive_max_pool3d(place[None, None], grid)[0, 0] > 0.5
        found = regions.base
        return float((truth & found).sum() / (truth | found).sum())

    def _sample(self, name: str, request: Request, system: System, source: Request | None) -> dict:
        if system.reads:
            if source is None:
                raise ValueError(f"system {system.name!r} reads the cache: give it a source")
            cache_name = self.cache_of(source, system.precision, system.rule)
            frames, report, seconds = self._run(request, system, cache_name, "read only")
        elif system.easycache is not None:  # what it skipped is told by a run that only writes
            frames, report, seconds = self._run(request, system, "easycache", "write only")
        else:
            frames, report, seconds = self._run(request, system, None, "off")
            report = {"outcome": "cold", "step_equivalents": float(request.steps), "steps_computed": request.steps}
        if self._frames is not None:
            self._frames.mkdir(parents=True, exist_ok=True)
            kept = (metrics.small(frames, self.subject.side) * 255).round().astype(np.uint8)
            np.save(self._frames / f"{name}.npy", kept)
        if self._videos is not None:
            write_video(frames, self._videos / f"{request.steps} steps" / system.name / f"{_file_name(request)}.mp4")
        return self._told(frames, report, seconds, request)

    def live(self, request: Request, system: System, cache_name: str) -> dict:
        """One request as users run it: reads and writes a cache that others share. Not kept."""
        frames, report, seconds = self._run(request, system, cache_name, "read and write")
        return self._told(frames, report, seconds, request)

    def timed(self, request: Request, system: System, source: Request | None) -> dict:
        """One run of a request for its wall time, never kept. A system that reads, without a source, is a miss.

        `seconds` is the whole graph's, `sampler_seconds` the KSampler's.
        """
        if not system.reads:
            _, report, seconds = self._run(request, system, None, "off")
        elif source is None:
            _, report, seconds = self._run(request, system, f"timed-{uuid.uuid4().hex[:12]}", "read and write")
        else:
            _, report, seconds = self._run(request, system, self.cache_of(source, system.precision), "read only")
        return {**(report or {}), "seconds": seconds, "sampler_seconds": self.host.sampler_seconds}

    def _told(self, frames: np.ndarray, report: dict | None, seconds: float, request: Request) -> dict:
        if report is None:
            raise RuntimeError(f"the store node of {request.prompt!r} reported nothing")
        told = ("outcome", "reason", "match_score", "k1", "k2", "step_equivalents", "steps_computed", "token_share")
        told += ("looked", "masks")
        told += ("sampling_s", "chorus_s", "notes")
        return {
            **{name: report.get(name) for name in told},
            **self.measured(frames, request),
            "seconds": round(seconds, 4),
        }

    def measured(self, frames: np.ndarray, request: Request) -> dict:
        """Alignment and quality of a video."""
        return quality(frames, self.subject.side) | self.subject.measured(frames, request)

    def _run(self, request: Request, system: System, cache_name: str | None, mode: str):
        made = graph(self.subject, request, system, cache=cache_name, mode=mode)
        if system.rule is None and system.highest is None:
            return self.host.run(made)
        with self.host.going_by(system.rule, system.highest, request.steps):
            return self.host.run(made)

    def cache_of(self, source: Request, precision: str | None = None, rule: CourseRule | None = None) -> str:
        """The cache that holds the source and nothing else, sampled cold. A rule says what is kept for looks."""
        parts = [repr(source), code_digest(self.subject, source), precision, sorted(rule.looks) if rule else None]
        name = f"bench-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
        kept = System("source", reads=False, precision=precision, rule=rule)
        self.once(f"source {name}", lambda: self._fill(name, source, kept))
        self._opened += 1
        if self._opened % 32 == 0:
            self.host.forget_caches()
        return name

    def _fill(self, name: str, source: Request, kept: System) -> dict:
        self._run(source, kept, name, "write only")
        return {"cache": name}


def _file_name(request: Request) -> str:
    return f"{re.sub(r'[^a-z0-9]+', ' ', request.prompt.lower())[:80].strip()}, seed {request.seed}"


def write_video(frames: np.ndarray, file: Path, fps: int = 16) -> None:
    """Write [T, H, W, 3] in [0, 1] as an MP4 of H.264 that looks the same; fps: Wan's own."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as video:
        height, width = (size // 2 * 2 for size in frames.shape[1:3])  # H.264 halves the colours' size
        stream = video.add_stream("h264", fps, {"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in (frames[:, :height, :width] * 255).round().astype(np.uint8):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())


def quality(frames: np.ndarray, side: int = metrics.SIDE) -> dict:
    """The measures of a video that do not depend on its prompt, taken at a height of `side` pixels."""
    return {
        "sharpness": metrics.sharpness(frames, side),
        "flicker": metrics.flicker(frames, side),
        "seams": metrics.seams(frames, side),
        "details": metrics.details(frames),
        "features": [round(float(x), 6) for x in metrics.features(frames, side)],
    }


def of(samples: Sequence[dict], name: str) -> np.ndarray:
    """One measure of many samples, [N]."""
    return np.array([s[name] for s in samples], float)
