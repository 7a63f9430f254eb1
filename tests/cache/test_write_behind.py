"""Stores off the caller's path: a look-up sees them at once, a failure is told, a full queue is refused."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager

import numpy as np
import pytest

from chorus.cache import CacheUnavailable, EntryMissing, EntryTooLarge, LocalCache, WriteBehind

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector
from .test_damage import FAR_APART, catalog


@pytest.fixture
def faults():
    return []


@pytest.fixture
def behind(open_cache, root, faults):
    cache = WriteBehind(open_cache(timeout=20), root, lambda *fault: faults.append(fault), most_pending=3)
    yield cache
    cache.close()


@contextmanager
def locked(root):
    """Another process writes to the catalog and takes its time."""
    other = sqlite3.connect(catalog(root), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_what_is_put_is_found_before_it_is_written_and_loaded_once_it_is(behind, root):
    with locked(root):
        entry = behind.put(new_entry(1))
        (match,) = behind.search(random_vector(1), EMBEDDER, SPACE)
        assert match.entry == entry and match.score == pytest.approx(1.0)
        assert behind.find_request("request-1") == behind.get(entry.id) == entry
        assert behind.cache.get(entry.id) is None
        assert not behind.flush(timeout=0.05)
    assert_is_entry(1, behind.load(entry.id))
    assert behind.entries() == behind.cache.entries()
    assert [m.entry.id for m in behind.search(random_vector(1), EMBEDDER, SPACE)] == [entry.id]


def test_waiting_entries_stand_among_the_kept_ones_by_score_and_never_in_another_space(behind, root):
    kept = behind.put(new_entry(1))
    assert behind.flush(20)
    near = (random_vector(1) + 0.3 * random_vector(2)).astype(np.float32)
    near /= np.linalg.norm(near)
    with locked(root):
        waiting = behind.put(new_entry(3, vector=near))
        elsewhere = behind.put(new_entry(4, space=FAR_APART, vector=near))
        hit = behind.put(new_entry(5, is_source=False, vector=near))
        found = [m.entry.id for m in behind.search(random_vector(1), EMBEDDER, SPACE)]
        assert found == [kept.id, waiting.id]
        assert [m.entry.id for m in behind.search_elsewhere(near, EMBEDDER, SPACE)] == [elsewhere.id]
        assert [m.entry.id for m in behind.search(near, EMBEDDER, SPACE, k=1)] == [waiting.id]
    assert behind.flush(20)
    assert {e.id for e in behind.entries()} == {kept.id, waiting.id, elsewhere.id, hit.id}


def test_more_than_may_wait_is_refused_at_once(behind, root):
    with locked(root):
        for number in range(3):
            behind.put(new_entry(number))
        with pytest.raises(CacheUnavailable, match=r"3 results .* still being written"):
            behind.put(new_entry(3))
    assert behind.flush(20)
    assert behind.count() == 3
    behind.put(new_entry(4))


def test_too_many_bytes_are_refused_but_one_entry_always_fits(open_cache, root, faults):
    behind = WriteBehind(open_cache(timeout=20), root, lambda *fault: faults.append(fault), most_bytes=1000)
    with locked(root):
        behind.put(new_entry(1))
        with pytest.raises(CacheUnavailable, match="still being written"):
            behind.put(new_entry(2))
    behind.close()
    assert faults == []


def test_a_store_that_fails_is_told_and_is_a_miss(open_cache, root, faults):
    behind = WriteBehind(open_cache(max_bytes=30_000), root, lambda *fault: faults.append(fault))
    entry = behind.put(new_entry(1, kilobytes=64))
    with pytest.raises(EntryMissing):
        behind.load(entry.id)
    assert [(i, type(e)) for i, e in faults] == [(entry.id, EntryTooLarge)]
    assert behind.search(random_vector(1), EMBEDDER, SPACE) == []
    behind.close()


def test_what_waits_too_long_is_unavailable(open_cache, root, faults):
    behind = WriteBehind(open_cache(timeout=20), root, lambda *fault: faults.append(fault), timeout=0.05)
    with locked(root):
        entry = behind.put(new_entry(1))
        for ask in (lambda: behind.load(entry.id), behind.entries, behind.stats, lambda: behind.forget(entry.id)):
            with pytest.raises(CacheUnavailable, match=r"within 0\.05 s"):
                ask()
    behind.close()
    assert LocalCache(root).count() == 1


def test_closing_finishes_what_was_put(behind, root):
    with locked(root):
        behind.put(new_entry(1))
        behind.record_hit(behind.put(new_entry(2)).id, 3.0)
    behind.close()
    stats = LocalCache(root).stats()
    assert (stats.entries, stats.hits, stats.seconds_saved) == (2, 1, 3.0)


def test_version_changes_when_something_is_put(behind, root):
    before = behind.version()
    with locked(root):
        behind.put(new_entry(1))
        assert behind.version() > before
