"""The cache on this machine's disk."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..log import logger
from ..messages import say
from .blobs import Blobs
from .catalog import Catalog
from .entry import EVERYTHING, CacheStats, Entry, Match, NewEntry, Query, Space, unit_vector
from .errors import CacheUnavailable, EntryDamaged, EntryMissing, EntryTooLarge, VectorLengthMismatch
from .eviction import Limits, checked
from .foreign import unpack
from .format import BlobDamaged, BlobNewer, EntryFile, Packed, pack
from .index import VectorIndex
from .pool import score
from .record import write_record
from .transaction import Removed, Totals, Transaction

if TYPE_CHECKING:
    import torch

log = logger(__name__)

T = TypeVar("T")

# Seconds after which the process that left something behind is taken for dead. A writer that lives but takes
# longer loses its entry, nothing else.
RESERVED_FOR = 300.0
ORPHANED_AFTER = 3600.0


def max_bytes() -> int:
    """The byte limit of a cache: `CHORUS_CACHE_GB`, else 20 GB."""
    text = os.environ.get("CHORUS_CACHE_GB", "20")
    try:
        return int(float(text) * 2**30)
    except ValueError as error:
        raise ValueError(f"CHORUS_CACHE_GB={text!r}: expected a number of gigabytes") from error


def max_entries() -> int | None:
    """The limit of entries of a cache: `CHORUS_CACHE_ENTRIES`, else None, as many as fit."""
    text = os.environ.get("CHORUS_CACHE_ENTRIES", "")
    try:
        return int(text) if text else None
    except ValueError as error:
        raise ValueError(f"CHORUS_CACHE_ENTRIES={text!r}: expected a whole number") from error


def limits() -> dict[str, Any]:
    """What the environment says of a `LocalCache`'s limits and eviction, as its arguments.

    ValueError names the variable that cannot be read.
    """
    policy = os.environ.get("CHORUS_CACHE_EVICTION", "")
    try:
        checked(policy)
    except ValueError as error:
        raise ValueError(f"CHORUS_CACHE_EVICTION: {error}") from error
    return {"max_bytes": max_bytes(), "max_entries": max_entries(), "eviction": policy or None}


class LocalCache:
    """A cache in the folder `root`, shared by all threads and processes that open it. Implements `Cache`.

    max_bytes: limit for the entries' files, quarantined ones included; it holds while they are written, too.
        The catalog (about 7 kB an entry) and the snapshots of the search index come on top.
    max_entries: limit for how many there are; None for as many as fit.
    eviction: which of `eviction.POLICIES` decides what goes first, for all who open this cache from now on; None
        leaves it as it is.
    timeout: longest wait for another process's lock, in seconds.

    The catalog (SQLite) is the truth and the files follow it: room is reserved in the catalog, evicted files
    are deleted, the new file is written, and only then is its row added. A process killed anywhere between
    leaves a reservation, which lapses after five minutes, or a file without a row, deleted when the cache is
    opened after an hour. Put `root` on a local disk, not on a network share.

    CacheUnavailable when the folder cannot be used; its text says what to do.

        cache = LocalCache(Path("cache"))
        for match in cache.search(vector, "open_clip/ViT-B-32", space):
            tensors = cache.load(match.entry.id, ["checkpoint/0.937500"])
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int = 20 * 2**30,
        max_entries: int | None = None,
        eviction: str | None = None,
        timeout: float = 2.0,
    ):
        if max_entries is not None and max_entries < 1:
            raise ValueError(f"max_entries {max_entries}: expected at least 1, or None for as many as fit")
        self.root = Path(root)
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._limits = Limits(max_bytes, max_entries)
        self._policy = None if eviction is None else checked(eviction)
        try:
            self._blobs = Blobs(self.root)
        except OSError as error:
            raise CacheUnavailable.of_disk(self.root, error) from error
        self._catalog = Catalog(self.root, timeout, self._blobs.headers)
        self._index = VectorIndex(self.root / "index")
        self._index_generation = self._catalog.generation
        self._sweep()

    # -- finding

    def search(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search`. A match that turns out damaged is quarantined and left out."""
        query = unit_vector(vector)
        with self._reading() as transaction:
            matches = _served(transaction, self._index.nearest, query, embedder, space.key(), k)
        return [match for match in matches if match.entry.space == space]

    def search_elsewhere(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search_elsewhere`."""
        query = unit_vector(vector)
        with self._reading() as transaction:
            matches = _served(transaction, self._index.nearest_elsewhere, query, embedder, space.key(), k)
        return [match for match in matches if match.entry.space != space]

    def find_request(self, request: str) -> Entry | None:
        """See `Cache.find_request`."""
        with self._reading() as transaction:
            row = transaction.newest_of_request(request)
        return row.entry if row else None

    def get(self, entry_id: str) -> Entry | None:
        """See `Cache.get`."""
        with self._reading() as transaction:
            row = transaction.row(entry_id)
        return row.entry if row else None

    def entries(self, limit: int = 100, offset: int = 0, query: Query = EVERYTHING) -> list[Entry]:
        """See `Cache.entries`."""
        with self._reading() as transaction:
            return [row.entry for row in transaction.page(query, limit, offset)]

    def count(self, query: Query = EVERYTHING) -> int:
        """See `Cache.count`."""
        with self._reading() as transaction:
            return transaction.count(query)

    def stats(self) -> CacheStats:
        """See `Cache.stats`. bytes includes what is in quarantine."""
        with self._reading() as transaction:
            totals, models, days = transaction.totals(), transaction.models(), transaction.days()
        return CacheStats(
            entries=totals.entries,
            bytes=totals.bytes + totals.quarantined,
            max_bytes=self.max_bytes,
            hits=totals.hits,
            seconds_saved=totals.seconds_saved,
            max_entries=self.max_entries,
            pinned_bytes=totals.pinned_bytes,
            models=models,
            days=days,
        )

    def version(self) -> int:
        """See `Cache.version`."""
        with self._reading() as transaction:
            return transaction.version()

    # -- tensors

    def load(
        self, entry_id: str, names: Iterable[str] | None = None, device: str | torch.device = "cpu"
    ) -> dict[str, torch.Tensor]:
        """See `Cache.load`."""
        names = None if names is None else list(names)
        return self._from_file(entry_id, names or (), lambda file: file.tensors(names, device))

    def preview(self, entry_id: str) -> bytes:
        """See `Cache.preview`."""
        try:
            return self._from_file(entry_id, ["preview"], lambda file: file.webp("preview"))
        except ValueError as error:
            raise EntryMissing(entry_id, say("reason.no_preview", error=error)) from error

    def _from_file(self, entry_id: str, names: Collection[str], take: Callable[[EntryFile], T]) -> T:
        """What `take` gets from the entry's verified file, which has tensors of these names."""
        with self._reading() as transaction:
            row = transaction.row(entry_id)
        if row is None:
            if any(damaged.id == entry_id for damaged in transaction.damaged):
                raise EntryDamaged(entry_id, self.root, say("reason.row"))
            raise EntryMissing(entry_id)
        if unknown := sorted(set(names) - set(row.entry.tensor_names)):
            raise EntryMissing(
                entry_id, say("reason.no_tensor", names=", ".join(unknown), known=str(row.entry.tensor_names))
            )
        place = Removed(row.seq, entry_id)
        path = self._blobs.path(entry_id)
        try:
            return take(self._blobs.read(entry_id, row.digest))
        except FileNotFoundError as error:
            self._drop_missing(place)
            raise EntryMissing(entry_id, say("reason.file_gone", file=path)) from error
        except BlobDamaged as error:
            self._quarantine([place], str(error))
            raise EntryDamaged(entry_id, path, str(error)) from error
        except BlobNewer as error:
            raise CacheUnavailable(path, str(error), say("advice.update")) from error
        except OSError as error:
            raise CacheUnavailable.of_disk(path, error) from error

    def put(self, new: NewEntry, entry_id: str | None = None) -> Entry:
        """See `Cache.put`. Evicts by the cache's policy. CacheUnavailable where pinned entries leave no room."""
        if entry_id is None:
            entry_id = uuid.uuid4().hex
        else:
            self._blobs.path(entry_id)  # is it an id?
        packed = pack(write_record(entry_id, time.time(), new), new.vector, new.tensors, new.coding)
        return self._keep(entry_id, new, packed)

    def file(self, entry_id: str) -> bytes:
        """See `Cache.file`."""
        return self._from_file(entry_id, (), lambda file: file.content)

    def adopt(self, entry_id: str, content: bytes) -> Entry:
        """See `Cache.adopt`."""
        self._blobs.path(entry_id)  # is it an id?
        new, packed = unpack(entry_id, content)
        return self._keep(entry_id, new, packed)

    def _keep(self, entry_id: str, new: NewEntry, packed: Packed) -> Entry:
        neighbour = self._neighbour(new) if new.is_source else None
        self._reserve(entry_id, packed.size)
        try:
            self._blobs.write(entry_id, packed)
            return self._publish(entry_id, new, packed, neighbour)
        except BaseException as error:
            self._abandon(entry_id, wait=not isinstance(error, CacheUnavailable))
            if isinstance(error, OSError):
                path = self._blobs.path(entry_id)
                raise CacheUnavailable.of_disk(path, error) from error
            raise

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """See `Cache.record_hit`."""
        with self._catalog.writing() as transaction:
            transaction.record_hit(entry_id, saved_seconds)

    def pin(self, entry_id: str, pinned: bool = True) -> None:
        """See `Cache.pin`."""
        with self._catalog.writing() as transaction:
            if not transaction.pin(entry_id, pinned):
                raise EntryMissing(entry_id)

    # -- deleting

    def forget(self, entry_id: str) -> None:
        """See `Cache.forget`. CacheUnavailable when a file is in use and cannot be deleted yet (Windows)."""
        with self._catalog.writing() as transaction:
            places = transaction.places_of(entry_id)
            rows = transaction.drop_id(entry_id)
        with self._deleting():
            for row in rows:
                self._blobs.remove(row.id)
            for embedder, space in places:  # a snapshot holds the prompt's vector
                self._index.forget(embedder, space)
        self._catalog.shrink_journal()

    def clear(self) -> int:
        """See `Cache.clear`. Counts of hits and saved seconds stay."""
        with self._catalog.writing() as transaction:
            entries = transaction.totals().entries
            rows = transaction.drop_all()
        self._remove_files(row.id for row in rows)
        with self._deleting():
            self._blobs.empty_quarantine()
            self._index.forget()
        self._catalog.shrink_journal()
        return entries

    # -- upkeep

    def rebuild(self) -> int:
        """Make the catalog anew from the entries' files, when it may be wrong; returns how many were found.

        Damage that SQLite notices is repaired without being asked.
        """
        self._catalog.rebuild()
        return self.stats().entries

    def limit_to(self, max_bytes: int) -> None:
        """Another limit for the files from now on; what is above it goes when the next entry comes."""
        self.max_bytes = max_bytes
        self._limits = Limits(max_bytes, self.max_entries)

    def close(self) -> None:
        """See `Cache.close`."""
        self._index.clear()
        self._catalog.close()

    def _sweep(self) -> None:
        """Delete what dead processes left behind, and what is above the limit."""
        try:
            old = self._blobs.ids_older_than(ORPHANED_AFTER)
            with self._catalog.writing() as transaction:
                abandoned = transaction.release_older_than(RESERVED_FOR)
                transaction.recount()
                if self._policy is not None:
                    transaction.choose_policy(self._policy)
                evicted = transaction.make_room(self._limits)
                orphans = old - transaction.known_ids()
        except (CacheUnavailable, OSError) as error:  # locked or full: what can be read can still be served
            log.warning("Leftovers in the cache are not cleared away this time: %s", error)
            return
        self._remove_files([*abandoned, *(row.id for row in evicted), *orphans])

    def _reserve(self, entry_id: str, size: int) -> None:
        if size > self.max_bytes:
            raise EntryTooLarge(size, self.max_bytes)
        with self._catalog.writing() as transaction:
            abandoned = transaction.release_older_than(RESERVED_FOR)
            if transaction.knows(entry_id):
                raise ValueError(f"there is an entry with the id {entry_id} already")
            self._check_room(transaction.totals(), size)
            evicted = transaction.make_room(self._limits, size, 1)
            transaction.reserve(entry_id, size)
        self._remove_files([*abandoned, *(row.id for row in evicted)])

    def _check_room(self, totals: Totals, size: int) -> None:
        """CacheUnavailable where no eviction makes room for one more entry of `size` bytes."""
        reserved, pinned, limit = totals.reserved, totals.pinned_bytes, self.max_bytes
        if pinned + reserved + size > limit:
            reason = say("reason.no_room_bytes", reserved=reserved, pinned=pinned, more=size, limit=limit)
        elif self.max_entries is not None and totals.pinned + totals.writers + 1 > self.max_entries:
            reserved, pinned, limit = totals.writers, totals.pinned, self.max_entries
            reason = say("reason.no_room_entries", reserved=reserved, pinned=pinned, more=1, limit=limit)
        else:
            return
        raise CacheUnavailable(self.root, reason, say("advice.unpin") if pinned else say("advice.limit"))

    def _neighbour(self, new: NewEntry) -> tuple[int, float] | None:
        """Number and score of the nearest source in the space."""
        with self._reading() as transaction:
            found = self._index.nearest(transaction, new.vector, new.embedder, new.space.key(), 1)
        return found[0] if found else None

    def _publish(self, entry_id: str, new: NewEntry, packed: Packed, neighbour: tuple[int, float] | None) -> Entry:
        with self._catalog.writing() as transaction:
            if not transaction.release(entry_id):
                raise CacheUnavailable(self.root, say("reason.overtaken"), say("advice.next"))
            known = transaction.vector_bytes(new.embedder) if new.is_source else None
            if known not in (None, new.vector.nbytes):
                raise VectorLengthMismatch(new.embedder, new.vector.size, known // 4)
            return transaction.insert(packed.record, new.vector, packed.digest, packed.size, neighbour)

    def _abandon(self, entry_id: str, wait: bool) -> None:
        """Undo a reservation and its file. wait: False after having waited for a lock in vain already."""
        self._remove_files([entry_id])
        if wait:
            try:
                with self._catalog.writing() as transaction:
                    transaction.release(entry_id)
            except CacheUnavailable as error:
                log.warning("The room reserved for an entry is given back in a few minutes: %s", error)

    def _remove_files(self, ids: Iterable[str]) -> None:
        for entry_id in ids:
            try:
                self._blobs.remove(entry_id)
            except (OSError, ValueError) as error:  # in use (Windows), or an id with flipped bits
                log.warning("A cache file is left to a later start of Chorus: %s", error)

    @contextmanager
    def _deleting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = say("reason.not_deleted", error=error)
            raise CacheUnavailable(self.root, reason, say("advice.deleted_later")) from error

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with self._catalog.reading() as transaction:
            if self._index_generation != self._catalog.generation:
                self._index.clear()
                self._index_generation = self._catalog.generation
            yield transaction
        if transaction.damaged:
            self._quarantine(transaction.damaged, "its row in the catalog does not have its checksum")

    def _quarantine(self, rows: list[Removed], reason: str) -> None:
        """Take damaged entries out of use. Nothing of them is served even where this fails."""
        try:
            with self._catalog.writing() as transaction:
                for row in rows:
                    transaction.quarantine(row, reason)
        except CacheUnavailable as error:
            log.warning("Damaged cache entries could not be quarantined yet: %s", error)
            return
        for row in rows:
            log.error("Cache entry %s is damaged (%s) and was moved to %s", row.id, reason, self.root / "quarantine")
            try:
                self._blobs.quarantine(row.id)
            except (OSError, ValueError) as error:  # in use (Windows), or an id with flipped bits
                log.warning("Its file stays where it is, unused: %s", error)

    def _drop_missing(self, row: Removed) -> None:
        try:
            with self._catalog.writing() as transaction:
                transaction.drop([row])
        except CacheUnavailable as error:
            log.warning("Entry %s has lost its file but stays in the catalog for now: %s", row.id, error)


def _served(
    transaction: Transaction, nearest: Callable, query: np.ndarray, embedder: str, space: str, k: int
) -> list[Match]:
    """The k best sound rows. Their scores are computed from the rows themselves, whatever the index thinks."""
    bad: set[int] = set()
    while True:
        found = nearest(transaction, query, embedder, space, k, bad)
        rows = [(seq, transaction.row_numbered(seq)) for seq, _ in found]
        worse = {seq for seq, row in rows if row is None or row.entry.embedder != embedder}
        if not worse:
            break
        bad |= worse
    matches = [(Match(row.entry, float(score(row.vector, query))), seq) for seq, row in rows if row is not None]
    return [match for match, _ in sorted(matches, key=lambda one: (-one[0].score, -one[1]))]
