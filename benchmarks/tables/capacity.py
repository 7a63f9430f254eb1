"""How much cache is enough: hits and saved steps against its capacity, for Chorus and for NIRVANA's eviction.

Nothing is sampled: a stream of prompts is searched for, stored and evicted, and the share of the steps that a hit
skips follows from its similarity by each system's own rule. Chorus is the real LocalCache in a temporary folder; its
entries are small, but their parts have the proportions of real ones. NIRVANA is written here from its paper (arXiv
2312.04429): it keeps states of (prompt, K) and evicts the one with the least frequency × K.

Capacity counts cold runs, with all states that the system keeps of one. In both systems a hit is no source for others;
in Chorus its entry (the result) takes room too. Every request has another seed. If a prompt comes again, NIRVANA starts
from its last state, while Chorus samples it cold, since another seed asks for another version.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from chorus.cache import Entry, LocalCache, NewEntry, Space, eviction
from chorus.reuse.calibration import calibration_of

from .. import report
from ..prompts import Request, stream, vectors, vidprom, with_repeats
from ..samples import Bench

REPEATS = 0.3  # share of requests that come back to an earlier prompt, half of them with an edit; chosen here
STYLE = 8  # most style words: no video is made, so they harm none, and the stream is as unlike as VidProM
EMBEDDER = "conditioning:256"
SPACE = Space("capacity", "", "Wan21", (1, 16, 4, 20, 20), "t2v", "flow")  # 50 kB in half precision

# As ChorusCacheStore keeps a run of so many steps by default: five parts of the bytes are the final latent's, four
# the states' (`make bench ARGS=size`: 9 bits a value in all, of which the final latent takes 5).
STEPS = 20
STATES = (320, 64)  # 40 kB in half precision; small, but the catalog's 6 kB an entry must not count for much

NIRVANA_TABLE = ((0.95, 25), (0.90, 20), (0.85, 15), (0.75, 10), (0.65, 5))  # similarity above → K of 50 steps
NIRVANA_STEPS = 50


@dataclass
class State:
    """What is known of one (prompt, K). used: number of the request that stored or last used it."""

    frequency: int
    used: int


# The state with the lowest score is evicted; of equals, the oldest. LRU, the least recently used, is for comparison.
SCORES: dict[str, Callable[[int, State], int]] = {
    "LCBFU": lambda k, state: state.frequency * k,
    "LRU": lambda k, state: state.used,
}


class NirvanaCache:
    """States of (prompt, K) for every K of the table, found by the similarity of prompts.

    similarities: [N, N] of all prompts that will be asked for, by number. capacity: most states, None for no limit;
    ValueError when it does not hold one prompt's.
    """

    def __init__(self, similarities: np.ndarray, capacity: int | None, evict: str = "LCBFU"):
        if capacity is not None and capacity < len(NIRVANA_TABLE):
            raise ValueError(f"capacity of {capacity} states: one prompt has {len(NIRVANA_TABLE)}")
        self.states: dict[tuple[int, int], State] = {}
        self._similarities = similarities
        self._capacity = capacity
        self._score = SCORES[evict]
        self._prompts: dict[int, int] = {}  # prompt → how many states it has left

    def serve(self, prompt: int) -> float:
        """The share of the steps that this request skips; 0 for a miss, which is then stored."""
        k = self._start(prompt)
        if not k:
            self._store(prompt)
        return k / NIRVANA_STEPS

    def _start(self, prompt: int) -> int:
        """K of the state to start from, 0 for none: of the nearest prompt, the last that is not too late."""
        if not self._prompts:
            return 0
        kept = list(self._prompts)
        nearest = kept[int(self._similarities[prompt, kept].argmax())]
        allowed = [k for above, k in NIRVANA_TABLE if self._similarities[prompt, nearest] > above]
        k = max((k for k in allowed if (nearest, k) in self.states), default=0)
        if k:
            self.states[nearest, k].frequency += 1
            self.states[nearest, k].used = prompt
        return k

    def _store(self, prompt: int) -> None:
        while self._capacity is not None and len(self.states) + len(NIRVANA_TABLE) > self._capacity:
            self._evict()
        self.states |= {(prompt, k): State(frequency=1, used=prompt) for _, k in NIRVANA_TABLE}
        self._prompts[prompt] = len(NIRVANA_TABLE)

    def _evict(self) -> None:
        prompt, k = min(self.states, key=lambda key: self._score(key[1], self.states[key]))
        del self.states[prompt, k]
        self._prompts[prompt] -= 1
        if not self._prompts[prompt]:
            del self._prompts[prompt]


class ChorusCache:
    """LocalCache used as the nodes use it: look-up, then the finished run is stored, then the source's hit counted."""

    def __init__(self, cache: LocalCache):
        self.cache = cache
        self._calibration = calibration_of(EMBEDDER)

    def serve(self, number: int, prompt: str, vector: np.ndarray) -> float:
        """The share of the steps that request `number` skips in stage 1, 0 for a miss; stored either way."""
        best = next(iter(self.cache.search(vector, EMBEDDER, SPACE, k=1)), None)
        if best is None or best.score < self._calibration.threshold or best.entry.prompt == prompt:
            self.put(number, prompt, vector, parent=None)
            return 0.0
        saved = self._calibration.reuse(best.score).of(STEPS)
        self.put(number, prompt, vector, parent=best.entry.id, seconds=(1 - saved) * STEPS)
        self.cache.record_hit(best.entry.id, saved_seconds=saved * STEPS)
        return saved

    def put(
        self, number: int, prompt: str, vector: np.ndarray, parent: str | None, seconds: float = float(STEPS)
    ) -> Entry:
        """Store a finished run: all states of a cold one, only the result of a hit. A step is taken for a second."""
        tensors = {"final": torch.zeros(SPACE.shape, dtype=torch.half)}
        if parent is None:
            tensors["tokens"] = torch.zeros(STATES, dtype=torch.half)  # in the states' place: only bytes count here
        new = NewEntry(
            space=SPACE,
            request=f"{number:032x}",
            prompt=prompt,
            embedder=EMBEDDER,
            vector=vector,
            sigmas=(1.0, 0.0),
            settings={},
            seconds=seconds,
            is_source=parent is None,
            parent=parent,
            tensors=tensors,
        )
        return self.cache.put(new)


def bytes_of(capacity: int, vector: np.ndarray) -> int:
    """The size limit of a LocalCache that holds so many cold runs with prompts of up to 250 characters."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cache = LocalCache(Path(folder))
        size = ChorusCache(cache).put(0, "x" * 250, vector, parent=None).bytes
        cache.close()
    return capacity * size


def serve_with_chorus(
    requests: Sequence[Request], points: np.ndarray, capacity: int | None, evict: str = "lru"
) -> np.ndarray:
    """The share of the steps that each request skips: [N]. capacity in cold runs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        limit = 2**40 if capacity is None else bytes_of(capacity, points[0])
        cache = LocalCache(Path(folder), max_bytes=limit, eviction=evict)
        system = ChorusCache(cache)
        saved = [system.serve(i, r.caption.text, points[i]) for i, r in enumerate(requests)]
        cache.close()
    return np.array(saved)


def serve_with_nirvana(
    requests: Sequence[Request], points: np.ndarray, capacity: int | None, evict: str = "LCBFU"
) -> np.ndarray:
    """The share of the steps that each request skips: [N]. capacity in cold runs."""
    states = None if capacity is None else capacity * len(NIRVANA_TABLE)
    cache = NirvanaCache(points @ points.T, states, evict)
    return np.array([cache.serve(i) for i in range(len(requests))])


# Requests, their vectors [N, D], capacity in cold runs → share of the steps that each request skips [N].
POLICIES: dict[str, Callable[[Sequence[Request], np.ndarray, int | None], np.ndarray]] = {
    "Chorus": partial(serve_with_chorus, evict=eviction.DEFAULT),
    "Chorus, LRU": serve_with_chorus,
    "NIRVANA, LCBFU": serve_with_nirvana,
    "NIRVANA, LRU": partial(serve_with_nirvana, evict="LRU"),
}


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows for every policy at every capacity, on the same two streams. Needs no sampling: `bench` is not asked.

    A row's hit rate comes with Wilson's 95 % interval, its saved share of all steps with a bootstrap one; both take
    requests for independent.
    """
    seeds = (1, 2) if full else (1,)
    count, capacities = (800, (25, 50, 100, 200, 400, None)) if full else (160, (10, 40, None))
    rows = []
    for recent in (False, True):
        streams = []
        for seed in seeds:
            requests = with_repeats(stream(vidprom(), count, seed, style=STYLE), REPEATS, seed, recent=recent)
            streams.append((requests, vectors([request.caption for request in requests])))
        for capacity in capacities:
            for name, serve in POLICIES.items():
                saved = np.concatenate([serve(requests, points, capacity) for requests, points in streams])
                rows.append(
                    {
                        "repeats of": "recent prompts" if recent else "popular prompts",
                        "capacity": "unlimited" if capacity is None else capacity,
                        "policy": name,
                        "n": len(saved),
                        "hit rate": proportion(saved > 0),
                        "steps saved": report.estimate(saved.tolist()),
                    }
                )
    return report.Result("capacity", "Cache capacity, in cold runs", list(rows[0]), rows, seeds)


def proportion(hits: np.ndarray) -> dict[str, Any]:
    """Share of true values, with Wilson's 95 % interval: [N] bool → mean, low, high, n."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    low, high = round(float(interval.low), 5), round(float(interval.high), 5)
    return {"mean": round(float(hits.mean()), 5), "low": low, "high": high, "n": len(hits)}
