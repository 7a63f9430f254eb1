"""What one transaction reads and writes in the catalog.

Every change that a search could notice gets the next number of one sequence: a new entry is stored under its
number (`entries.seq`), a dropped one leaves a tombstone with its own (`tombstones.change`). The highest is
the catalog's version; whoever has seen version v catches up by reading what is numbered above it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .entry import Entry, canonical_json
from .record import read_record

HISTORY = 10_000  # changes for which tombstones are kept; whoever lags further behind starts over

_ROW = "seq, id, used, hits, space, embedder, is_source, request, bytes, digest, record, vector, checksum"
_CHECKED = ("id", "space", "embedder", "is_source", "request", "bytes", "digest", "record")
_SOURCES = "state = 'live' AND is_source = 1 AND embedder = :embedder"


@dataclass(frozen=True)
class Row:
    """A row whose checksum agrees. digest: of the blob's header. vector: [D] float32."""

    seq: int
    entry: Entry
    digest: str
    vector: np.ndarray


@dataclass(frozen=True)
class Removed:
    """A row that is gone, or out of use; what is left of it in the blobs is for the caller to remove."""

    seq: int
    id: str


def _checksum(columns: list, vector: bytes) -> str:
    return hashlib.sha256(canonical_json(columns).encode() + vector).hexdigest()


class Transaction:
    """Statements on an open transaction. Rows that fail their checksum are left out, into `damaged`."""

    def __init__(self, db: sqlite3.Connection):
        self._db = db
        self.damaged: list[Removed] = []

    # -- reading

    def version(self) -> int:
        """The number of the last change; it only grows."""
        (version,) = self._db.execute(
            "SELECT max(ifnull((SELECT max(seq) FROM entries), 0), ifnull((SELECT max(change) FROM tombstones), 0))"
        ).fetchone()
        return version

    def row(self, entry_id: str) -> Row | None:
        return next((row for row in self._rows("id = :id", id=entry_id) if row.entry.id == entry_id), None)

    def row_numbered(self, seq: int) -> Row | None:
        return next(self._rows("seq = :seq", seq=seq), None)

    def newest_of_request(self, request: str) -> Row | None:
        rows = self._rows("request = :request ORDER BY seq DESC", request=request)
        return next((row for row in rows if row.entry.request == request), None)

    def newest(self, limit: int, offset: int) -> list[Row]:
        return list(self._rows("1 ORDER BY seq DESC LIMIT :limit OFFSET :offset", limit=limit, offset=offset))

    def sources_after(self, seq: int, embedder: str, space: str | None) -> Iterator[Row]:
        """Sources of `embedder` numbered above `seq`, in the space with this key or (None) in all."""
        where = "is_source = 1 AND embedder = :embedder AND seq > :after"
        if space is not None:
            where += " AND space = :space"
        for row in self._rows(where, embedder=embedder, space=space, after=seq):
            # A damaged SQL index could bring rows that were not asked for; the row itself is right.
            if row.entry.embedder == embedder and space in (None, row.entry.space.key()):
                yield row

    def seqs_of_sources(self, embedder: str, space: str) -> set[int]:
        where = f"{_SOURCES} AND space = :space"
        rows = self._db.execute(f"SELECT seq FROM entries WHERE {where}", {"embedder": embedder, "space": space})
        return {seq for (seq,) in rows}

    def vector_bytes(self, embedder: str) -> int | None:
        """Size of the vectors of this embedder's sources, None when it has none."""
        row = self._db.execute(
            f"SELECT length(vector) FROM entries WHERE {_SOURCES}", {"embedder": embedder}
        ).fetchone()
        return row and row[0]

    def dropped_after(self, change: int) -> list[int] | None:
        """Numbers of the rows dropped since `change`; None when all were."""
        rows = self._db.execute("SELECT entry FROM tombstones WHERE change > ?", (change,))
        dropped = [seq for (seq,) in rows]
        return None if None in dropped else dropped

    def known_ids(self) -> set[str]:
        """Ids of all rows, in any state, and of all reservations."""
        return {
            entry_id for (entry_id,) in self._db.execute("SELECT id FROM entries UNION SELECT id FROM reservations")
        }

    def totals(self) -> tuple[int, int, int, float]:
        """(live entries, their bytes with quarantined ones, hits, seconds saved)."""
        entries, size = self._db.execute(
            "SELECT count(*) FILTER (WHERE state = 'live'), total(bytes) FROM entries"
        ).fetchone()
        hits, seconds = self._db.execute("SELECT hits, seconds_saved FROM usage").fetchone()
        return entries, int(size), hits, seconds

    def _rows(self, where: str, **values) -> Iterator[Row]:
        rows = self._db.execute(f"SELECT {_ROW} FROM entries WHERE state = 'live' AND {where}", values)
        rows.row_factory = sqlite3.Row
        for raw in rows:
            try:
                if _checksum([raw[name] for name in _CHECKED], raw["vector"]) != raw["checksum"]:
                    raise ValueError("checksum")
                entry = read_record(raw["record"], used=raw["used"], hits=raw["hits"], size=raw["bytes"])
            except (ValueError, TypeError, KeyError, OverflowError):
                self.damaged.append(Removed(raw["seq"], raw["id"]))
                continue
            yield Row(raw["seq"], entry, raw["digest"], np.frombuffer(raw["vector"], "<f4"))

    # -- writing

    def insert(self, record: str, vector: np.ndarray, digest: str, size: int) -> Entry:
        """Add a row, visible to searches from the commit on. Arguments as in `blobs.Header`."""
        entry = read_record(record, size=size)
        stored = vector.astype("<f4").tobytes()
        columns = {
            "id": entry.id,
            "space": entry.space.key(),
            "embedder": entry.embedder,
            "is_source": int(entry.is_source),
            "request": entry.request,
            "bytes": size,
            "digest": digest,
            "record": record,
        }
        self._db.execute(
            "INSERT INTO entries (seq, used, vector, checksum,"
            " id, space, embedder, is_source, request, bytes, digest, record)"
            " VALUES (:seq, :used, :vector, :checksum,"
            " :id, :space, :embedder, :is_source, :request, :bytes, :digest, :record)",
            {
                **columns,
                "seq": self.version() + 1,
                "used": entry.used,
                "vector": stored,
                "checksum": _checksum([columns[name] for name in _CHECKED], stored),
            },
        )
        return entry

    def drop(self, rows: list[Removed]) -> None:
        """Delete rows, leaving tombstones."""
        for row in rows:
            self._bury(row.seq)
            self._db.execute("DELETE FROM entries WHERE seq = ?", (row.seq,))

    def drop_id(self, entry_id: str) -> list[Removed]:
        """Delete the row of an entry, in whatever state; returns it, or nothing."""
        rows = self._removed("id = ?", entry_id)
        self.drop(rows)
        return rows

    def drop_all(self) -> list[Removed]:
        """Delete all rows, quarantined ones too; returns them."""
        rows = self._removed("1")
        self._bury(None)
        self._db.execute("DELETE FROM entries")
        return rows

    def quarantine(self, row: Removed, reason: str) -> None:
        """Take a row out of use, keeping it for inspection until its room is needed."""
        self._db.execute("UPDATE entries SET state = 'quarantined', reason = ? WHERE seq = ?", (reason, row.seq))
        self._bury(row.seq)

    def make_room(self, size: int, max_bytes: int) -> list[Removed]:
        """Drop rows until `size` more bytes fit: quarantined ones first, then the least recently used."""
        # Only a damaged row, or one from before the limit was lowered, has such a size.
        victims = self._removed("bytes NOT BETWEEN 0 AND ?", max_bytes)
        self.drop(victims)
        (excess,) = self._db.execute(
            "SELECT (SELECT total(bytes) FROM entries) + (SELECT total(bytes) FROM reservations) + ? - ?",
            (size, max_bytes),
        ).fetchone()
        oldest = []
        for seq, entry_id, freed in self._db.execute(
            "SELECT seq, id, bytes FROM entries ORDER BY state DESC, used, seq"
        ):
            if excess <= 0:
                break
            oldest.append(Removed(seq, entry_id))
            excess -= freed
        self.drop(oldest)
        return victims + oldest

    def reserve(self, entry_id: str, size: int) -> None:
        """Count `size` bytes as taken, before they are written."""
        self._db.execute("INSERT INTO reservations (id, bytes, made) VALUES (?, ?, ?)", (entry_id, size, time.time()))

    def release(self, entry_id: str) -> bool:
        """Give a reservation back; False when there is none."""
        return self._db.execute("DELETE FROM reservations WHERE id = ?", (entry_id,)).rowcount == 1

    def release_older_than(self, age: float) -> list[str]:
        """Give back what writers that must be dead had reserved; returns the ids of their entries."""
        return [
            entry_id
            for (entry_id,) in self._db.execute(
                "DELETE FROM reservations WHERE made < ? RETURNING id", (time.time() - age,)
            ).fetchall()
        ]

    def reserved(self) -> int:
        (size,) = self._db.execute("SELECT total(bytes) FROM reservations").fetchone()
        return int(size)

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """Count a hit, and make the entry the most recently used."""
        self._db.execute("UPDATE entries SET used = ?, hits = hits + 1 WHERE id = ?", (time.time(), entry_id))
        self._db.execute("UPDATE usage SET hits = hits + 1, seconds_saved = seconds_saved + ?", (saved_seconds,))

    def _removed(self, where: str, *values) -> list[Removed]:
        return [Removed(*row) for row in self._db.execute(f"SELECT seq, id FROM entries WHERE {where}", values)]

    def _bury(self, seq: int | None) -> None:
        # Before the row goes: the version is the highest number there is, and the row's may be that.
        change = self.version() + 1
        self._db.execute("INSERT INTO tombstones (change, entry) VALUES (?, ?)", (change, seq))
        self._db.execute("DELETE FROM tombstones WHERE change <= ?", (change - HISTORY,))
