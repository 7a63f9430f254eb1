"""Whether the panel slows sampling: steps a second with and without somebody scrolling through it."""

from __future__ import annotations

import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chorus.cache import LocalCache, NewEntry, Space
from tools import demo_graph
from tools.demo_requests import SOURCE, SamplerWatch
from tools.server import ComfyServer

from .. import report
from ..samples import Bench

SEED = 131
PACE = 0.05  # seconds between the requests of a panel that is scrolled all the time
PAGE = 100
SPACE = Space("panel", "", "Wan21", (1, 16, 21, 1, 1), "t2v", "flow")
FRAMES, HEIGHT, WIDTH = 24, 148, 256  # the largest preview of a wide video


def measure(bench: Bench, full: bool) -> report.Result:
    """Steps a second of the small Wan on a real server, in turn alone and beside the panel. `bench` is not asked."""
    entries, repeats = (10_000, 12) if full else (200, 4)
    template = demo_graph.load_template()
    speeds: dict[bool, list[float]] = {False: [], True: []}
    asked = 0
    with tempfile.TemporaryDirectory(prefix="chorus-panel-", ignore_cleanup_errors=True) as folder:
        ids = _fill(Path(folder) / "default", entries)
        with ComfyServer(arguments=["--cache-none"], environment={"CHORUS_CACHE_DIR": folder}) as server:
            client = server.client()
            for number in range(2 * repeats + 1):
                graph = demo_graph.build(template, SOURCE.text, SEED + number, use_chorus=False)
                watch = SamplerWatch(graph.sampler)
                beside = number % 2 == 0
                with _Scrolling(server.url, ids if beside else []) as panel:
                    client.queue(graph.nodes, on_event=watch.on_event)
                asked += panel.answered
                if number:  # the first one loads the model
                    speeds[beside].append(watch.steps / watch.seconds)
    rows = [
        {"panel": "closed", "n": repeats, "steps/s": report.estimate(speeds[False])},
        {"panel": "scrolled all the time", "n": repeats, "steps/s": report.estimate(speeds[True])},
    ]
    kept = report.combined(lambda a, b: float(np.mean(a) / np.mean(b)), speeds[True], speeds[False])
    return report.Result(
        name="panel",
        title=f"Sampling beside the panel ({entries} entries, {asked} requests answered meanwhile)",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        summary={"speed kept beside the panel": kept},
    )


def _fill(folder: Path, count: int) -> list[str]:
    """Entries with previews of full size; returns their ids."""
    rng = np.random.default_rng(SEED)
    cache = LocalCache(folder)
    try:
        ids = []
        for number in range(count):
            vector = rng.standard_normal(64).astype(np.float32)
            frames = rng.integers(0, 255, (FRAMES, HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
            preview = torch.from_numpy(frames.repeat(4, axis=1).repeat(4, axis=2))
            new = NewEntry(
                space=SPACE,
                request=f"request {number}",
                prompt=f"prompt {number}",
                embedder="panel:64",
                vector=vector / np.linalg.norm(vector),
                sigmas=(1.0, 0.5, 0.0),
                settings={"sampler": "euler"},
                seconds=1.0,
                is_source=True,
                parent=None,
                tensors={"final": torch.zeros(SPACE.shape), "preview": preview},
            )
            ids.append(cache.put(new).id)
        return ids
    finally:
        cache.close()


class _Scrolling:
    """Asks for pages, previews and figures, one after the other, until the block ends."""

    def __init__(self, url: str, ids: list[str]):
        self._root = f"{url}/chorus/v1/caches/default"
        self._ids = ids
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._scroll)
        self.answered = 0

    def __enter__(self) -> _Scrolling:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _scroll(self) -> None:
        for number, entry_id in enumerate(self._ids * 1000):
            paths = [f"/entries/{entry_id}/preview"]
            if number % 12 == 0:
                paths += [f"/entries?limit={PAGE}&offset={number % len(self._ids)}", "/stats"]
            for path in paths:
                if self._ended.wait(PACE):
                    return
                with urllib.request.urlopen(self._root + path, timeout=60) as response:
                    response.read()
                self.answered += 1
