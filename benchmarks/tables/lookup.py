"""Time of a look-up by number of entries: `LocalCache.search` end to end, its index alone, the start, memory, recall.

The catalogs hold real rows, put in by the cache's own transactions, without files (a look-up reads none). Vectors are
the benchmark's prompts as the nodes embed them, and mixtures of them: a prompt, plus a share of the difference of two
others, plus a little white noise, so that they lie in clusters like prompts; queries are drawn the same way. A vector
has 1024 numbers. 10,000 entries are about what the default limit of 20 GB holds. Each request asks for the three
nearest. Recall: how often the first is the exact nearest. "start": opening the cache and answering the first request,
which reads all vectors; "first start": the first one of the process, which also loads FAISS.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from chorus.cache import LocalCache, NewEntry, Space
from chorus.cache.record import write_record

from .. import report
from ..prompts import stream, vectors, vidprom
from ..samples import KEPT, Bench, digest

SEED = 7
QUERIES = 400
EMBEDDER = "conditioning:umt5"
SPACE = Space("lookup", "", "Wan21", (1, 16, 21, 60, 104), "t2v", "flow")
CHUNK = 5000  # rows a transaction
SIGMAS = tuple(np.linspace(1, 0, 21).tolist())


@dataclass(frozen=True)
class Size:
    entries: int
    length: int  # D


SIZES = (Size(1000, 1024), Size(4000, 1024), Size(10_000, 1024), Size(100_000, 1024))


class Prompts:
    """Vectors like prompts', without end and the same each time: [n, D] float32 by chunk number."""

    def __init__(self, length: int):
        base = vectors([request.caption for request in stream(vidprom(), 600, SEED, style=8)])
        rng = np.random.default_rng(SEED)
        if length != base.shape[1]:
            base = base @ np.linalg.qr(rng.standard_normal((base.shape[1], length)))[0]
        self._base = base.astype(np.float32)

    def chunk(self, number: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([SEED, number])
        one, two, three = self._base[rng.integers(len(self._base), size=(3, count))]
        share = rng.uniform(0.0, 0.7, size=(count, 1)).astype(np.float32)
        white = rng.standard_normal(one.shape, dtype=np.float32) / np.float32(one.shape[1] ** 0.5)
        made = one + share * (two - three) + np.float32(0.1) * white
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def queries(self) -> np.ndarray:
        return self.chunk(10**6, QUERIES)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by number of entries. Needs no sampling: `bench` is not asked. Goes on after the last size it finished."""
    sizes = SIZES if full else SIZES[:2]
    rows = [kept(size) for size in sizes]
    by_entries = {str(row["entries"]): row for row in rows}
    summary: dict[str, Any] = {
        "lookup_ms_p50": {name: row["p50, ms"] for name, row in by_entries.items()},
        "lookup_ms_p99": {name: row["p99, ms"] for name, row in by_entries.items()},
        "recall_at_1": {name: row["recall@1"] for name, row in by_entries.items()},
    }
    if "100000" in by_entries:
        summary["startup_s_100k"] = {"100000": by_entries["100000"]["start, s"]}
    return report.Result(
        "lookup", "A look-up by entries", list(rows[0]), rows, [SEED], summary, summary_file="cache.json"
    )


def kept(size: Size, folder: Path = KEPT / "lookup") -> dict[str, Any]:
    """The row of a size: measured now, or by an earlier run of the same code that was stopped later."""
    code = digest("chorus/cache/*.py", "benchmarks/tables/lookup.py")
    name = f"{size.entries}x{size.length}-{code[:12]}"
    file = folder / f"{name}.json"
    if not file.exists():
        row = measured(size, folder / name)
        shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def measured(size: Size, place: Path) -> dict[str, Any]:
    prompts = Prompts(size.length)
    fill(place, size, prompts)
    queries = prompts.queries()
    before = memory()

    cache, first_start = started(place, queries[0])
    cache.close()
    del cache
    gc.collect()
    starts = []
    for _ in range(3):
        cache, seconds = started(place, queries[0])
        starts.append(seconds)
        used = memory() - before
        cache.close()
    cache, _ = started(place, queries[0])

    def nearest(query: np.ndarray) -> None:
        with cache._reading() as transaction:
            cache._index.nearest(transaction, query, EMBEDDER, SPACE.key(), 3)

    found = [cache.search(query, EMBEDDER, SPACE)[0].entry.id for query in queries]
    whole = times(queries, lambda query: cache.search(query, EMBEDDER, SPACE))
    alone = times(queries, nearest)
    elsewhere = times(queries[:50], lambda query: cache.search_elsewhere(query, EMBEDDER, SPACE))
    cache.close()
    right = [one == f"{number:032x}" for one, number in zip(found, best(size, prompts, queries), strict=True)]
    return {
        "entries": size.entries,
        "D": size.length,
        "p50, ms": quantile(whole, 0.5),
        "p99, ms": quantile(whole, 0.99),
        "index p50, ms": quantile(alone, 0.5),
        "index p99, ms": quantile(alone, 0.99),
        "elsewhere p50, ms": quantile(elsewhere, 0.5),
        "recall@1": report.estimate([float(one) for one in right]),
        "first start, s": round(first_start, 3),
        "start, s": report.estimate(starts),
        "memory, MB": round(used / 1e6),
    }


def fill(place: Path, size: Size, prompts: Prompts) -> None:
    """Put in the entries that are not there yet; ids are their numbers."""
    cache, record = LocalCache(place, max_bytes=2**60), records()
    there = cache.count()
    for start in range(there - there % CHUNK, size.entries, CHUNK):
        first, last = max(there, start), min(size.entries, start + CHUNK)
        with cache._catalog.writing() as transaction:
            for number, vector in enumerate(prompts.chunk(start // CHUNK, CHUNK)[first - start : last - start], first):
                transaction.insert(record(number), vector, "0" * 64, 1000)
    cache.close()


def records() -> Callable[[int], str]:
    """Records by number, as ChorusCacheStore makes them of 20-step runs."""
    latent = torch.empty(SPACE.shape, device="meta")  # of which a record tells only the shape
    new = NewEntry(
        space=SPACE,
        request="REQUEST",
        prompt="a red ball rolls left over the grass, cinematic, soft light, take NUMBER",
        embedder=EMBEDDER,
        vector=np.ones(1, np.float32),
        sigmas=SIGMAS,
        settings={"sampler": "euler", "seed": 5, "report": {"outcome": "cold", "note": "x" * 400}},
        seconds=60.0,
        is_source=True,
        parent=None,
        tensors=dict.fromkeys(["final", *(f"checkpoint/{sigma:.6f}" for sigma in SIGMAS[1:16])], latent),
    )
    made = write_record("ID", 1.7e9, new)

    def of(number: int) -> str:
        return (
            made.replace('"ID"', f'"{number:032x}"').replace("REQUEST", f"{number:064x}").replace("NUMBER", str(number))
        )

    return of


def started(place: Path, query: np.ndarray) -> tuple[LocalCache, float]:
    began = time.perf_counter()
    cache = LocalCache(place, max_bytes=2**60)
    cache.search(query, EMBEDDER, SPACE)
    return cache, time.perf_counter() - began


def best(size: Size, prompts: Prompts, queries: np.ndarray) -> list[int]:
    """Number of the exact nearest entry of each query, compared with all."""
    scores = np.full(len(queries), -2.0, np.float32)
    numbers = np.zeros(len(queries), np.int64)
    for start in range(0, size.entries, CHUNK):
        some = prompts.chunk(start // CHUNK, CHUNK)[: size.entries - start] @ queries.T
        rows = some.argmax(axis=0)
        top = some[rows, np.arange(len(queries))]
        numbers, scores = np.where(top >= scores, start + rows, numbers), np.maximum(top, scores)
    return numbers.tolist()


def times(queries: np.ndarray, work: Callable[[np.ndarray], object]) -> list[float]:
    """Milliseconds of each, after a few to warm up."""
    spent = []
    for query in (*queries[:10], *queries):
        began = time.perf_counter()
        work(query)
        spent.append(1000 * (time.perf_counter() - began))
    return spent[10:]


def quantile(spent: list[float], share: float) -> dict[str, Any]:
    return report.combined(lambda x: float(np.quantile(x, share)), spent)


def memory() -> int:
    """Bytes that this process holds."""
    gc.collect()
    return psutil.Process().memory_info().rss
