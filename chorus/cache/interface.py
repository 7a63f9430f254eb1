"""What every cache can do, wherever it keeps its entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .entry import EVERYTHING, CacheStats, Entry, Match, NewEntry, Query, Space

if TYPE_CHECKING:
    import torch

_PAGE = 200  # entries read from the catalog at once


class Cache(Protocol):
    """Entries of finished requests, found by prompt vector or by request.

    Safe for any number of threads. Every method may raise CacheUnavailable, which a caller treats as a miss.
    `vector` is [D] float32 of unit norm, else ValueError, and D is that of the embedder's entries, else
    VectorLengthMismatch.
    """

    def search(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """The k best sources in this space with this embedder: by score, then the newest, then the id."""

    def search_elsewhere(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """The k best sources with this embedder in other spaces, to explain a miss; never to be reused."""

    def find_request(self, request: str) -> Entry | None:
        """The newest entry of an identical request."""

    def get(self, entry_id: str) -> Entry | None:
        """The entry, or None when it is not there any more."""

    def load(
        self, entry_id: str, names: Iterable[str] | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, torch.Tensor]:
        """The entry's tensors (all, or those named), verified, decoded on `device`, owned by the caller.

        Raises EntryMissing, or EntryDamaged after putting the entry in quarantine.
        """

    def preview(self, entry_id: str) -> bytes:
        """The entry's preview as an animated WebP, to be served as it is.

        Raises EntryMissing where it has none, or EntryDamaged after putting the entry in quarantine.
        """

    def put(self, new: NewEntry, entry_id: str | None = None) -> Entry:
        """Keep an entry. Atomic: on an error nothing of it is kept.

        Others, but no pinned ones, are evicted as the limits demand.

        entry_id: 32 lower-case hex digits that no entry has; one is chosen without.
        Raises EntryTooLarge; VectorLengthMismatch; ValueError for a tensor that cannot be stored.
        """

    def file(self, entry_id: str) -> bytes:
        """The entry's file as it is kept, verified (docs/format.md). Raises what `load` raises."""

    def adopt(self, entry_id: str, content: bytes) -> Entry:
        """Keep an entry's file from elsewhere, byte by byte, under its own id, once all of it was checked.

        ValueError with what is wrong with it, also for an id that is in use; for the rest see `put`.
        """

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """Count a hit that saved so many seconds, and make the entry the most recently used."""

    def pin(self, entry_id: str, pinned: bool = True) -> None:
        """Keep the entry from being evicted, or no longer. EntryMissing when it is not there."""

    def forget(self, entry_id: str) -> None:
        """Delete an entry, its prompt and its files; no error when it is gone already."""

    def clear(self) -> int:
        """Delete all entries and everything in quarantine; returns how many entries there were."""

    def entries(self, limit: int = 100, offset: int = 0, query: Query = EVERYTHING) -> list[Entry]:
        """Entries that answer the query, in its order."""

    def count(self, query: Query = EVERYTHING) -> int:
        """How many entries answer the query."""

    def stats(self) -> CacheStats:
        """How much is kept, and what it has saved."""

    def version(self) -> int:
        """A number that changes whenever anyone changed what a search could answer. Cheap to ask."""

    def close(self) -> None:
        """Close all files."""


def every(cache: Cache, query: Query = EVERYTHING) -> list[Entry]:
    """All entries that answer the query, in its order, each once, whatever comes or goes meanwhile."""
    found: dict[str, Entry] = {}
    offset = 0
    while page := cache.entries(_PAGE, offset, query):
        found.update((entry.id, entry) for entry in page)
        offset += len(page)
    return list(found.values())
