"""The demo's requests, and how they go through the API of a server with an empty cache."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from small_wan import judge
from small_wan.scenes import Caption

from . import demo_graph
from .client import ComfyClient
from .client import Progress as Step
from .server import ComfyServer

SEED = 1

SOURCE = Caption("red", "circle", "up", "teal")
TARGET = Caption("yellow", "circle", "up", "teal")
UNLIKE = Caption("pink", "cross", "right", "olive", second=("cyan", "square", "left"), template=2)

_FIGURES = (
    "outcome",
    "reason",
    "match_score",
    "source_prompt",
    "looked",
    "k1",
    "k2",
    "steps",
    "steps_computed",
    "step_equivalents",
    "token_share",
    "sampling_s",
    "chorus_s",
)


class DemoFailure(RuntimeError):
    """The demo cannot run or did not show what it should; the message says what and what to do."""


@dataclass(frozen=True)
class Request:
    """One prompt to queue. `expected`: the outcome it must have; None samples it without Chorus."""

    name: str
    caption: Caption
    expected: str | None


REQUESTS = (
    Request("cold", SOURCE, "miss"),
    Request("hit", TARGET, "hit"),
    Request("miss", UNLIKE, "miss"),
    Request("identical", TARGET, "identical"),
)
TARGET_COLD = Request("target_cold", TARGET, None)
"""The second prompt without Chorus, for comparison; last, so that it helps none of the four."""
WARM_UP = Request("warm_up", UNLIKE, None)
"""Sampled first without Chorus and not shown: it loads the model, so that the times of the others compare."""


@dataclass
class Video:
    """What came of a request. `frames`: uint8 [T, H, W, 3]; `masks`: as ChorusCacheStore shows them (docs/routes.md),
    None without; `files`: kind to file name.
    """

    request: Request
    figures: dict[str, Any]
    frames: np.ndarray
    masks: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> dict[str, bool]:
        """Which of the prompt's attributes the video shows."""
        verdict = judge.correct(self.frames / 255, self.request.caption)
        return {name: bool(shown) for name, shown in verdict.items()}

    def as_json(self) -> dict[str, Any]:
        """The request's item in report.json."""
        named = {"name": self.request.name, "prompt": self.request.caption.text}
        return named | self.figures | {"judged": self.judged, "files": self.files}


class SamplerWatch:
    """Follows the sampler of one graph over the websocket: how many steps it makes, for how long."""

    def __init__(self, sampler: str) -> None:
        self._sampler = sampler
        self._began: float | None = None
        self.steps = 0
        self.seconds = 0.0

    def on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take note of a websocket message."""
        if kind == "progress" and data["node"] == self._sampler:
            self.steps = int(data["value"])
        elif kind == "executing":
            now = time.perf_counter()
            if self._began is not None:
                self.seconds, self._began = now - self._began, None
            if data["node"] == self._sampler:
                self._began = now


def sample_all(template: demo_graph.Graph, console: Console, cache_copy: Path) -> tuple[list[Video], dict[str, Any]]:
    """Queue every request, `TARGET_COLD` last. Returns the videos and the server's /system_stats.

    cache_copy: folder for the cache as it is at the end, in place of an earlier demo's.

    Raises what `ComfyServer` and `ComfyClient.queue` do, and `DemoFailure`.
    """
    requests = (WARM_UP, *REQUESTS, TARGET_COLD)
    columns = (SpinnerColumn(), TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn())
    videos = []
    with (
        tempfile.TemporaryDirectory(prefix="chorus-demo-cache-") as cache,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        bar = progress.add_task("starting ComfyUI", total=len(requests))
        # By default ComfyUI keeps the outputs of every graph: it would answer the repeated one itself.
        with ComfyServer(arguments=["--cache-classic"], environment={"CHORUS_CACHE_DIR": cache}) as server:
            client = server.client()
            system: dict[str, Any] = client.get("/system_stats")
            progress.update(bar, description="all requests")
            for index, request in enumerate(requests):
                steps = progress.add_task(f"  {request.name}", total=None)

                def advance(step: Step, index: int = index, steps: TaskID = steps) -> None:
                    progress.update(steps, completed=step.value, total=step.maximum)
                    progress.update(bar, completed=index + step.value / step.maximum)

                video = _sample(client, template, request, advance)
                if request is not WARM_UP:
                    videos.append(video)
                progress.remove_task(steps)
                progress.update(bar, completed=index + 1)
        shutil.rmtree(cache_copy, ignore_errors=True)
        shutil.copytree(Path(cache) / "default", cache_copy)
    return videos, system


def _sample(
    client: ComfyClient, template: demo_graph.Graph, request: Request, on_progress: Callable[[Step], None]
) -> Video:
    graph = demo_graph.build(template, request.caption.text, SEED, use_chorus=request.expected is not None)
    watch = SamplerWatch(graph.sampler)
    outputs = client.queue(graph.nodes, on_progress, on_event=watch.on_event)["outputs"]
    masks = None
    if request.expected is None:
        figures = {
            "steps": graph.steps,
            "steps_computed": watch.steps,
            "step_equivalents": float(watch.steps),
            "sampling_s": watch.seconds,
        }
    else:
        try:
            (report,) = outputs[graph.store]["chorus"]
        except KeyError:
            said = outputs.get(graph.store, {}).get("text")
            raise DemoFailure(f"request '{request.name}': ChorusCacheStore gave no figures, it says {said}") from None
        figures, masks = {name: report[name] for name in _FIGURES}, report["masks"]
    return Video(request, figures, _images(client, outputs[graph.frames]), masks)


def _images(client: ComfyClient, output: Mapping[str, Any]) -> np.ndarray:
    """The images a PreviewImage shows, uint8 [T, H, W, 3]; PNG, so exact."""
    pictures = (Image.open(io.BytesIO(client.view(file))) for file in output["images"])
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
