"""The cache on this machine's disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..log import logger
from ..messages import say
from .base import CatalogCache
from .blobs import Blobs
from .catalog import Catalog
from .entry import CacheStats, Entry, Match, NewEntry, Space, unit_vector
from .errors import CacheUnavailable, EntryDamaged, EntryMissing, EntryTooLarge, VectorLengthMismatch
from .eviction import Limits, checked
from .format import BlobDamaged, BlobNewer, EntryFile, Packed
from .index import VectorIndex
from .transaction import Removed, Row, Transaction
from .vectors import score

log = logger(__name__)

T = TypeVar("T")

# Seconds after which a reservation counts as left behind by a dead process. A living writer that takes longer
# loses its entry, nothing else.
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


class LocalCache(CatalogCache):
    """A cache in the folder `root`, shared by all threads and processes that open it. Implements `Cache`.

    max_bytes: limit for the entries' files, quarantined ones included; it holds while they are written, too.
        The catalog (about 7 kB an entry) comes on top.
    max_entries: limit for how many there are; None for as many as fit.
    eviction: which of `eviction.POLICIES` decides what goes first, for all who open this cache from now on; None
        leaves it as it is.
    timeout: longest wait for another process's lock, in seconds.

    The catalog (SQLite) says what there is. To add an entry, room is reserved in the catalog, the file is written, and
    only then is its row added. To delete one, its file is deleted, and then its row, in one transaction. So a process
    killed anywhere leaves a reservation, which lapses after five minutes, or a row without a file, which is a miss, but
    never a file of an entry that was to be deleted. A sound file without a row is therefore an entry that somebody put
    back, and gets a row when the cache is opened. Put `root` on a local disk, not on a network share.

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
        self._catalog = Catalog(self.root, timeout, self._match_files)
        self._index = VectorIndex()
        self._index_generation = self._catalog.generation
        self._sweep()

    # -- finding

    def search(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search`. A match that turns out damaged is quarantined and left out."""
        return [match for match in self._search(vector, embedder, space, k, False) if match.entry.space == space]

    def search_elsewhere(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search_elsewhere`."""
        return [match for match in self._search(vector, embedder, space, k, True) if match.entry.space != space]

    def _search(self, vector: np.ndarray, embedder: str, space: Space, k: int, elsewhere: bool) -> list[Match]:
        """The k best sound rows. Their scores are computed from the rows themselves, whatever the index thinks."""
        query, bad = unit_vector(vector), set[int]()
        with self._reading() as transaction:
            while True:
                found = self._index.nearest(transaction, query, embedder, space.key(), k, bad, elsewhere=elsewhere)
                rows = {seq: transaction.row_numbered(seq) for seq, _ in found}
                sound = [row for row in rows.values() if row is not None and row.entry.embedder == embedder]
                if len(sound) == len(rows):
                    break
                bad |= rows.keys() - {row.seq for row in sound}
        scored = sorted(((float(score(row.vector, query)), row.seq, row.entry) for row in sound), reverse=True)
        return [Match(entry, value) for value, _, entry in scored]

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

    # -- deleting

    def forget(self, entry_id: str) -> None:
        """See `Cache.forget`. CacheUnavailable when a file is in use and cannot be deleted yet (Windows)."""
        with self._catalog.writing() as transaction:
            stuck = self._delete(transaction, transaction.rows_of(entry_id), durable=True)
        self._catalog.shrink_journal()
        self._say_stuck(stuck)

    def clear(self) -> int:
        """See `Cache.clear`. Counts of hits and saved seconds stay."""
        with self._catalog.writing() as transaction:
            entries = transaction.totals().entries
            stuck = self._delete(transaction, transaction.all_rows(), durable=True)
        self._catalog.shrink_journal()
        try:
            self._blobs.empty_quarantine()
        except OSError as error:
            stuck[0] = error
        self._say_stuck(stuck)
        return entries

    def _delete(self, transaction: Transaction, rows: Collection[Removed], durable: bool = False) -> dict[int, OSError]:
        """Delete the files of rows, and then the rows, so that no file of an entry that was to go is without a row.

        Returns, by number, the rows whose file cannot be deleted yet (in use, on Windows). They are out of use and of
        their text nothing stays, but they keep their room. durable: a power cut does not bring the files back.
        """
        stuck: dict[int, OSError] = {}
        for row in rows:
            try:
                self._blobs.remove(row.id)
            except ValueError:  # an id with flipped bits: its file is found by the true one
                continue
            except OSError as error:
                log.warning("A file of cache entry %s cannot be deleted yet: %s", row.id, error)
                stuck[row.seq] = error
                transaction.leave(row)
        gone = [row for row in rows if row.seq not in stuck]
        if durable:
            self._blobs.sync(row.id for row in gone)
        transaction.drop(gone)
        return stuck

    def _say_stuck(self, stuck: dict[int, OSError]) -> None:
        for error in stuck.values():
            reason = say("reason.not_deleted", error=error)
            raise CacheUnavailable(self.root, reason, say("advice.deleted_later")) from error

    # -- upkeep

    def rebuild(self) -> int:
        """Make the catalog anew from the entries' files, when it may be wrong; returns how many were found.

        Damage that SQLite notices is repaired without being asked.
        """
        self._catalog.rebuild()
        return self.stats().entries

    def limit_to(self, max_bytes: int) -> None:
        """Change the limit for the files. Entries above it are deleted when the next entry is stored."""
        self.max_bytes = max_bytes
        self._limits = Limits(max_bytes, self.max_entries)

    def close(self) -> None:
        """See `Cache.close`."""
        self._index.clear()
        self._catalog.close()

    def _sweep(self) -> None:
        """Make rows and files agree; delete what dead processes left behind, and what is above the limit."""
        try:
            with self._catalog.writing() as transaction:
                self._release_dead(transaction)
                self._match_files(transaction)
                transaction.recount()
                if self._policy is not None:
                    transaction.choose_policy(self._policy)
                self._make_room(transaction)
                known = transaction.known_ids()
            self._blobs.remove_leftovers(known, ORPHANED_AFTER)
            shutil.rmtree(self.root / "index", ignore_errors=True)  # of an earlier version, with vectors of prompts
        except (CacheUnavailable, OSError) as error:  # locked or full: what can be read can still be served
            log.warning("Leftovers in the cache are not cleared away this time: %s", error)

    def _match_files(self, transaction: Transaction) -> None:
        """Add rows for files that have none, and drop those whose files a killed process has deleted.

        The catalog is new, or files were put back or merged in. Where there is no file at all, a disk may be missing.
        """
        files = self._blobs.ids()
        if files:
            transaction.drop(row for row in transaction.live_rows() if row.id not in files)
        if unknown := files - transaction.known_ids():
            added, refused = transaction.adopt(self._blobs.headers(unknown))
            for entry_id in refused:
                log.warning("No entry can be made of %s: moved to quarantine", self._blobs.path(entry_id))
                self._blobs.quarantine(entry_id)
            log.warning("%d files in %s were not in the catalog, and were added", added, self.root)

    def _release_dead(self, transaction: Transaction) -> None:
        """Give back what writers that must be dead had reserved, and delete what they had written."""
        for entry_id in transaction.release_older_than(RESERVED_FOR):
            with suppress(OSError, ValueError):  # in use (Windows), or an id with flipped bits
                self._blobs.remove(entry_id)

    # -- parts of a put

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

    def _reserve(self, entry_id: str, size: int) -> None:
        if size > self.max_bytes:
            raise EntryTooLarge(size, self.max_bytes)
        with self._catalog.writing() as transaction:
            self._release_dead(transaction)
            if transaction.knows(entry_id):
                raise ValueError(f"there is an entry with the id {entry_id} already")
            self._check_room(transaction, size)
            self._make_room(transaction, size, 1)
            transaction.reserve(entry_id, size)

    def _make_room(self, transaction: Transaction, size: int = 0, entries: int = 0) -> None:
        """Evict until so many more bytes and entries fit. Other writers wait meanwhile, so the room is really free."""
        stuck: dict[int, OSError] = {}
        while victims := transaction.victims(self._limits, size, entries, stuck):
            stuck |= self._delete(transaction, victims)
        if size and stuck:
            totals = transaction.totals()
            if totals.bytes + totals.quarantined + totals.reserved + size > self.max_bytes:
                self._say_stuck(stuck)

    def _check_room(self, transaction: Transaction, size: int) -> None:
        """CacheUnavailable where no eviction makes room for one more entry of `size` bytes."""
        totals = transaction.totals()
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
        try:
            self._blobs.remove(entry_id)
            if wait:
                with self._catalog.writing() as transaction:
                    transaction.release(entry_id)
        except (CacheUnavailable, OSError) as error:
            log.warning("The room reserved for an entry is given back in a few minutes: %s", error)

    # -- parts of a load

    def _taken(self, row: Row, take: Callable[[EntryFile], T]) -> T:
        entry_id, path = row.entry.id, self._blobs.path(row.entry.id)
        place = Removed(row.seq, entry_id)
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

    # -- transactions

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with self._catalog.reading() as transaction:
            if self._index_generation != self._catalog.generation:
                self._index.clear()
                self._index_generation = self._catalog.generation
            yield transaction
        if transaction.damaged:
            self._quarantine(transaction.damaged, "its row in the catalog does not have its checksum")

    def _counting(self) -> AbstractContextManager[Transaction]:
        return self._catalog.writing()

    def _place(self) -> Path:
        return self.root
