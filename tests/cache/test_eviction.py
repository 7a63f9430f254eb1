"""What goes first when room is needed, by policy; and clocks that jump."""

from __future__ import annotations

import sqlite3
import time

import pytest

from chorus.cache import CacheError, LocalCache, Query, eviction
from chorus.cache.local import RESERVED_FOR, limits

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector, unit

DAY = 86_400.0


def numbers(cache):
    return {entry.settings["number"] for entry in cache.entries()}


def likeness(cache):
    """{number: likeness to a later neighbour}, of those that have one."""
    with cache._catalog.reading() as transaction:
        rows = transaction._db.execute("SELECT id, likeness FROM listing WHERE neighbour IS NOT NULL").fetchall()
    return {cache.get(entry_id).settings["number"]: score for entry_id, score in rows}


@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_of_equal_entries_the_least_recently_used_goes(open_cache, policy):
    cache = open_cache(max_entries=3, eviction=policy)
    for number in range(4):
        cache.put(new_entry(number))
    assert numbers(cache) == {1, 2, 3}


def test_lru_keeps_what_was_used_last_whatever_it_saves(open_cache):
    cache = open_cache(max_entries=3, eviction="lru")
    a, b, _ = (cache.put(new_entry(n, seconds=100.0 - n)) for n in range(3))
    cache.record_hit(b.id, 500.0)
    cache.record_hit(b.id, 500.0)
    cache.record_hit(a.id, 0.0)
    cache.put(new_entry(3))
    cache.put(new_entry(4))
    assert numbers(cache) == {0, 3, 4}


def test_lcbfu_keeps_what_is_used_often_and_took_long(open_cache):
    cache = open_cache(max_entries=4, eviction="lcbfu")
    made = [cache.put(new_entry(n, seconds=seconds)) for n, seconds in enumerate((10.0, 10.0, 25.0, 35.0))]
    cache.record_hit(made[0].id, 1.0)
    cache.record_hit(made[0].id, 1.0)  # 3 × 10 s; entry 1: 10 s, entry 2: 25 s, entry 3: 35 s
    for number, expected in ((4, {0, 2, 3, 4}), (5, {0, 3, 4, 5}), (6, {3, 4, 5, 6})):
        cache.put(new_entry(number, seconds=1000.0))
        assert numbers(cache) == expected


def test_worth_keeps_what_saved_time_for_its_room(open_cache):
    cache = open_cache(max_entries=4, eviction="worth")
    made = [cache.put(new_entry(n, seconds=10.0, kilobytes=40 if n == 3 else 4)) for n in range(4)]
    cache.record_hit(made[1].id, 60.0)
    cache.record_hit(made[3].id, 60.0)
    cache.put(new_entry(4, seconds=10.0))
    assert numbers(cache) == {1, 2, 3, 4}  # entry 0 saved nothing
    cache.put(new_entry(5, seconds=10.0))
    assert numbers(cache) == {1, 3, 4, 5}  # nor did entry 2
    cache.put(new_entry(6, seconds=60.0))
    cache.put(new_entry(7, seconds=60.0))
    assert numbers(cache) == {1, 5, 6, 7} or numbers(cache) == {1, 3, 6, 7}


def test_worth_ages_what_is_no_longer_used(open_cache):
    cache = open_cache(max_entries=3, eviction="worth")
    once = cache.put(new_entry(0, seconds=10.0))
    cache.record_hit(once.id, 20.0)
    for number in range(1, 4):
        cache.put(new_entry(number, seconds=10.0))
    assert 0 in numbers(cache)
    for number in range(4, 40):
        cache.put(new_entry(number, seconds=10.0))
    assert 0 not in numbers(cache)


def test_worth_lets_results_go_before_sources(open_cache):
    cache = open_cache(max_entries=3, eviction="worth")
    source = cache.put(new_entry(0))
    for number in range(1, 8):
        cache.put(new_entry(number, is_source=False, parent=source.id, kilobytes=1))
    assert 0 in numbers(cache)
    assert len(numbers(cache)) == 3


def test_a_source_is_worth_less_once_a_later_one_is_like_it(open_cache):
    cache = open_cache(max_entries=3, eviction="worth")
    cache.put(new_entry(0, vector=random_vector(0)))
    old = cache.put(new_entry(1, vector=random_vector(1)))
    cache.record_hit(old.id, 20.0)
    cache.put(new_entry(2, vector=random_vector(1)))
    assert likeness(cache) == {1: pytest.approx(1.0)}
    cache.put(new_entry(3, vector=random_vector(3)))
    assert numbers(cache) == {0, 2, 3}


def test_a_source_has_its_worth_back_when_its_neighbour_goes(open_cache):
    cache = open_cache(max_entries=3, eviction="worth")
    cache.put(new_entry(0, vector=random_vector(0)))
    old = cache.put(new_entry(1, vector=random_vector(1)))
    cache.record_hit(old.id, 20.0)
    later = cache.put(new_entry(2, vector=random_vector(1)))
    cache.forget(later.id)
    assert likeness(cache) == {}
    cache.put(new_entry(3, vector=random_vector(3)))
    cache.put(new_entry(4, vector=random_vector(4)))
    assert numbers(cache) == {1, 3, 4}


def test_only_sources_of_the_same_space_make_one_redundant(open_cache):
    cache = open_cache()
    vector = unit([1, 0, 0])
    cache.put(new_entry(0, vector=vector))
    cache.put(new_entry(1, vector=vector, is_source=False))
    cache.put(new_entry(2, vector=vector, embedder="another"))
    assert likeness(cache) == {}
    cache.put(new_entry(3, vector=unit([1, 0.1, 0])))
    assert likeness(cache) == {0: pytest.approx(0.995, abs=1e-3)}


def test_the_policy_is_kept_in_the_catalog_and_can_be_changed(open_cache):
    def policy(cache):
        with cache._catalog.reading() as transaction:
            return transaction.policy()

    first = open_cache(eviction="lru")
    a, _ = (first.put(new_entry(n, seconds=seconds)) for n, seconds in enumerate((10.0, 50.0)))
    first.record_hit(a.id, 0.0)
    assert policy(open_cache()) == "lru"
    second = open_cache(max_entries=2, eviction="lcbfu")  # priorities: 20 and 50
    assert policy(first) == "lcbfu"
    second.put(new_entry(2, seconds=1000.0))
    assert numbers(second) == {1, 2}
    assert second.rebuild() == 2
    assert policy(second) == "lcbfu"


def test_an_unknown_policy_is_refused_and_one_of_a_newer_chorus_is_the_default(open_cache, root):
    with pytest.raises(ValueError, match=r"'mru'.*worth, lru, lcbfu"):
        open_cache(eviction="mru")
    cache = open_cache()
    (path,) = root.glob("catalog-*.sqlite")
    db = sqlite3.connect(path)
    db.execute("UPDATE eviction SET policy = 'of tomorrow'")
    db.commit()
    db.close()
    cache.put(new_entry(0))
    assert numbers(cache) == {0}


def test_the_environment_sets_the_limits(monkeypatch):
    for name in ("GB", "ENTRIES", "EVICTION"):
        monkeypatch.delenv(f"CHORUS_CACHE_{name}", raising=False)
    assert limits() == {"max_bytes": 20 * 2**30, "max_entries": None, "eviction": None}
    monkeypatch.setenv("CHORUS_CACHE_GB", "0.5")
    monkeypatch.setenv("CHORUS_CACHE_ENTRIES", "12")
    monkeypatch.setenv("CHORUS_CACHE_EVICTION", "lru")
    assert limits() == {"max_bytes": 2**29, "max_entries": 12, "eviction": "lru"}
    for name, value in (("EVICTION", "mru"), ("ENTRIES", "few"), ("GB", "much")):
        with monkeypatch.context() as patch:
            patch.setenv(f"CHORUS_CACHE_{name}", value)
            with pytest.raises(ValueError, match=f"CHORUS_CACHE_{name}.*{value}"):
                limits()


@pytest.mark.parametrize("saved", [float("nan"), float("inf"), -1.0, 1e9])
def test_what_is_no_time_is_not_counted(cache, saved):
    entry = cache.put(new_entry(1))
    with pytest.raises(ValueError, match="a hit saves 0 to"):
        cache.record_hit(entry.id, saved)
    assert (cache.get(entry.id).hits, cache.stats().hits) == (0, 0)


# -- clocks


@pytest.fixture
def clock(monkeypatch):
    """`clock(jump)`: from now on the clock is so many seconds off."""
    real = time.time
    return lambda jump: monkeypatch.setattr(time, "time", lambda: real() + jump)


def busy_day(cache, clock, jump):
    """Puts and hits, the middle of them with a clock that is off; who is there after each."""
    seen = []
    for number in range(16):
        clock(jump if 4 <= number < 9 else 0)
        cache.put(new_entry(number, seconds=10.0 + number % 3))
        if number % 3 == 0:
            cache.record_hit(cache.entries(query=Query(sort="oldest"))[0].id, 5.0)
        seen.append(numbers(cache))
    return seen


@pytest.mark.parametrize("jump", [3650 * DAY, -3650 * DAY, -time.time()], ids=["future", "past", "1970"])
@pytest.mark.parametrize("policy", eviction.POLICIES)
def test_a_clock_that_jumps_and_comes_back_changes_nothing_about_who_goes(tmp_path, clock, policy, jump):
    steady, jumping = (LocalCache(tmp_path / name, max_entries=4, eviction=policy) for name in ("steady", "jumping"))
    assert busy_day(jumping, clock, jump) == busy_day(steady, clock, 0)
    assert jumping.stats().hits == 6
    for entry in jumping.entries():
        number = entry.settings["number"]
        assert jumping.search(random_vector(number), EMBEDDER, SPACE)[0].entry == entry
        assert_is_entry(number, jumping.load(entry.id))
    for cache in (steady, jumping):
        cache.close()


@pytest.mark.parametrize("jump", [30 * DAY, -30 * DAY], ids=["future", "past"])
def test_reservations_of_the_dead_lapse_whatever_their_clock_said(open_cache, clock, jump):
    cache = open_cache(max_entries=2)
    clock(jump)
    with cache._catalog.writing() as transaction:
        transaction.reserve("f" * 32, 1000)
    clock(0)
    cache.put(new_entry(1))
    cache.put(new_entry(2))
    assert numbers(cache) == {1, 2}
    with cache._catalog.reading() as transaction:
        assert transaction.totals().writers == 0


def test_a_clock_that_jumps_while_an_entry_is_written_costs_at_most_that_entry(open_cache, clock, monkeypatch):
    cache, other = open_cache(), open_cache()
    write = cache._blobs.write

    def slow(*arguments):
        write(*arguments)
        clock(2 * RESERVED_FOR)
        other.put(new_entry(2))

    monkeypatch.setattr(cache._blobs, "write", slow)
    with pytest.raises(CacheError, match="not kept"):
        cache.put(new_entry(1))
    monkeypatch.setattr(cache._blobs, "write", write)
    assert numbers(cache) == {2}
    cache.put(new_entry(3))
    assert numbers(other) == {2, 3}


def test_a_rebuild_with_the_clock_set_back_is_still_noticed(open_cache, clock):
    cache, other = open_cache(), open_cache()
    cache.put(new_entry(1))
    assert other.search(random_vector(1), EMBEDDER, SPACE)
    version = other.version()
    clock(-3650 * DAY)
    assert cache.rebuild() == 1
    assert other.version() > version
    assert other.search(random_vector(1), EMBEDDER, SPACE)[0].entry.settings["number"] == 1
