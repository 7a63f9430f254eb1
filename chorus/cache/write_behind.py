"""A cache whose callers do not wait for the disk: a thread of its own commits what they store."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..log import logger
from ..messages import say
from .entry import EVERYTHING, CacheStats, Entry, Match, NewEntry, Query, Space, unit_vector
from .errors import CacheError, CacheUnavailable, VectorLengthMismatch
from .interface import Cache
from .record import read_record, write_record
from .vectors import score

if TYPE_CHECKING:
    import torch

log = logger(__name__)

# How much may wait for the disk. More is refused with a message.
MOST_PENDING = 64
MOST_PENDING_BYTES = 2 * 2**30


@dataclass(frozen=True)
class _Pending:
    entry: Entry
    new: NewEntry
    size: int
    committed: Future[None]


class WriteBehind:
    """`cache`, with `put` and `record_hit` done off the caller's path, in order. Implements `Cache`.

    A look-up sees what is still being stored; whoever wants to read it, or to list entries, waits for it for at most
    `timeout` seconds. A failed commit is told to `fault` (an entry id and the error), and the entry is not there.

    Not for a caller that must know when its entry is safe: a process killed before the commit has not stored it. A
    process that ends by itself finishes its commits first.
    """

    def __init__(
        self,
        cache: Cache,
        place: Path,
        fault: Callable[[str, Exception], None],
        *,
        most_pending: int = MOST_PENDING,
        most_bytes: int = MOST_PENDING_BYTES,
        timeout: float = 10.0,
    ):
        self.cache = cache
        self._place = place  # for messages
        self._fault = fault
        self._most_pending, self._most_bytes, self._timeout = most_pending, most_bytes, timeout
        self._pending: dict[str, _Pending] = {}  # by entry id, in the order of their arrival
        self._added = 0
        self._lock = threading.Lock()
        self._committer = ThreadPoolExecutor(1, "chorus-store")

    # -- storing

    def put(self, new: NewEntry, entry_id: str | None = None) -> Entry:
        """Take an entry to be committed. Its `bytes` are those of its tensors as they are, not as they will be stored.

        CacheUnavailable when too much is waiting already. What `Cache.put` raises goes to `fault`.
        """
        entry_id = entry_id or uuid.uuid4().hex
        size = sum(tensor.nbytes for tensor in new.tensors.values())
        entry = read_record(write_record(entry_id, time.time(), new), size=size)
        with self._lock:
            waiting = sum(p.size for p in self._pending.values())
            if len(self._pending) >= self._most_pending or (waiting and waiting + size > self._most_bytes):
                reason = say("reason.busy", count=len(self._pending), bytes=waiting)
                raise CacheUnavailable(self._place, reason, say("advice.too_slow"))
            self._added += 1
            committed = self._committer.submit(self._commit, new, entry_id)
            self._pending[entry_id] = _Pending(entry, new, size, committed)
        committed.add_done_callback(lambda _: self._done(entry_id))
        return entry

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """See `Cache.record_hit`; done after the entries that were put before."""

        def count() -> None:
            try:
                self.cache.record_hit(entry_id, saved_seconds)
            except CacheError as error:
                log.warning("A hit was not counted: %s", error)

        self._committer.submit(count)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is committed or has failed; False when that takes longer than `timeout`."""
        return self._settled(list(self._pending), self._timeout if timeout is None else timeout)

    def _commit(self, new: NewEntry, entry_id: str) -> None:
        try:
            self.cache.put(new, entry_id)
        except Exception as error:  # on this thread nobody else would report it
            self._fault(entry_id, error)

    def _done(self, entry_id: str) -> None:
        with self._lock:
            del self._pending[entry_id]

    def _settled(self, ids: Iterable[str], timeout: float) -> bool:
        end = time.monotonic() + timeout
        for entry_id in ids:
            pending = self._pending.get(entry_id)
            try:
                if pending is not None:
                    pending.committed.result(max(0.0, end - time.monotonic()))
            except NotYet:
                return False
        return True

    # -- finding

    def search(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search`."""
        waiting = self._matches(vector, embedder, lambda entry: entry.space == space)
        return _best(waiting, self.cache.search(vector, embedder, space, k), k)

    def search_elsewhere(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search_elsewhere`."""
        waiting = self._matches(vector, embedder, lambda entry: entry.space != space)
        return _best(waiting, self.cache.search_elsewhere(vector, embedder, space, k), k)

    def _matches(self, vector: np.ndarray, embedder: str, fits: Callable[[Entry], bool]) -> list[Match]:
        query = unit_vector(vector)
        found = []
        for pending in self._snapshot():
            entry = pending.entry
            if not entry.is_source or entry.embedder != embedder or not fits(entry):
                continue
            if pending.new.vector.size != query.size:
                raise VectorLengthMismatch(embedder, query.size, pending.new.vector.size)
            # With the same formula as the scores of kept entries, so that equal scores stay equal.
            found.append(Match(entry, float(score(pending.new.vector, query))))
        return found

    def find_request(self, request: str) -> Entry | None:
        """See `Cache.find_request`."""
        waiting = [p.entry for p in self._snapshot() if p.entry.request == request]
        return waiting[-1] if waiting else self.cache.find_request(request)

    def get(self, entry_id: str) -> Entry | None:
        """See `Cache.get`."""
        waiting = self._pending.get(entry_id)
        return waiting.entry if waiting else self.cache.get(entry_id)

    def version(self) -> int:
        """See `Cache.version`."""
        return self.cache.version() + self._added

    def _snapshot(self) -> list[_Pending]:
        with self._lock:
            return list(self._pending.values())

    # -- whatever needs the entry itself waits for it

    def load(
        self, entry_id: str, names: Iterable[str] | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, torch.Tensor]:
        """See `Cache.load`."""
        self._await(entry_id)
        return self.cache.load(entry_id, names, device)

    def preview(self, entry_id: str) -> bytes:
        """See `Cache.preview`."""
        self._await(entry_id)
        return self.cache.preview(entry_id)

    def file(self, entry_id: str) -> bytes:
        """See `Cache.file`."""
        self._await(entry_id)
        return self.cache.file(entry_id)

    def adopt(self, entry_id: str, content: bytes) -> Entry:
        """See `Cache.adopt`. Committed when it returns: who takes entries over wants to know what became of each."""
        self._await(entry_id)
        return self.cache.adopt(entry_id, content)

    def pin(self, entry_id: str, pinned: bool = True) -> None:
        """See `Cache.pin`."""
        self._await(entry_id)
        self.cache.pin(entry_id, pinned)

    def forget(self, entry_id: str) -> None:
        """See `Cache.forget`."""
        self._await(entry_id)
        self.cache.forget(entry_id)

    def clear(self) -> int:
        """See `Cache.clear`."""
        self._await(*self._pending)
        return self.cache.clear()

    def entries(self, limit: int = 100, offset: int = 0, query: Query = EVERYTHING) -> list[Entry]:
        """See `Cache.entries`."""
        self._await(*self._pending)
        return self.cache.entries(limit, offset, query)

    def count(self, query: Query = EVERYTHING) -> int:
        """See `Cache.count`."""
        self._await(*self._pending)
        return self.cache.count(query)

    def stats(self) -> CacheStats:
        """See `Cache.stats`."""
        self._await(*self._pending)
        return self.cache.stats()

    def _await(self, *ids: str) -> None:
        if not self._settled(ids, self._timeout):
            reason = say("reason.not_written", seconds=self._timeout)
            raise CacheUnavailable(self._place, reason, say("advice.slow"))

    def close(self) -> None:
        """Finish what is being stored, then let go of all files."""
        self._committer.shutdown()
        self.cache.close()


def _best(waiting: list[Match], kept: list[Match], k: int) -> list[Match]:
    """The k best of both, each entry once: by score, then the newest."""
    known = {match.entry.id for match in kept}
    both = [*(match for match in reversed(waiting) if match.entry.id not in known), *kept]
    return sorted(both, key=lambda match: -match.score)[:k]
