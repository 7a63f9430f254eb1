"""Catalogs that an earlier Chorus made are brought up to date where they are, and lose nothing."""

from __future__ import annotations

import sqlite3

import pytest

from chorus.cache import CacheUnavailable, LocalCache, Query
from chorus.cache.catalog import APPLICATION_ID
from chorus.cache.transaction import Transaction

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector

# As released. Not taken from the code under test, so that an edit of a released step shows.
VERSION_1 = """
CREATE TABLE entries (
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
            checksum TEXT NOT NULL);
CREATE INDEX sources_by_space ON entries (embedder, space, seq)
            WHERE state = 'live' AND is_source = 1;
CREATE INDEX sources_by_embedder ON entries (embedder, seq) WHERE state = 'live' AND is_source = 1;
CREATE INDEX requests ON entries (request, seq);
CREATE INDEX eviction_order ON entries (state DESC, used, seq, bytes, id);
CREATE TABLE tombstones (change INTEGER PRIMARY KEY, entry INTEGER);
CREATE TABLE reservations (id TEXT PRIMARY KEY, bytes INTEGER NOT NULL, made REAL NOT NULL);
CREATE TABLE usage (hits INTEGER NOT NULL, seconds_saved REAL NOT NULL);
"""


@pytest.fixture
def old(root, open_cache):
    """A version-1 catalog of entries 0 … 5 with hits; entry 5 is in quarantine. Returns them as they were put."""
    cache = open_cache()
    made = [cache.put(new_entry(n, prompt=f"Straße {n}")) for n in range(6)]
    cache.close()
    (path,) = root.glob("catalog-*.sqlite")
    new = sqlite3.connect(path)
    names = "seq, id, space, embedder, is_source, request, bytes, digest, record, vector, checksum"
    rows = new.execute(f"SELECT {names} FROM entries ORDER BY seq").fetchall()
    tombstones = new.execute("SELECT * FROM tombstones").fetchall()
    new.close()
    for file in root.glob("catalog-*.sqlite*"):
        file.unlink()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(VERSION_1)
    for number, row in enumerate(rows):
        state, reason = ("quarantined", "a bad bit") if number == 5 else ("live", None)
        used, hits = 1_000_000.0 - number, number
        db.execute(
            f"INSERT INTO entries ({names}, used, hits, state, reason) VALUES ({', '.join('?' * 15)})",
            (*row, used, hits, state, reason),
        )
    db.executemany("INSERT INTO tombstones VALUES (?, ?)", tombstones)
    db.execute("INSERT INTO usage VALUES (10, 33.5)")
    db.execute("INSERT INTO reservations VALUES ('abandoned', 5, 0.0)")
    db.execute("PRAGMA user_version = 1")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.commit()
    db.close()
    return made


def test_a_version_1_catalog_is_migrated_in_place_and_loses_nothing(old, root, open_cache):
    cache = open_cache()
    assert [path.name for path in root.glob("catalog-*.sqlite")] == ["catalog-1.sqlite"]
    assert list((root / "quarantine").iterdir()) == []
    entries = cache.entries()
    assert [entry.id for entry in entries] == [entry.id for entry in reversed(old[:5])]
    for number, entry in enumerate(reversed(entries)):
        assert (entry.used, entry.hits, entry.saved, entry.pinned) == (1_000_000.0 - number, number, 0.0, False)
        assert (entry.prompt, entry.bytes, entry.created) == (
            old[number].prompt,
            old[number].bytes,
            old[number].created,
        )
        assert_is_entry(number, cache.load(entry.id))
    assert cache.search(random_vector(3), EMBEDDER, SPACE)[0].entry.id == old[3].id
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.seconds_saved) == (5, 10, 33.5)
    assert stats.bytes == sum(entry.bytes for entry in old)
    assert cache.get(old[5].id) is None


def test_migrated_entries_answer_queries(old, open_cache):
    cache = open_cache()
    assert cache.count(Query(words="STRASSE 3", weights="weights-a", shape=SPACE.shape)) == 1
    assert [entry.settings["number"] for entry in cache.entries(query=Query(sort="hits"))] == [4, 3, 2, 1, 0]
    assert cache.count(Query(created_after=old[2].created)) == 2


def test_the_migrated_cache_evicts_what_was_least_recently_used(old, root, open_cache):
    open_cache().close()
    cache = open_cache(max_bytes=sum(entry.bytes for entry in old[:3]), eviction="lru")
    assert {entry.id for entry in cache.entries()} == {entry.id for entry in old[:3]}


def test_a_damaged_row_of_version_1_does_not_stop_the_migration(old, root, open_cache):
    db = sqlite3.connect(root / "catalog-1.sqlite")
    db.execute("UPDATE entries SET record = 'not JSON' WHERE id = ?", (old[1].id,))
    db.execute("UPDATE entries SET hits = 'many' WHERE id = ?", (old[2].id,))
    db.commit()
    db.close()
    cache = open_cache()
    assert [entry.settings["number"] for entry in cache.entries()] == [4, 3, 0]
    assert {path.stem for path in (root / "quarantine").iterdir()} == {old[1].id, old[2].id}


def test_a_migration_that_cannot_be_written_leaves_the_old_catalog(old, root, open_cache, monkeypatch):
    def broken(self):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "relist", broken)
        with pytest.raises(CacheUnavailable, match="full"):
            LocalCache(root)
    assert len(open_cache().entries()) == 5
