"""One worker of the table `load`: fills its share of a shared cache, waits for a line, then mixes operations.

    load_worker URL BLOBS TENANT FOLDER INDEX COUNT SECONDS

FOLDER/INDEX.jsonl gets a line for each operation: [what, seconds it took, how it ended, entry id, number].
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chorus.cache import CacheError, Entry, EntryMissing, NewEntry, Space
from chorus.cache.shared import Settings, SharedCache

EMBEDDER, LENGTH = "load", 256
SPACE = Space("load", "", "Wan21", (1, 16, 4, 8, 8), "t2v", "flow")  # 8 kB in half precision
MIX = (("look-up", 0.75), ("store", 0.20), ("pin", 0.02), ("forget", 0.02), ("list", 0.01))
TIER_BYTES = 2 * 2**20  # small, so that most loads ask the store


def vector(number: int) -> np.ndarray:
    """[D] float32 of unit norm."""
    drawn = np.random.default_rng(number).standard_normal(LENGTH).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def content(number: int) -> torch.Tensor:
    """The final latent, in half precision."""
    return torch.from_numpy(np.random.default_rng(number).standard_normal(SPACE.shape, np.float32)).half()


def new(number: int) -> NewEntry:
    """Entry `number`; everything in it follows from that."""
    return NewEntry(
        space=SPACE,
        request=f"request {number:012d}",
        prompt=f"prompt {number:012d}",
        embedder=EMBEDDER,
        vector=vector(number),
        sigmas=(1.0, 0.0),
        settings={"number": f"{number:012d}"},
        seconds=1.0,
        is_source=True,
        parent=None,
        tensors={"final": content(number)},
    )


class Worker:
    """Operations on `cache`, each noted in `log`."""

    def __init__(self, cache: SharedCache, log: Any, index: int):
        self._cache = cache
        self._log = log
        self._chance = np.random.default_rng([index, 1])
        self._next = index * 10**9
        self._mine: list[Entry] = []

    def store(self) -> None:
        """Store the next entry."""
        number = self._next
        self._next += 1
        made = new(number)
        if (entry := self._timed("store", lambda: self._cache.put(made), number)) is not None:
            self._mine.append(entry)

    def mix(self) -> None:
        """Do one operation, drawn by `MIX`."""
        what = self._chance.choice([name for name, _ in MIX], p=[share for _, share in MIX])
        getattr(self, {"look-up": "look_up"}.get(what, what))()

    def look_up(self) -> None:
        """Search, load the best match and compare it, count the hit: what a run with a hit asks of a cache."""
        asked = self._chance.integers(16) * 10**9 + self._chance.integers(max(1, self._next % 10**9))
        query = vector(int(asked))
        found = self._timed("search", lambda: self._cache.search(query, EMBEDDER, SPACE, 3))
        if not found:
            return
        entry, number = found[0].entry, int(found[0].entry.settings["number"])
        loaded = self._timed("load", lambda: self._cache.load(entry.id), number, entry.id)
        if loaded is None:
            return
        if not torch.equal(loaded["final"], content(number)) or entry.prompt != f"prompt {number:012d}":
            self._note("wrong", 0.0, "", entry.id, number)
        self._timed("count a hit", lambda: self._cache.record_hit(entry.id, 1.0))

    def pin(self) -> None:
        """Pin an entry of its own and unpin it again."""
        if self._mine:
            entry = self._mine[-1]
            for pinned in (True, False):
                self._timed("pin", lambda pinned=pinned: self._cache.pin(entry.id, pinned))

    def forget(self) -> None:
        """Forget an entry of its own."""
        if self._mine:
            entry = self._mine.pop(int(self._chance.integers(len(self._mine))))
            self._timed("forget", lambda: self._cache.forget(entry.id) or True, None, entry.id)

    def list(self) -> None:
        """List a page and ask for the statistics, as a panel does."""
        self._timed("list", lambda: self._cache.entries(50))
        self._timed("statistics", self._cache.stats)

    def _timed(self, what: str, call: Callable, number: int | None = None, entry_id: str = "") -> Any:
        began = time.perf_counter()
        try:
            result, how = call(), ""
        except EntryMissing:
            result, how = None, "gone"
        except CacheError as error:
            result, how = None, str(error)
        seconds = time.perf_counter() - began
        self._note(what, seconds, how, result.id if isinstance(result, Entry) else entry_id, number)
        return result

    def _note(self, *line: Any) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    url, blobs, tenant, folder, index, count, seconds = arguments
    torch.set_num_threads(1)
    cache = SharedCache(Settings(url, blobs, tenant, TIER_BYTES), "load", tier=Path(folder) / f"tier-{index}")
    with (Path(folder) / f"{index}.jsonl").open("w", encoding="utf-8") as log:
        worker = Worker(cache, log, int(index))
        for _ in range(int(count)):
            worker.store()
        print("filled", flush=True)
        sys.stdin.readline()
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            worker.mix()
    cache.close()


if __name__ == "__main__":
    main(sys.argv[1:])
