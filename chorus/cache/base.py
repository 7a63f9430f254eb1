"""What the local and the shared cache have in common: answers from rows of a catalog and files of entries."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..messages import say
from .blobs import checked_id
from .entry import EVERYTHING, Entry, NewEntry, Query
from .errors import EntryDamaged, EntryMissing
from .foreign import unpack
from .format import BlobDamaged, EntryFile, Packed, pack
from .record import write_record
from .rules import MOST_SECONDS

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Row(Protocol):
    """A row whose checksum agrees. seq: its number. digest: SHA-256 of the head of the entry's file."""

    @property
    def seq(self) -> int: ...
    @property
    def entry(self) -> Entry: ...
    @property
    def digest(self) -> str: ...


class Rows(Protocol):
    """A transaction on a catalog. damaged: what was left out because its row fails its checksum."""

    damaged: list[Any]

    def row(self, entry_id: str) -> Row | None: ...
    def newest_of_request(self, request: str) -> Row | None: ...
    def page(self, query: Query, limit: int, offset: int) -> list[Any]: ...
    def count(self, query: Query) -> int: ...
    def version(self) -> int: ...
    def record_hit(self, entry_id: str, saved_seconds: float) -> None: ...
    def pin(self, entry_id: str, pinned: bool) -> bool: ...


class CatalogCache(ABC):
    """The part of `Cache` that follows from a catalog's transactions and from one way to read and keep a file."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Rows]:
        """A transaction that reads. Rows that turn out damaged are quarantined after it."""

    @abstractmethod
    def _counting(self) -> AbstractContextManager[Rows]:
        """A transaction whose changes do not affect what a search finds."""

    @abstractmethod
    def _place(self) -> Any:
        """Where the catalog is, for people."""

    @abstractmethod
    def _taken(self, row: Any, take: Callable[[EntryFile], T]) -> T:
        """The result of `take` on the verified file of a row's entry. Raises as `Cache.load` does."""

    @abstractmethod
    def _keep(self, entry_id: str, new: NewEntry, packed: Packed) -> Entry:
        """Keep an entry's file and add its row, as `Cache.put` promises."""

    def _check_store(self) -> None:  # noqa: B027 - only a store that can be unreachable needs it
        """Raises CacheUnavailable if it is known that nothing can be stored now; called before the work of packing."""

    # -- rows

    def find_request(self, request: str) -> Entry | None:
        """See `Cache.find_request`."""
        with self._reading() as rows:
            row = rows.newest_of_request(request)
        return row.entry if row else None

    def get(self, entry_id: str) -> Entry | None:
        """See `Cache.get`."""
        with self._reading() as rows:
            row = rows.row(entry_id)
        return row.entry if row else None

    def entries(self, limit: int = 100, offset: int = 0, query: Query = EVERYTHING) -> list[Entry]:
        """See `Cache.entries`."""
        with self._reading() as rows:
            return [row.entry for row in rows.page(query, limit, offset)]

    def count(self, query: Query = EVERYTHING) -> int:
        """See `Cache.count`."""
        with self._reading() as rows:
            return rows.count(query)

    def version(self) -> int:
        """See `Cache.version`."""
        with self._reading() as rows:
            return rows.version()

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """See `Cache.record_hit`."""
        if not 0 <= saved_seconds <= MOST_SECONDS:
            raise ValueError(f"a hit saves 0 to {MOST_SECONDS:.0f} seconds, not {saved_seconds}")
        with self._counting() as rows:
            rows.record_hit(entry_id, saved_seconds)

    def pin(self, entry_id: str, pinned: bool = True) -> None:
        """See `Cache.pin`."""
        with self._counting() as rows:
            if not rows.pin(entry_id, pinned):
                raise EntryMissing(entry_id)

    # -- files

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

    def file(self, entry_id: str) -> bytes:
        """See `Cache.file`."""
        return self._from_file(entry_id, (), lambda file: file.content)

    def put(self, new: NewEntry, entry_id: str | None = None) -> Entry:
        """See `Cache.put`. CacheUnavailable where pinned entries leave no room."""
        entry_id = uuid.uuid4().hex if entry_id is None else checked_id(entry_id)
        self._check_store()
        packed = pack(write_record(entry_id, time.time(), new), new.vector, new.tensors, new.coding)
        return self._keep(entry_id, new, packed)

    def adopt(self, entry_id: str, content: bytes) -> Entry:
        """See `Cache.adopt`."""
        checked_id(entry_id)
        self._check_store()
        return self._keep(entry_id, *unpack(entry_id, content))

    def _from_file(self, entry_id: str, names: Collection[str], take: Callable[[EntryFile], T]) -> T:
        """What `take` gets from the entry's verified file, which has tensors of these names."""
        with self._reading() as rows:
            row, damaged = rows.row(entry_id), rows.damaged
        if row is None:
            raise EntryDamaged(entry_id, self._place(), say("reason.row")) if damaged else EntryMissing(entry_id)
        if unknown := sorted(set(names) - set(row.entry.tensor_names)):
            raise EntryMissing(
                entry_id, say("reason.no_tensor", names=", ".join(unknown), known=str(row.entry.tensor_names))
            )

        def of_this_row(file: EntryFile) -> T:
            if file.entry.space != row.entry.space:
                raise BlobDamaged("the file's space is not the one that its row names")
            return take(file)

        return self._taken(row, of_this_row)
