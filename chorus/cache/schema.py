"""The catalog's tables, version by version.

`entries` holds what never changes, and the state of a row; `listing` one narrow row for each live entry: what people
filter and sort by, and what changes with use. `totals` follows `listing` by triggers, so that limits cost no scan.
"""

from __future__ import annotations

import sqlite3

# MIGRATIONS[v] leads from schema version v to v + 1; a released step is never edited.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE entries (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL DEFAULT 'live',
            reason TEXT,
            used REAL NOT NULL,
            hits INTEGER NOT NULL DEFAULT 0,
            space TEXT NOT NULL,
            embedder TEXT NOT NULL,
            is_source INTEGER NOT NULL,
            request TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            digest TEXT NOT NULL,
            record TEXT NOT NULL,
            vector BLOB NOT NULL,
            checksum TEXT NOT NULL)""",
        """CREATE INDEX sources_by_space ON entries (embedder, space, seq)
            WHERE state = 'live' AND is_source = 1""",
        "CREATE INDEX sources_by_embedder ON entries (embedder, seq) WHERE state = 'live' AND is_source = 1",
        "CREATE INDEX requests ON entries (request, seq)",
        "CREATE INDEX eviction_order ON entries (state DESC, used, seq, bytes, id)",
        "CREATE TABLE tombstones (change INTEGER PRIMARY KEY, entry INTEGER)",
        "CREATE TABLE reservations (id TEXT PRIMARY KEY, bytes INTEGER NOT NULL, made REAL NOT NULL)",
        "CREATE TABLE usage (hits INTEGER NOT NULL, seconds_saved REAL NOT NULL)",
        "INSERT INTO usage VALUES (0, 0.0)",
        # A new catalog's numbers start at the time in milliseconds: above those of the one it replaces.
        "INSERT INTO tombstones VALUES (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), NULL)",
    ),
    (
        # Not altered in place: SQLite would edit the text of the table, which is what damage is told by.
        "CREATE TEMP TABLE before AS SELECT * FROM entries",
        "DROP TABLE entries",
        """CREATE TABLE entries (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL DEFAULT 'live',
            reason TEXT,
            space TEXT NOT NULL,
            embedder TEXT NOT NULL,
            is_source INTEGER NOT NULL,
            request TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            digest TEXT NOT NULL,
            checksum TEXT NOT NULL,
            record TEXT NOT NULL,
            vector BLOB NOT NULL)""",
        """INSERT INTO entries
            SELECT seq, id, state, reason, space, embedder, is_source, request, bytes, digest, checksum, record, vector
            FROM before ORDER BY seq""",
        """CREATE INDEX sources_by_space ON entries (embedder, space, seq)
            WHERE state = 'live' AND is_source = 1""",
        "CREATE INDEX sources_by_embedder ON entries (embedder, seq) WHERE state = 'live' AND is_source = 1",
        "CREATE INDEX requests ON entries (request, seq)",
        "CREATE INDEX quarantined ON entries (bytes, id) WHERE state <> 'live'",
        # One row for each live entry. words: the prompt, folded. tick: number of its last use. neighbour: seq of the
        # nearest source when it came, and the likeness of the two.
        """CREATE TABLE listing (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            is_source INTEGER NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0,
            used REAL NOT NULL,
            hits INTEGER NOT NULL DEFAULT 0,
            saved REAL NOT NULL DEFAULT 0.0,
            tick INTEGER NOT NULL,
            priority REAL NOT NULL DEFAULT 0.0,
            neighbour INTEGER,
            likeness REAL NOT NULL DEFAULT 0.0,
            created REAL NOT NULL DEFAULT 0.0,
            seconds REAL NOT NULL DEFAULT 0.0,
            weights TEXT NOT NULL DEFAULT '',
            latent_format TEXT NOT NULL DEFAULT '',
            shape TEXT NOT NULL DEFAULT '',
            parent TEXT,
            words TEXT NOT NULL DEFAULT '')""",
        "CREATE INDEX listing_by_use ON listing (used)",
        "CREATE INDEX listing_by_hits ON listing (hits)",
        "CREATE INDEX listing_by_saved ON listing (saved)",
        "CREATE INDEX listing_by_bytes ON listing (bytes)",
        "CREATE INDEX listing_by_model ON listing (weights, latent_format, bytes, hits, saved)",
        "CREATE INDEX listing_by_parent ON listing (parent) WHERE parent IS NOT NULL",
        "CREATE INDEX listing_pinned ON listing (seq) WHERE pinned = 1",
        "CREATE INDEX eviction_order ON listing (priority, tick, bytes, id) WHERE pinned = 0",
        "CREATE INDEX neighbours ON listing (neighbour) WHERE neighbour IS NOT NULL",
        """CREATE TABLE totals (
            entries INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            pinned INTEGER NOT NULL,
            pinned_bytes INTEGER NOT NULL)""",
        "INSERT INTO totals VALUES (0, 0, 0, 0)",
        """CREATE TRIGGER listed AFTER INSERT ON listing BEGIN
            UPDATE totals SET entries = entries + 1, bytes = bytes + new.bytes,
                pinned = pinned + new.pinned, pinned_bytes = pinned_bytes + new.pinned * new.bytes; END""",
        """CREATE TRIGGER unlisted AFTER DELETE ON listing BEGIN
            UPDATE totals SET entries = entries - 1, bytes = bytes - old.bytes,
                pinned = pinned - old.pinned, pinned_bytes = pinned_bytes - old.pinned * old.bytes; END""",
        """CREATE TRIGGER relisted AFTER UPDATE OF bytes, pinned ON listing BEGIN
            UPDATE totals SET bytes = bytes + new.bytes - old.bytes, pinned = pinned + new.pinned - old.pinned,
                pinned_bytes = pinned_bytes + new.pinned * new.bytes - old.pinned * old.bytes; END""",
        """INSERT INTO listing (seq, id, bytes, is_source, used, hits, tick)
            SELECT seq, id, bytes, is_source, used, hits, row_number() OVER (ORDER BY used, seq)
            FROM before WHERE state = 'live'""",
        # policy: as chosen by name, '' for the default. clock: the priority of the last evicted. tick: uses so far.
        "CREATE TABLE eviction (policy TEXT NOT NULL, clock REAL NOT NULL, tick INTEGER NOT NULL)",
        "INSERT INTO eviction SELECT '', 0.0, count(*) FROM listing",
        "CREATE TABLE days (day TEXT PRIMARY KEY, hits INTEGER NOT NULL, seconds_saved REAL NOT NULL)",
        "DROP TABLE before",
    ),
)


def tables(db: sqlite3.Connection) -> set[str]:
    """The schema of an open catalog, as SQL."""
    return {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}


def expected_tables() -> set[str]:
    """What `tables` gives for a sound catalog of this version."""
    db = sqlite3.connect(":memory:")
    try:
        for statements in MIGRATIONS:
            for statement in statements:
                db.execute(statement)
        return tables(db)
    finally:
        db.close()
