"""What one transaction reads and writes in the catalog.

Every change that a search could notice gets the next number of one sequence: a new entry is stored under its
number (`entries.seq`), a dropped one leaves a tombstone with its own (`tombstones.change`). The highest is
the catalog's version; whoever has seen version v catches up by reading what is numbered above it.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from . import eviction
from .entry import EVERYTHING, Entry, ModelStats, Query, canonical_json, unit_vector
from .eviction import Limits
from .format import Header
from .query import conditions, listed, order
from .recollection import Recollection
from .record import read_record

_PIECE = 500  # sources read at once
HISTORY = 10_000  # changes for which tombstones are kept; a process that is further behind reads all vectors again
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)  # of a bad record
DAYS = 90  # of hits that are told by day

_CHECKED = ("id", "space", "embedder", "is_source", "request", "bytes", "digest", "record")
_CHANGING = ("used", "hits", "saved", "pinned")
# A live row without its line in the listing counts as damaged, so the join must keep it.
_ROW = ", ".join(["e.seq", "e.checksum", "e.vector", *(f"e.{c}" for c in _CHECKED), *(f"l.{c}" for c in _CHANGING)])
_LIVE = f"SELECT {_ROW} FROM entries e LEFT JOIN listing l ON l.seq = e.seq WHERE e.state = 'live'"
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


@dataclass(frozen=True)
class Totals:
    """entries, bytes, pinned (how many) and pinned_bytes: of live entries. quarantined and reserved: in bytes.
    writers: entries for which room is reserved. hits, seconds_saved: since the cache was made."""

    entries: int
    bytes: int
    pinned: int
    pinned_bytes: int
    quarantined: int
    reserved: int
    writers: int
    hits: int
    seconds_saved: float


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
        return next((row for row in self._rows("e.id = :id", id=entry_id) if row.entry.id == entry_id), None)

    def row_numbered(self, seq: int) -> Row | None:
        return next(self._rows("e.seq = :seq", seq=seq), None)

    def newest_of_request(self, request: str) -> Row | None:
        rows = self._rows("e.request = :request ORDER BY e.seq DESC", request=request)
        return next((row for row in rows if row.entry.request == request), None)

    def page(self, query: Query, limit: int, offset: int) -> list[Row]:
        """At most `limit` rows that answer the query, in its order, after the first `offset`."""
        where, values = conditions(query)
        # The seqs first, from narrow rows and indices alone: an offset costs no look at what is passed over.
        seqs = self._db.execute(
            f"SELECT seq FROM listing WHERE {where} ORDER BY {order(query)} LIMIT :limit OFFSET :offset",
            {**values, "limit": limit, "offset": offset},
        ).fetchall()
        return [row for (seq,) in seqs if (row := self.row_numbered(seq)) is not None]

    def count(self, query: Query) -> int:
        """How many rows answer the query."""
        if query == EVERYTHING:
            return self.totals().entries
        where, values = conditions(query)
        (count,) = self._db.execute(f"SELECT count(*) FROM listing WHERE {where}", values).fetchone()
        return count

    def sources(
        self, embedder: str, after: int = -1, length: int = 0
    ) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
        """This embedder's sources numbered above `after`, unverified, by pieces, in the order of their numbers.

        A piece: numbers [N] int64, keys of their spaces, vectors [N, D] float32. length: D, 0 for what most of the
        first piece have; rows with another are left out, and checked.
        """
        rows = self._db.execute(
            f"SELECT seq, space, vector FROM entries WHERE {_SOURCES} AND seq > :after ORDER BY seq",
            {"embedder": embedder, "after": after},
        )
        while piece := rows.fetchmany(_PIECE):
            sizes = Counter(len(vector) for _, _, vector in piece if isinstance(vector, bytes) and vector)
            length = length or next((size for size, _ in sizes.most_common(1)), 0) // 4
            good = [row for row in piece if isinstance(row[2], bytes) and len(row[2]) == 4 * length > 0]
            for seq in {seq for seq, _, _ in piece}.difference(seq for seq, _, _ in good):
                self.row_numbered(seq)
            if good:
                seqs, spaces, vectors = zip(*good, strict=True)
                yield (
                    np.array(seqs, np.int64),
                    list(spaces),
                    np.frombuffer(b"".join(vectors), "<f4").reshape(-1, length),
                )

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

    def totals(self) -> Totals:
        """How much there is, without counting it."""
        one = self._db.execute
        (quarantined,) = one("SELECT total(bytes) FROM entries WHERE state <> 'live'").fetchone()
        reserved, writers = one("SELECT total(bytes), count(*) FROM reservations").fetchone()
        entries, size, pinned, pinned_bytes = one("SELECT entries, bytes, pinned, pinned_bytes FROM totals").fetchone()
        hits, seconds = one("SELECT hits, seconds_saved FROM usage").fetchone()
        return Totals(
            entries, int(size), pinned, int(pinned_bytes), int(quarantined), int(reserved), writers, hits, seconds
        )

    def models(self) -> tuple[ModelStats, ...]:
        """What is kept for each model, the largest first."""
        rows = self._db.execute(
            "SELECT weights, latent_format, count(*), CAST(total(bytes) AS INTEGER), CAST(total(hits) AS INTEGER),"
            " total(saved) FROM listing GROUP BY weights, latent_format ORDER BY total(bytes) DESC, weights"
        )
        return tuple(ModelStats(*row) for row in rows)

    def days(self) -> tuple[tuple[str, int, float], ...]:
        """(day, hits, seconds saved) of the days with hits among the last 90, the oldest first."""
        now = time.time()
        rows = self._db.execute(
            "SELECT day, hits, seconds_saved FROM days WHERE day BETWEEN ? AND ? ORDER BY day",
            (_day(now - (DAYS - 1) * 86_400), _day(now)),
        )
        return tuple(rows.fetchall())

    def _rows(self, where: str, **values) -> Iterator[Row]:
        rows = self._db.execute(f"{_LIVE} AND {where}", values)
        rows.row_factory = sqlite3.Row
        for raw in rows:
            try:
                if _checksum([raw[name] for name in _CHECKED], raw["vector"]) != raw["checksum"]:
                    raise ValueError("checksum")
                entry = read_record(
                    raw["record"],
                    used=_finite(raw["used"]),
                    hits=raw["hits"],
                    saved=_finite(raw["saved"]),
                    pinned=raw["pinned"] == 1,
                    size=raw["bytes"],
                )
            except UNREADABLE:
                self.damaged.append(Removed(raw["seq"], raw["id"]))
                continue
            yield Row(raw["seq"], entry, raw["digest"], np.frombuffer(raw["vector"], "<f4"))

    # -- writing

    def insert(
        self, record: str, vector: np.ndarray, digest: str, size: int, neighbour: tuple[int, float] | None = None
    ) -> Entry:
        """Add a row, visible to searches from the commit on. Arguments as in `blobs.Header`.

        neighbour: number of the nearest source in its space, and how like the two are; it is worth less from now on.
        """
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
        seq = self.version() + 1
        self._db.execute(
            "INSERT INTO entries (seq, checksum, vector,"
            " id, space, embedder, is_source, request, bytes, digest, record)"
            " VALUES (:seq, :checksum, :vector,"
            " :id, :space, :embedder, :is_source, :request, :bytes, :digest, :record)",
            {
                **columns,
                "seq": seq,
                "vector": stored,
                "checksum": _checksum([columns[name] for name in _CHECKED], stored),
            },
        )
        use = {"seq": seq, "id": entry.id, "bytes": size, "is_source": int(entry.is_source), "used": entry.used}
        tick, clock = self._next_use()
        line = {**use, "tick": tick, "clock": clock, **listed(entry)}
        self._db.execute(
            f"INSERT INTO listing ({', '.join(line)}) VALUES ({', '.join(f':{name}' for name in line)})", line
        )
        self._prioritise("seq = :seq", seq=seq)
        if neighbour is not None and neighbour[1] >= eviction.ALIKE:
            self._db.execute(
                "UPDATE listing SET neighbour = ?, likeness = ? WHERE seq = ? AND likeness <= ?",
                (seq, neighbour[1], *neighbour),
            )
            self._prioritise("seq = :seq", seq=neighbour[0])
        return entry

    def adopt(self, files: Iterable[tuple[str, Header]]) -> tuple[int, list[str]]:
        """Add rows for files (id and header) that have none, the oldest entry first.

        Returns how many there are, and the ids of those of which no row can be made.
        """
        created, refused = [], []
        for entry_id, header in files:
            try:
                unit_vector(header.vector)
                created.append((read_record(header.record, size=header.size).created, entry_id, header))
            except UNREADABLE:
                refused.append(entry_id)
        for _, entry_id, header in sorted(created, key=lambda one: one[:2]):
            self._db.execute("SAVEPOINT one")
            try:
                self.insert(header.record, header.vector, header.digest, header.size)
            except UNREADABLE:
                self._db.execute("ROLLBACK TO one")
                refused.append(entry_id)
            self._db.execute("RELEASE one")
        return len(created), refused

    def relist(self) -> None:
        """Write anew what the listing keeps of the records, after a migration."""
        for (seq,) in self._db.execute("SELECT seq FROM listing").fetchall():
            record = self._db.execute("SELECT record, bytes FROM entries WHERE seq = ?", (seq,)).fetchone()
            try:
                line = listed(read_record(record[0], size=record[1]))
            except UNREADABLE:
                continue  # damaged: told and put in quarantine when it is read
            changes = ", ".join(f"{name} = :{name}" for name in line)
            self._db.execute(f"UPDATE listing SET {changes} WHERE seq = :seq", {**line, "seq": seq})
        self._prioritise("1")

    def start_above(self, version: int) -> None:
        """Number this catalog's changes from above `version`."""
        self._db.execute("INSERT INTO tombstones VALUES (?, NULL)", (max(version, self.version()) + 1,))

    def recall(self, past: Recollection) -> None:
        """Take over what another catalog knew of the use of its entries."""
        self._db.execute("UPDATE usage SET hits = ?, seconds_saved = ?", (past.hits, past.seconds_saved))
        self._db.executemany("INSERT OR REPLACE INTO days VALUES (?, ?, ?)", past.days)
        self._db.execute("UPDATE eviction SET policy = ?", (past.policy,))
        self._db.executemany(
            "UPDATE listing SET used = ?, hits = ?, saved = ?, pinned = ?"
            " WHERE seq = (SELECT seq FROM entries WHERE id = ?)",
            [(*values, entry_id) for entry_id, values in past.uses.items()],
        )
        # Uses are counted in the order of their times, as the tick of the last is all that a policy asks for.
        self._db.execute(
            "UPDATE listing SET tick = ranked.tick FROM"
            " (SELECT seq, row_number() OVER (ORDER BY used, seq) AS tick FROM listing) AS ranked"
            " WHERE ranked.seq = listing.seq"
        )
        self._prioritise("1")

    def choose_policy(self, policy: str) -> None:
        """From now on evict by this policy, one of `eviction.POLICIES`; all priorities are computed anew."""
        eviction.checked(policy)
        if policy != self.policy():
            self._db.execute("UPDATE eviction SET policy = ?, clock = 0.0", (policy,))
            self._db.execute("UPDATE listing SET clock = 0.0")
            self._prioritise("1")

    def policy(self) -> str:
        """The chosen policy's name, "" for the default."""
        (policy,) = self._db.execute("SELECT policy FROM eviction").fetchone()
        return policy

    def drop(self, rows: Iterable[Removed]) -> None:
        """Delete rows, leaving tombstones."""
        for row in rows:
            self._bury(row.seq)
            self._db.execute("DELETE FROM entries WHERE seq = ?", (row.seq,))
            self._unlist(row.seq)

    def rows_of(self, entry_id: str) -> list[Removed]:
        """The row of an entry, in whatever state, or nothing."""
        return self._removed("id = ?", entry_id)

    def live_rows(self) -> list[Removed]:
        """All rows that are in use."""
        return self._removed("state = 'live'")

    def all_rows(self) -> list[Removed]:
        """All rows, in whatever state."""
        return self._removed("1")

    def quarantine(self, row: Removed, reason: str) -> None:
        """Take a row out of use, keeping it for inspection until its room is needed."""
        self._db.execute("UPDATE entries SET state = 'quarantined', reason = ? WHERE seq = ?", (reason, row.seq))
        self._unlist(row.seq)
        self._bury(row.seq)

    def leave(self, row: Removed) -> None:
        """Take a row out of use whose file cannot be deleted yet, and delete its text."""
        self.quarantine(row, "to be deleted")
        self._db.execute("UPDATE entries SET record = '', vector = x'', request = '' WHERE seq = ?", (row.seq,))

    def pin(self, entry_id: str, pinned: bool) -> bool:
        """Whether there is such an entry; it is pinned, or no longer."""
        changed = self._db.execute(
            "UPDATE listing SET pinned = ? WHERE seq = (SELECT seq FROM entries WHERE id = ? AND state = 'live')",
            (int(pinned), entry_id),
        )
        return changed.rowcount == 1

    def victims(self, limits: Limits, size: int = 0, entries: int = 0, kept: Collection[int] = ()) -> list[Removed]:
        """Which rows must go until so many more bytes and entries fit: quarantined ones first, then by priority.

        Pinned ones stay, even where the limits then do not hold. kept: numbers of others that stay.
        """
        # Only a damaged row, or one from before the limit was lowered, has such a size.
        oversized = self._db.execute(
            "SELECT seq, id FROM entries WHERE state <> 'live' AND bytes NOT BETWEEN 0 AND :most"
            " UNION ALL SELECT seq, id FROM listing WHERE (bytes < 0 OR bytes > :most) AND pinned = 0",
            {"most": limits.bytes},
        )
        if found := [Removed(*row) for row in oversized if row[0] not in kept]:
            return found
        totals = self.totals()
        excess = totals.bytes + totals.quarantined + totals.reserved + size - limits.bytes
        surplus = 0 if limits.entries is None else totals.entries + totals.writers + entries - limits.entries
        chosen: list[Removed] = []
        for seq, entry_id, freed in self._db.execute("SELECT seq, id, bytes FROM entries WHERE state <> 'live'"):
            if excess <= 0:
                break
            if seq not in kept:
                chosen.append(Removed(seq, entry_id))
                excess -= freed
        clock = None
        for seq, entry_id, freed, priority in self._db.execute(
            "SELECT seq, id, bytes, priority FROM listing WHERE pinned = 0 ORDER BY priority, tick"
        ):
            if excess <= 0 and surplus <= 0:
                break
            chosen.append(Removed(seq, entry_id))
            excess, surplus, clock = excess - freed, surplus - 1, priority
        if clock is not None:
            self._db.execute("UPDATE eviction SET clock = max(clock, ?)", (clock,))
        return chosen

    def recount(self) -> None:
        """Compute the totals anew, in case flipped bits have changed them."""
        self._db.execute(
            "UPDATE totals SET (entries, bytes, pinned, pinned_bytes) ="
            " (SELECT count(*), CAST(total(bytes) AS INTEGER), CAST(total(pinned) AS INTEGER),"
            " CAST(total(pinned * bytes) AS INTEGER) FROM listing)"
        )

    def knows(self, entry_id: str) -> bool:
        """Whether there is such a row, in any state, or a reservation for it."""
        found = self._db.execute(
            "SELECT 1 FROM entries WHERE id = :id UNION SELECT 1 FROM reservations WHERE id = :id", {"id": entry_id}
        )
        return found.fetchone() is not None

    def reserve(self, entry_id: str, size: int) -> None:
        """Count `size` bytes as taken, before they are written."""
        self._db.execute("INSERT INTO reservations (id, bytes, made) VALUES (?, ?, ?)", (entry_id, size, time.time()))

    def release(self, entry_id: str) -> bool:
        """Give a reservation back; False when there is none."""
        return self._db.execute("DELETE FROM reservations WHERE id = ?", (entry_id,)).rowcount == 1

    def release_older_than(self, age: float) -> list[str]:
        """Give back what writers that must be dead had reserved; returns the ids of their entries.

        Made in the future means that the clock was set back since: nobody knows how long ago.
        """
        now = time.time()
        released = self._db.execute(
            "DELETE FROM reservations WHERE made NOT BETWEEN ? AND ? RETURNING id", (now - age, now + age)
        )
        return [entry_id for (entry_id,) in released.fetchall()]

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """Count a hit, and make the entry the most recently used."""
        now = time.time()
        self._db.execute(
            "UPDATE listing SET used = ?, hits = hits + 1, saved = saved + ?, tick = ?, clock = ?"
            " WHERE seq = (SELECT seq FROM entries WHERE id = ?)",
            (now, saved_seconds, *self._next_use(), entry_id),
        )
        self._prioritise("seq = (SELECT seq FROM entries WHERE id = :id)", id=entry_id)
        self._db.execute("UPDATE usage SET hits = hits + 1, seconds_saved = seconds_saved + ?", (saved_seconds,))
        self._db.execute(
            "INSERT INTO days VALUES (?, 1, ?) ON CONFLICT (day) DO UPDATE"
            " SET hits = hits + 1, seconds_saved = seconds_saved + excluded.seconds_saved",
            (_day(now), saved_seconds),
        )

    def _unlist(self, seq: int) -> None:
        self._db.execute("DELETE FROM listing WHERE seq = ?", (seq,))
        freed = self._db.execute(
            "UPDATE listing SET neighbour = NULL, likeness = 0.0 WHERE neighbour = ? RETURNING seq", (seq,)
        ).fetchall()
        for (alone,) in freed:
            self._prioritise("seq = :seq", seq=alone)

    def _next_use(self) -> tuple[int, float]:
        """The number of a use, and the clock of eviction at it."""
        return self._db.execute("UPDATE eviction SET tick = tick + 1 RETURNING tick, clock").fetchone()

    def _prioritise(self, where: str, **values) -> None:
        formula = eviction.priority(self.policy())
        self._db.execute(f"UPDATE listing SET priority = {formula} WHERE {where}", values)

    def _removed(self, where: str, *values) -> list[Removed]:
        return [Removed(*row) for row in self._db.execute(f"SELECT seq, id FROM entries WHERE {where}", values)]

    def _bury(self, seq: int) -> None:
        # Before the row goes: the version is the highest number there is, and the row's may be that.
        change = self.version() + 1
        self._db.execute("INSERT INTO tombstones (change, entry) VALUES (?, ?)", (change, seq))
        self._db.execute("DELETE FROM tombstones WHERE change <= ?", (change - HISTORY,))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value


def _day(seconds: float) -> str:
    """The day of a Unix time in UTC, as YYYY-MM-DD."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
