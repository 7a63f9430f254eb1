"""A cache that several machines share."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...log import logger
from ...messages import say
from ..base import CatalogCache
from ..blobs import is_id
from ..entry import EVERYTHING, CacheStats, Entry, Match, NewEntry, Space, unit_vector
from ..errors import CacheUnavailable, EntryDamaged, EntryMissing, EntryTooLarge, VectorLengthMismatch
from ..format import BlobDamaged, BlobNewer, EntryFile, Packed
from ..vectors import TIE_TOLERANCE, score
from .catalog import Catalog, Found, Row
from .database import CHANGE, DEADLINE, Database
from .objects import ObjectStore
from .settings import Settings
from .tier import LocalTier

log = logger(__name__)
T = TypeVar("T")

DEFAULT_BYTES = 20 * 2**30  # limit of a cache for which nobody has set one
RESERVED_FOR = 900.0  # seconds after which a writer is taken for dead; one that lives loses its entry, nothing else
ORPHANED_AFTER = 6 * 3600.0  # seconds after which a file that nobody knows is deleted
UPKEEP = 60.0  # seconds between two rounds of tidying
EXACT = 2000  # sources among which every search is exact


class SharedCache(CatalogCache):
    """A cache that any number of machines use at once. Implements `Cache`.

    settings: where it is. name: of the cache within its tenant. tier: folder for this machine's copies.
    max_bytes: sets the cache's limit, which all workers share; None leaves it as it is.

    PostgreSQL is the truth and the object store follows it: room is reserved, evicted files are deleted, the new
    file is uploaded, and only then is its row added, in one transaction. A row whose file is gone or damaged is
    never served. A worker killed anywhere between leaves a reservation, which lapses, and at most one file, which
    is deleted then. Opening asks nobody: a database that is away is noticed by the first request.

        cache = SharedCache(from_environment(), "default", tier=Path("copies"))
    """

    def __init__(self, settings: Settings, name: str, *, tier: Path, max_bytes: int | None = None, upkeep: bool = True):
        self._settings = settings
        self._name = name
        self._max_bytes = max_bytes
        self._database = Database(settings)
        self._objects = ObjectStore(settings)
        place = hashlib.sha256(f"{self._database.place}\n{self._objects.place}\n{name}".encode()).hexdigest()
        self._tier = LocalTier(tier / place[:16], settings.tier_bytes)
        self._ready = False
        self._indexed: set[tuple[str, int]] = set()
        self._stopped = threading.Event()
        if upkeep:
            threading.Thread(target=self._tidy_forever, name="chorus-upkeep", daemon=True).start()

    # -- finding

    def search(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search`. Exact among up to `EXACT` sources of a space, nearly so (HNSW) among more."""
        return self._search(vector, embedder, space, k, same=True)

    def search_elsewhere(self, vector: np.ndarray, embedder: str, space: Space, k: int = 3) -> list[Match]:
        """See `Cache.search_elsewhere`."""
        return self._search(vector, embedder, space, k, same=False)

    def stats(self) -> CacheStats:
        """See `Cache.stats`. bytes includes what is in quarantine."""
        return self._read(lambda catalog: catalog.totals())

    def names(self) -> list[str]:
        """The tenant's caches, by name. Makes none, this one neither."""
        with self._catalog() as catalog:
            return catalog.names()

    def check(self) -> None:
        """CacheUnavailable unless the database answers and the files are its own. Makes no cache."""
        with self._catalog(CHANGE) as catalog:
            mark, empty = catalog.store_mark(), catalog.is_empty()
        there = self._objects.mark()
        if there != mark and not (there is None and empty):
            raise self._other_location()

    # -- storing

    def _check_store(self) -> None:
        self._objects.check()

    def _keep(self, entry_id: str, new: NewEntry, packed: Packed) -> Entry:
        content = packed.to_bytes()
        self._reserve(entry_id, len(content))
        try:
            self._objects.write(entry_id, content)
            entry = self._publish(entry_id, new, packed.record, packed.digest, len(content))
        except BaseException as error:
            found = self._abandon(entry_id)
            if found is None or not isinstance(error, CacheUnavailable):
                raise
            entry = found  # the commit had been made, only its answer was lost
        self._tier.write(entry_id, content)
        return entry

    # -- deleting

    def forget(self, entry_id: str) -> None:
        """See `Cache.forget`. CacheUnavailable when the file cannot be deleted yet; it is not served any more."""
        if not is_id(entry_id):
            return
        with self._changing() as catalog:
            gone = catalog.drop("id = %(id)s", id=entry_id)
        self._tier.remove(entry_id)
        self._remove_files(gone)

    def clear(self) -> int:
        """See `Cache.clear`. Counts of hits and saved seconds stay."""
        with self._changing() as catalog:
            entries = catalog.count(EVERYTHING)
            gone = catalog.drop("true")
        self._tier.clear()
        self._remove_files(gone)
        return entries

    # -- upkeep

    def sweep(self) -> None:
        """Delete what dead workers left behind, what is above the limit, and copies of entries that are gone.

        Runs by itself every minute. CacheUnavailable where that is not possible now.
        """
        self._keep_limit()
        copies = self._tier.ids()
        known = self._read(lambda catalog: catalog.live_ids(copies)) if copies else set()
        for entry_id in set(copies) - known:
            self._tier.remove(entry_id)
        if self._read(lambda catalog: catalog.due(ORPHANED_AFTER)):
            self._remove_orphans()

    def close(self) -> None:
        """See `Cache.close`."""
        self._stopped.set()
        self._database.close()
        self._objects.close()

    def _keep_limit(self) -> None:
        """Give back the room of dead writers, delete what is garbage, and evict what is then above the limit."""
        with self._changing() as catalog:
            catalog.abandon(None, RESERVED_FOR)
        while batch := self._read(lambda catalog: catalog.garbage()):
            self._remove_files(batch)
        with self._changing() as catalog:
            room = catalog.room()
            gone = catalog.evict(room.used - room.limit, None) if room.used > room.limit else None
        self._remove_files(gone or [])

    def _tidy_forever(self) -> None:
        while not self._stopped.wait(UPKEEP):
            if not self._ready:
                continue  # nobody has used it yet
            try:
                self.sweep()
            except CacheUnavailable as error:
                log.info("Leftovers in the shared cache are not cleared away this time: %s", error)
            except Exception:
                log.exception("Leftovers in the shared cache could not be cleared away")

    def _remove_orphans(self) -> None:
        """Delete files without a row: of uploads that came to their end after their lease had lapsed."""
        old = sorted(self._objects.ids_older_than(ORPHANED_AFTER))
        for first in range(0, len(old), 1000):
            ids = old[first : first + 1000]
            with self._reading() as catalog:
                known = catalog.known_ids(ids)
            self._objects.remove(set(ids) - known)

    # -- parts of a search

    def _search(self, vector: np.ndarray, embedder: str, space: Space, k: int, same: bool) -> list[Match]:
        query = unit_vector(vector)
        if k < 1:
            return []
        with self._reading() as catalog:
            length = catalog.vector_length(embedder)
            if length not in (None, query.size):
                raise VectorLengthMismatch(embedder, query.size, length)
            ask = k + 8
            while True:
                found = catalog.nearest(query, embedder, space, same, ask, EXACT)
                matches = _ranked(found, query)
                complete = len(found) < ask or matches[-1].score < matches[k - 1].score - TIE_TOLERANCE
                if complete or ask > EXACT:
                    return matches[:k]
                ask *= 4

    # -- parts of a load

    def _taken(self, row: Row, take: Callable[[EntryFile], T]) -> T:
        """From this machine's copy where it is sound, else from the store."""
        try:
            copy = self._from_tier(row, take)
            return self._from_store(row, take) if copy is None else copy
        except BlobNewer as error:
            raise CacheUnavailable(self._objects.path(row.entry.id), str(error), say("advice.update")) from error

    def _from_tier(self, row: Row, take: Callable[[EntryFile], T]) -> T | None:
        content = self._tier.read(row.entry.id)
        if content is None:
            return None
        try:
            return take(EntryFile(content, row.digest))
        except BlobDamaged as error:
            log.warning("This machine's copy of entry %s is damaged (%s): fetched again", row.entry.id, error)
            self._tier.remove(row.entry.id)
            return None

    def _from_store(self, row: Row, take: Callable[[EntryFile], T]) -> T:
        entry_id = row.entry.id
        for attempt in (1, 2):  # damage may have come on the way
            try:
                content = self._objects.read(entry_id)
                taken = take(EntryFile(content, row.digest))
            except FileNotFoundError:
                self._drop_missing(entry_id)
                raise EntryMissing(entry_id, say("reason.file_gone", file=self._objects.path(entry_id))) from None
            except BlobDamaged as error:
                if attempt == 2:
                    self._quarantine([row.seq], str(error))
                    raise EntryDamaged(entry_id, self._objects.path(entry_id), str(error)) from error
            else:
                self._tier.write(entry_id, content)
                return taken
        raise AssertionError("unreachable")

    def _drop_missing(self, entry_id: str) -> None:
        """Drop the row of an entry whose file is not there, unless all files of the location are away."""
        mark = self._read(lambda catalog: catalog.store_mark())
        if self._objects.mark() != mark:
            raise self._other_location()
        with self._changing() as catalog:
            if catalog.drop("id = %(id)s", id=entry_id):
                log.warning("Entry %s has lost its file in %s and is dropped", entry_id, self._objects.place)
                catalog.discard([entry_id])

    def _quarantine(self, seqs: list[int], reason: str) -> None:
        """Take damaged entries out of use. Nothing of them is served even where this fails."""
        try:
            with self._changing() as catalog:
                ids = catalog.quarantine(seqs, reason)
        except CacheUnavailable as error:
            log.warning("Damaged cache entries could not be quarantined yet: %s", error)
            return
        for entry_id in ids:
            log.error("Cache entry %s is damaged (%s) and is in quarantine", entry_id, reason)

    # -- parts of a put

    def _reserve(self, entry_id: str, size: int) -> None:
        if not self._room_made(entry_id, size):
            # Files that others are about to delete take room until they are gone; any worker may delete them.
            while batch := self._read(lambda catalog: catalog.garbage()):
                self._remove_files(batch)
            if not self._room_made(entry_id, size):
                limit = self._read(lambda catalog: catalog.room()).limit
                reason = say("reason.no_room_shared", more=size, limit=limit)
                raise CacheUnavailable(self._database.place, reason, say("advice.unpin"))

    def _room_made(self, entry_id: str, size: int) -> bool:
        """Reserve `size` bytes and evict for them. False if that is not possible now; nothing is changed then."""
        with self._changing() as catalog:
            room = catalog.room()
            if size > room.limit:
                raise EntryTooLarge(size, room.limit)
            evicted: list[str] | None = []
            if (excess := room.used + size - room.limit) > 0:
                evicted = catalog.evict(excess, entry_id)
            if evicted is None:
                return False
            catalog.reserve(entry_id, size)
        try:
            self._remove_files(evicted)
        except BaseException:
            self._abandon(entry_id)
            raise
        return True

    def _publish(self, entry_id: str, new: NewEntry, record: str, digest: str, size: int) -> Entry:
        key = new.embedder, new.vector.size
        if new.is_source and key not in self._indexed:
            try:
                self._read(lambda catalog: catalog.index(*key), CHANGE)
                self._indexed.add(key)
            except CacheUnavailable as error:  # another worker may be making it; searches do without
                log.warning("The search index of %s could not be made yet: %s", new.embedder, error)
        with self._changing() as catalog:
            if not catalog.release(entry_id):
                raise CacheUnavailable(self._database.place, say("reason.overtaken"), say("advice.next"))
            known = catalog.vector_length(new.embedder) if new.is_source else None
            if known not in (None, new.vector.size):
                raise VectorLengthMismatch(new.embedder, new.vector.size, known)
            return catalog.insert(record, new.vector, digest, size)

    def _abandon(self, entry_id: str) -> Entry | None:
        """Undo an upload, or return its entry where it had been published after all."""
        try:
            with self._changing() as catalog:
                if not catalog.abandon(entry_id) and (row := catalog.row(entry_id)):
                    return row.entry
            self._remove_files([entry_id])
        except CacheUnavailable as error:
            log.warning("The room reserved for an entry is given back in some minutes: %s", error)
        return None

    def _remove_files(self, ids: list[str]) -> None:
        """Delete files of which the catalog says that they are garbage, and tell it so."""
        if ids:
            self._objects.remove(ids)
            self._read(lambda catalog: catalog.discard(ids), CHANGE)
            for entry_id in ids:
                self._tier.remove(entry_id)

    # -- transactions

    def _read(self, ask: Callable[[Catalog], T], seconds: float = DEADLINE) -> T:
        """The result of `ask` in a transaction whose changes do not affect what a search finds."""
        with self._reading(seconds) as catalog:
            return ask(catalog)

    @contextmanager
    def _reading(self, seconds: float = DEADLINE) -> Iterator[Catalog]:
        self._prepare()
        with self._catalog(seconds) as catalog:
            yield catalog
        if catalog.damaged:
            self._quarantine(catalog.damaged, "its row in the catalog does not have its checksum")

    def _counting(self) -> AbstractContextManager[Catalog]:
        return self._reading(CHANGE)

    def _place(self) -> str:
        return self._database.place

    @contextmanager
    def _changing(self) -> Iterator[Catalog]:
        self._prepare()
        with self._catalog(CHANGE) as catalog:
            catalog.lock()
            yield catalog

    @contextmanager
    def _catalog(self, seconds: float = DEADLINE) -> Iterator[Catalog]:
        with self._database.transaction(seconds) as connection:
            yield Catalog(connection, self._settings.tenant, self._name)

    def _prepare(self) -> None:
        """Make the cache where it is missing, and see that the files in the store belong to this catalog."""
        if self._ready:
            return
        with self._catalog(CHANGE) as catalog:
            catalog.create(self._max_bytes or DEFAULT_BYTES)
            catalog.lock()
            if self._max_bytes is not None:
                catalog.set_limit(self._max_bytes)
            mark = catalog.store_mark()
            if mark is None:
                mark = uuid.uuid4().hex
                catalog.set_store_mark(mark)
            empty = catalog.is_empty()
        there = self._objects.mark()
        if there is None and empty:
            self._objects.set_mark(mark)
            there = mark
        if there != mark:
            raise self._other_location()
        self._ready = True
        self._keep_limit()

    def _other_location(self) -> CacheUnavailable:
        reason = say("reason.location", files=self._objects.place)
        return CacheUnavailable(self._database.place, reason, say("advice.location"))


def _ranked(found: list[Found], query: np.ndarray) -> list[Match]:
    """By score, recomputed in float64, then the newest."""
    scored = sorted(((float(score(one.vector, query)), one.row.seq, one.row.entry) for one in found), reverse=True)
    return [Match(entry, value) for value, _, entry in scored]
