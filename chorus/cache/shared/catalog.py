"""What one transaction reads and writes in the shared catalog.

Whoever changes what a search could find locks the tenant's row first and the cache's with it, so such changes come
one after the other, and `version` and `seq` grow in the order of their commits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from psycopg.rows import dict_row

from ..entry import CacheStats, Entry, ModelStats, Query, Space, canonical_json
from ..query import order
from ..record import read_record
from .schema import LARGEST_HALF_INDEXED, LARGEST_INDEXED

DAYS = 90  # of the statistics

_MARK = "\uf8ff"  # private use characters, which prompts hardly contain
_UNKEPT = re.compile(f"[\x00\ud800-\udfff{_MARK}]")

_ROW = "seq, id, used, hits, saved, pinned, space, embedder, is_source, request, bytes, digest, vector_sha256, record"
_CHECKED = ("id", "space", "embedder", "is_source", "request", "bytes", "digest", "vector_sha256", "record")
_MINE = "tenant = %(tenant)s AND cache = %(cache)s"
# An upload begins once the files that go for it are deleted, so the two together never take more than the larger.
_USED = f"""(SELECT coalesce(sum(greatest(r.bytes, (SELECT coalesce(sum(g.bytes), 0) FROM chorus.garbage g
        WHERE g.tenant = r.tenant AND g.room_for = r.id))), 0) FROM chorus.reservations r WHERE {_MINE})
    + (SELECT coalesce(sum(bytes), 0) FROM chorus.garbage g WHERE {_MINE} AND NOT EXISTS (
        SELECT 1 FROM chorus.reservations r WHERE r.tenant = g.tenant AND r.id = g.room_for))"""


@dataclass(frozen=True)
class Row:
    """A row whose checksum agrees. digest: of the entry's file."""

    seq: int
    entry: Entry
    digest: str
    vector_sha256: str


@dataclass(frozen=True)
class Found:
    """A row and its vector ([D] float32), as verified as the row."""

    row: Row
    vector: np.ndarray


@dataclass(frozen=True)
class Room:
    """limit: in bytes. used: what entries, uploads and undeleted files take of it."""

    limit: int
    used: int


class Catalog:
    """Statements on an open transaction, all of one tenant's cache. Rows that fail their checksum go to `damaged`."""

    def __init__(self, connection: psycopg.Connection, tenant: str, cache: str):
        self._connection = connection
        self._mine = {"tenant": tenant, "cache": text(cache)}
        self.damaged: list[int] = []

    # -- reading

    def names(self) -> list[str]:
        """Of all caches of the tenant."""
        rows = self._execute('SELECT cache FROM chorus.caches WHERE tenant = %(tenant)s ORDER BY cache COLLATE "C"')
        return [name for (name,) in rows.fetchall()]

    def version(self) -> int:
        """Grows with every change that a search could notice."""
        return self._one(f"SELECT version FROM chorus.caches WHERE {_MINE}")[0]

    def row(self, entry_id: str) -> Row | None:
        return next(self._rows("id = %(id)s", id=text(entry_id)), None)

    def newest_of_request(self, request: str) -> Row | None:
        return next(self._rows("request = %(request)s ORDER BY seq DESC", request=text(request)), None)

    def page(self, query: Query, limit: int, offset: int) -> list[Row]:
        where, values = _conditions(query)
        page = f"{where} ORDER BY {order(query)} LIMIT %(limit)s OFFSET %(offset)s"
        return list(self._rows(page, limit=limit, offset=offset, **values))

    def count(self, query: Query) -> int:
        where, values = _conditions(query)
        return self._one(f"SELECT count(*) FROM chorus.entries WHERE {_MINE} AND state = 'live' AND {where}", **values)[
            0
        ]

    def vector_length(self, embedder: str) -> int | None:
        """Of the vectors of this embedder's sources, None when it has none."""
        found = self._execute(
            f"SELECT dims FROM chorus.vectors WHERE {_MINE} AND embedder = %(embedder)s LIMIT 1",
            embedder=text(embedder),
        ).fetchone()
        return None if found is None else int(found[0])

    def nearest(self, query: np.ndarray, embedder: str, space: Space, same: bool, ask: int, exact: int) -> list[Found]:
        """About the `ask` nearest sources inside the space, or (not same) outside it, in no order.

        Exactly the nearest, by float32 inner product, as long as at most `exact` sources come into question; beyond
        that pgvector's HNSW index may miss one.
        """
        where = f"{_MINE} AND embedder = %(embedder)s AND space {'=' if same else '<>'} %(space)s"
        values = {"embedder": text(embedder), "space": space.key(), "ask": ask, "exact": exact + 1, "dims": query.size}
        (few,) = self._one(
            f"SELECT count(*) <= %(exact)s - 1 FROM"
            f" (SELECT 1 FROM chorus.vectors WHERE {where} LIMIT %(exact)s) counted",
            **values,
        )
        if few:
            distance = "vector <#> %(query)s::vector"
            # Materialised, so that no index is asked for what it may not find.
            near = f"WITH near_by AS MATERIALIZED (SELECT seq, vector FROM chorus.vectors WHERE {where})"
            near += f" SELECT seq, vector FROM near_by ORDER BY {distance} LIMIT %(ask)s"
        else:
            near = f"SELECT seq, vector FROM chorus.vectors WHERE {where} AND dims = %(dims)s"
            near += f" ORDER BY {_indexed('vector', query.size)} <#> {_indexed('%(query)s::vector', query.size)}"
            near += " LIMIT %(ask)s"
        rows = self._checked(
            f"SELECT {_ROW}, checksum, near.vector::text AS vector FROM ({near}) near"
            f" JOIN chorus.entries USING (seq) WHERE {_MINE} AND state = 'live'",
            **values,
            query=Vector(query).to_text(),
        )
        found = []
        for raw, row in rows:
            vector = Vector.from_text(raw["vector"]).to_numpy()
            if _sha256(vector) != row.vector_sha256:
                self.damaged.append(row.seq)
            elif row.entry.embedder == embedder and (row.entry.space == space) == same:
                found.append(Found(row, vector))
        return found

    def totals(self) -> CacheStats:
        (limit,) = self._one(f"SELECT max_bytes FROM chorus.caches WHERE {_MINE}")
        entries, size, pinned = self._one(
            f"SELECT count(*) FILTER (WHERE state = 'live'), coalesce(sum(bytes), 0)::bigint,"
            f" coalesce(sum(bytes) FILTER (WHERE pinned), 0)::bigint FROM chorus.entries WHERE {_MINE}"
        )
        hits, saved = self._one(
            f"SELECT coalesce(sum(hits), 0)::bigint, coalesce(sum(saved), 0) FROM chorus.days WHERE {_MINE}"
        )
        models = self._execute(
            f"SELECT weights, latent_format, count(*), sum(bytes)::bigint, sum(hits)::bigint, sum(saved)"
            f" FROM chorus.entries WHERE {_MINE} AND state = 'live' GROUP BY 1, 2 ORDER BY 4 DESC, 1, 2"
        )
        days = self._execute(
            f"SELECT to_char(day, 'YYYY-MM-DD'), hits, saved FROM chorus.days"
            f" WHERE {_MINE} AND day > current_date - {DAYS} ORDER BY day"
        )
        return CacheStats(
            entries,
            size,
            limit,
            hits,
            saved,
            pinned_bytes=pinned,
            models=tuple(ModelStats(untext(w), untext(f), *rest) for w, f, *rest in models),
            days=tuple(tuple(day) for day in days),
        )

    def known_ids(self, ids: list[str]) -> set[str]:
        """Those of `ids` that have a row, a reservation or a file to be deleted, in any cache of the tenant."""
        rows = self._execute(
            " UNION ALL ".join(
                f"SELECT id FROM chorus.{table} WHERE tenant = %(tenant)s AND id = ANY(%(ids)s)"
                for table in ("entries", "reservations", "garbage")
            ),
            ids=ids,
        )
        return {entry_id for (entry_id,) in rows}

    def live_ids(self, ids: list[str]) -> set[str]:
        """Those of `ids` that are entries of this cache."""
        where = f"{_MINE} AND state = 'live' AND id = ANY(%(ids)s)"
        return {entry_id for (entry_id,) in self._execute(f"SELECT id FROM chorus.entries WHERE {where}", ids=ids)}

    # -- setting up

    def create(self, max_bytes: int) -> None:
        """Make the cache's row, and the tenant's, where they are missing."""
        self._execute("INSERT INTO chorus.tenants (tenant) VALUES (%(tenant)s) ON CONFLICT DO NOTHING")
        self._execute(
            "INSERT INTO chorus.caches (tenant, cache, max_bytes) VALUES (%(tenant)s, %(cache)s, %(limit)s)"
            " ON CONFLICT DO NOTHING",
            limit=max_bytes,
        )

    def set_limit(self, max_bytes: int) -> None:
        self._execute(
            f"UPDATE chorus.caches SET max_bytes = %(limit)s WHERE {_MINE} AND max_bytes <> %(limit)s", limit=max_bytes
        )

    def store_mark(self) -> str | None:
        """The mark of the blob location that this tenant's files lie in, None where there is none yet."""
        found = self._execute("SELECT store FROM chorus.tenants WHERE tenant = %(tenant)s").fetchone()
        return None if found is None else found[0]

    def is_empty(self) -> bool:
        """Whether the tenant has no entries, in any cache."""
        return not self._one("SELECT EXISTS (SELECT 1 FROM chorus.entries WHERE tenant = %(tenant)s)")[0]

    def set_store_mark(self, mark: str) -> None:
        self._execute("UPDATE chorus.tenants SET store = %(mark)s WHERE tenant = %(tenant)s", mark=mark)

    def due(self, every: float) -> bool:
        """Whether so many seconds have passed since this was last true for any worker."""
        swept = self._execute(
            "UPDATE chorus.tenants SET swept = extract(epoch FROM clock_timestamp())"
            " WHERE tenant = %(tenant)s AND swept < extract(epoch FROM clock_timestamp()) - %(every)s",
            every=every,
        )
        return swept.rowcount == 1

    # -- writing

    def lock(self) -> None:
        """Wait for other changes of this tenant to end, and keep later ones waiting."""
        self._one("SELECT 1 FROM chorus.tenants WHERE tenant = %(tenant)s FOR NO KEY UPDATE")

    def room(self) -> Room:
        """Of the cache, or of the whole tenant where that leaves less."""
        limit, used, whole = self._one(
            f"SELECT max_bytes, (bytes + {_USED})::bigint,"
            " (SELECT t.max_bytes FROM chorus.tenants t WHERE t.tenant = %(tenant)s)"
            f" FROM chorus.caches WHERE {_MINE}"
        )
        if whole is None:
            return Room(limit, used)
        everything = _USED.replace(_MINE, "tenant = %(tenant)s")
        (all_used,) = self._one(
            f"SELECT (sum(bytes) + {everything})::bigint FROM chorus.caches WHERE tenant = %(tenant)s"
        )
        return min(Room(limit, used), Room(whole, all_used), key=lambda room: room.limit - room.used)

    def reserve(self, entry_id: str, size: int) -> None:
        """Count `size` bytes as taken. ValueError when the id is in use."""
        if self.known_ids([entry_id]):
            raise ValueError(f"entry id {entry_id} is in use already: choose another, or none")
        self._execute(
            "INSERT INTO chorus.reservations (tenant, cache, id, bytes)"
            " VALUES (%(tenant)s, %(cache)s, %(id)s, %(bytes)s)",
            id=entry_id,
            bytes=size,
        )

    def release(self, entry_id: str) -> bool:
        """Give a reservation back for its entry's sake; False when there is none any more."""
        released = self._execute(f"DELETE FROM chorus.reservations WHERE {_MINE} AND id = %(id)s", id=entry_id)
        return released.rowcount == 1

    def abandon(self, entry_id: str | None, age: float = 0.0) -> list[str]:
        """Give back the room of an upload, or (None) of all that began `age` seconds ago; their files are garbage."""
        which = "id = %(id)s" if entry_id else "made < extract(epoch FROM clock_timestamp()) - %(age)s"
        rows = self._execute(
            f"WITH gone AS (DELETE FROM chorus.reservations WHERE {_MINE} AND {which} RETURNING *)"
            " INSERT INTO chorus.garbage (tenant, cache, id, bytes) SELECT tenant, cache, id, bytes FROM gone"
            " RETURNING id",
            id=entry_id,
            age=age,
        )
        return [found for (found,) in rows]

    def insert(self, record: str, vector: np.ndarray, digest: str, size: int) -> Entry:
        """Add a row, visible from the commit on. record: canonical JSON. vector: [D] float32. size: in bytes."""
        entry = read_record(record, size=size)
        columns: dict[str, Any] = {
            "id": entry.id,
            "space": entry.space.key(),
            "embedder": text(entry.embedder),
            "is_source": entry.is_source,
            "request": text(entry.request),
            "bytes": size,
            "digest": digest,
            "vector_sha256": _sha256(vector),
            "record": record,
        }
        columns |= {
            "checksum": _checksum(columns),
            "created": entry.created,
            "weights": text(entry.space.weights),
            "latent_format": text(entry.space.latent_format),
            "shape": canonical_json(entry.space.shape),
            "parent": None if entry.parent is None else text(entry.parent),
            "folded": text(entry.prompt.casefold()),
            **self._mine,
        }
        names = ", ".join(columns)
        seq, used = self._one(
            f"INSERT INTO chorus.entries ({names}) VALUES ({', '.join(f'%({name})s' for name in columns)})"
            " RETURNING seq, used",
            **columns,
        )
        if entry.is_source:
            self._execute(
                "INSERT INTO chorus.vectors (seq, tenant, cache, embedder, space, dims, vector)"
                " VALUES (%(seq)s, %(tenant)s, %(cache)s, %(embedder)s, %(space)s, %(dims)s, %(vector)s)",
                seq=seq,
                embedder=columns["embedder"],
                space=columns["space"],
                dims=vector.size,
                vector=Vector(vector).to_text(),
            )
        self._changed(size)
        return read_record(record, used=used, size=size)

    def index(self, embedder: str, length: int) -> None:
        """Make the search index of an embedder, where it is missing."""
        self._execute("SELECT chorus.index_embedder(%(embedder)s, %(length)s)", embedder=text(embedder), length=length)

    def evict(self, excess: int, room_for: str | None) -> list[str] | None:
        """Drop entries worth `excess` bytes: quarantined ones first, then the least recently used; None if too few.

        Those that are being counted as hit at this moment are passed over, and so are pinned ones.
        """
        ask = 8
        while True:
            oldest = self._execute(
                f"SELECT seq, bytes FROM chorus.entries WHERE {_MINE} AND NOT pinned"
                " ORDER BY state DESC, used, seq LIMIT %(ask)s FOR UPDATE SKIP LOCKED",
                ask=ask,
            ).fetchall()
            enough = next(
                (n for n, freed in enumerate(accumulate(size for _, size in oldest), 1) if freed >= excess), 0
            )
            if enough:
                return self.drop("seq = ANY(%(seqs)s)", room_for=room_for, seqs=[seq for seq, _ in oldest[:enough]])
            if len(oldest) < ask:
                return None
            ask *= 8

    def drop(self, where: str, room_for: str | None = None, **values: Any) -> list[str]:
        """Delete rows; their files become garbage. Returns their ids."""
        rows = self._execute(
            f"WITH gone AS (DELETE FROM chorus.entries WHERE {_MINE} AND {where} RETURNING tenant, cache, id, bytes)"
            " INSERT INTO chorus.garbage (tenant, cache, id, bytes, room_for)"
            " SELECT tenant, cache, id, bytes, %(room_for)s FROM gone RETURNING id, bytes",
            room_for=room_for,
            **values,
        ).fetchall()
        if rows:
            self._changed(-sum(size for _, size in rows))
        return [entry_id for entry_id, _ in rows]

    def garbage(self, limit: int = 1000) -> list[str]:
        """Ids of files to be deleted, the oldest first."""
        rows = self._execute(f"SELECT id FROM chorus.garbage WHERE {_MINE} ORDER BY since LIMIT %(limit)s", limit=limit)
        return [entry_id for (entry_id,) in rows]

    def discard(self, ids: list[str]) -> None:
        """Forget garbage whose files are deleted."""
        self._execute(f"DELETE FROM chorus.garbage WHERE {_MINE} AND id = ANY(%(ids)s)", ids=ids)

    def quarantine(self, seqs: list[int], reason: str) -> list[str]:
        """Take rows out of use, keeping them for inspection until their room is needed. Returns their ids."""
        rows = self._execute(
            f"UPDATE chorus.entries SET state = 'quarantined', pinned = false, reason = %(reason)s"
            f" WHERE {_MINE} AND seq = ANY(%(seqs)s) AND state = 'live' RETURNING id",
            seqs=seqs,
            reason=text(reason),
        ).fetchall()
        self._execute(f"DELETE FROM chorus.vectors WHERE {_MINE} AND seq = ANY(%(seqs)s)", seqs=seqs)
        if rows:
            self._changed(0)
        return [entry_id for (entry_id,) in rows]

    def record_hit(self, entry_id: str, saved_seconds: float) -> None:
        """Count a hit, and make the entry the most recently used."""
        self._execute(
            "UPDATE chorus.entries SET used = greatest(used, extract(epoch FROM clock_timestamp())),"
            f" hits = hits + 1, saved = saved + %(saved)s WHERE {_MINE} AND id = %(id)s",
            id=text(entry_id),
            saved=saved_seconds,
        )
        self._execute(
            "INSERT INTO chorus.days (tenant, cache, day, hits, saved)"
            " VALUES (%(tenant)s, %(cache)s, current_date, 1, %(saved)s)"
            " ON CONFLICT (tenant, cache, day) DO UPDATE SET hits = days.hits + 1, saved = days.saved + excluded.saved",
            saved=saved_seconds,
        )

    def pin(self, entry_id: str, pinned: bool) -> bool:
        """False when there is no such entry."""
        return (
            self._execute(
                f"UPDATE chorus.entries SET pinned = %(pinned)s WHERE {_MINE} AND id = %(id)s AND state = 'live'",
                id=text(entry_id),
                pinned=pinned,
            ).rowcount
            == 1
        )

    # -- statements

    def _changed(self, size: int) -> None:
        self._execute(
            f"UPDATE chorus.caches SET bytes = bytes + %(size)s, version = version + 1 WHERE {_MINE}", size=size
        )

    def _rows(self, where: str, **values: Any) -> Iterator[Row]:
        statement = f"SELECT {_ROW}, checksum FROM chorus.entries WHERE {_MINE} AND state = 'live' AND {where}"
        return (row for _, row in self._checked(statement, **values))

    def _checked(self, statement: str, **values: Any) -> Iterator[tuple[dict, Row]]:
        cursor = self._connection.cursor(row_factory=dict_row)
        for raw in cursor.execute(statement, {**self._mine, **values}):  # type: ignore[arg-type]
            try:
                if _checksum(raw) != raw["checksum"]:
                    raise ValueError("checksum")
                entry = read_record(raw["record"], used=raw["used"], hits=raw["hits"], size=raw["bytes"])
                entry = Entry(**{**vars(entry), "saved": raw["saved"], "pinned": raw["pinned"]})
            except (ValueError, TypeError, KeyError):
                self.damaged.append(raw["seq"])
                continue
            yield raw, Row(raw["seq"], entry, raw["digest"], raw["vector_sha256"])

    def _one(self, statement: str, **values: Any) -> Any:
        return self._execute(statement, **values).fetchone()

    def _execute(self, statement: str, **values: Any) -> psycopg.Cursor:
        return self._connection.execute(statement, {**self._mine, **values})  # type: ignore[arg-type]


def _indexed(vector: str, length: int) -> str:
    """What `chorus.index_embedder` indexes of a vector of this length, as SQL."""
    if length > LARGEST_HALF_INDEXED:
        return f"subvector({vector}, 1, {LARGEST_HALF_INDEXED})::halfvec({LARGEST_HALF_INDEXED})"
    return f"({vector})::{'vector' if length <= LARGEST_INDEXED else 'halfvec'}({length:d})"


def _conditions(query: Query) -> tuple[str, dict[str, Any]]:
    """The query as SQL, and what it refers to."""
    conditions = {
        "position(%(words)s IN folded) > 0": ("words", text(query.words.casefold()) or None),
        "starts_with(weights, %(weights)s)": ("weights", text(query.weights) or None),
        "shape = %(shape)s": ("shape", None if query.shape is None else canonical_json(list(query.shape))),
        "is_source = %(source)s": ("source", query.source),
        "pinned = %(pinned)s": ("pinned", query.pinned),
        "parent = %(parent)s": ("parent", None if query.parent is None else text(query.parent)),
        "created < %(before)s": ("before", query.created_before),
        "created > %(after)s": ("after", query.created_after),
        "used < %(since)s": ("since", query.unused_since),
    }
    asked = {condition: known for condition, known in conditions.items() if known[1] is not None}
    return " AND ".join(["true", *asked]), dict(asked.values())


def text(value: str) -> str:
    """`value` as PostgreSQL can keep it, which knows neither NUL nor half a character; all else stays as it is."""
    return _UNKEPT.sub(lambda match: f"{_MARK}{ord(match[0]):04x}", value)


def untext(kept: str) -> str:
    """What `text` was given."""
    return re.sub(f"{_MARK}([0-9a-f]{{4}})", lambda match: chr(int(match[1], 16)), kept)


def _checksum(columns: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json([columns[name] for name in _CHECKED]).encode()).hexdigest()


def _sha256(vector: np.ndarray) -> str:
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
