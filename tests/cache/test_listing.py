"""Listing, filtering, sorting and counting entries, and what statistics say of them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from chorus.cache import CacheUnavailable, EntryMissing, ModelStats, Query

from .sample import SPACE, new_entry

OTHER_MODEL = replace(SPACE, weights="weights-b", latent_format="Wan22", shape=(1, 8, 1, 4, 4))


def numbers(cache, **asked):
    return [entry.settings["number"] for entry in cache.entries(query=Query(**asked))]


@pytest.fixture
def five(cache):
    """Entries 0 … 4, of which 1 and 3 are of another model."""
    return [cache.put(new_entry(n, space=OTHER_MODEL if n % 2 else SPACE, kilobytes=1 + n)) for n in range(5)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A Red Ball", "red b"),
        ("a red ball", "RED"),
        ("die Straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),
        ("Ёлка и СНЕГ", "снег"),
        ("cafe\u0301 at night", "CAFÉ"),
        ("İstanbul", "İSTAN"),
        ("赤い玉が転がる", "玉"),
        ("100% _red_", "% _R"),
        ("nul \0 byte", "\0 BYTE"),
        ('"); DROP TABLE entries; --', "drop table"),
        ("it's", "IT'S"),
        ("lone \ud800 surrogate", "\ud800 SURR"),
    ],
)
def test_words_are_found_whatever_their_case_and_are_never_sql(cache, prompt, words):
    entry = cache.put(new_entry(1, prompt=prompt))
    cache.put(new_entry(2, prompt="something else"))
    assert entry.prompt == prompt
    assert numbers(cache, words=words) == [1]
    assert cache.count(Query(words=words)) == 1
    assert cache.count() == 2


def test_words_are_no_pattern(cache):
    cache.put(new_entry(1, prompt="a red ball"))
    assert numbers(cache, words="r%d") == numbers(cache, words="r_d") == numbers(cache, words="' OR 1 --") == []


def test_each_condition_filters_and_all_must_hold(cache, five):
    child = cache.put(new_entry(5, is_source=False, parent=five[0].id))
    cache.pin(five[2].id)
    cache.record_hit(five[4].id, 1.0)
    hit_at = cache.get(five[4].id).used
    assert numbers(cache, weights="weights-b") == [3, 1]
    assert numbers(cache, weights="weights-") == [5, 4, 3, 2, 1, 0]
    assert numbers(cache, weights="eights") == []
    assert numbers(cache, shape=(1, 8, 1, 4, 4)) == [3, 1]
    assert numbers(cache, shape=(48, 4)) == []
    assert numbers(cache, source=False) == [5]
    assert numbers(cache, source=True, weights="weights-a") == [4, 2, 0]
    assert numbers(cache, pinned=True) == [2]
    assert numbers(cache, pinned=False, source=True) == [4, 3, 1, 0]
    assert numbers(cache, parent=five[0].id) == [5]
    assert numbers(cache, created_before=five[2].created) == [1, 0]
    assert numbers(cache, created_after=five[2].created, created_before=child.created) == [4, 3]
    assert numbers(cache, unused_since=hit_at) == [5, 3, 2, 1, 0]
    assert numbers(cache, words="take 3", weights="weights-a") == []
    for query in (Query(weights="weights-b"), Query(parent=five[0].id), Query(unused_since=hit_at)):
        assert cache.count(query) == len(cache.entries(query=query))


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("newest", [4, 3, 2, 1, 0]),
        ("oldest", [0, 1, 2, 3, 4]),
        ("used", [0, 1, 4, 3, 2]),
        ("hits", [1, 0, 4, 3, 2]),
        ("saved", [0, 1, 4, 3, 2]),
        ("bytes", [4, 3, 2, 1, 0]),
    ],
)
def test_every_order_can_be_paged(cache, five, sort, expected):
    cache.record_hit(five[1].id, 1.0)
    cache.record_hit(five[1].id, 2.0)
    cache.record_hit(five[0].id, 9.0)
    assert numbers(cache, sort=sort) == expected
    pages = [cache.entries(2, offset, Query(sort=sort)) for offset in (0, 2, 4, 6)]
    assert [entry.settings["number"] for page in pages for entry in page] == expected
    assert [len(page) for page in pages] == [2, 2, 1, 0]


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"'best'.*newest"):
        Query(sort="best")


def test_a_hit_is_counted_for_the_entry_its_model_and_the_day(cache, five, open_cache):
    cache.record_hit(five[1].id, 4.5)
    cache.record_hit(five[1].id, 2.0)
    cache.record_hit(five[0].id, 1.0)
    entry = cache.get(five[1].id)
    assert (entry.hits, entry.saved) == (2, 6.5)
    stats = open_cache().stats()
    a, b = (sum(entry.bytes for entry in five[first::2]) for first in (0, 1))
    assert stats.models == (
        ModelStats("weights-a", "Wan21", 3, a, 1, 1.0),
        ModelStats("weights-b", "Wan22", 2, b, 2, 6.5),
    )
    assert stats.days == ((time.strftime("%Y-%m-%d", time.gmtime()), 3, 7.5),)
    cache.forget(five[1].id)
    assert cache.stats().days == stats.days


def test_only_the_last_ninety_days_are_told(cache, five, monkeypatch):
    now, day = time.time(), 86_400
    for ago, seconds in ((100, 1.0), (89, 2.0), (40, 4.0), (0, 8.0)):
        monkeypatch.setattr(time, "time", lambda ago=ago: now - ago * day)
        cache.record_hit(five[0].id, seconds)
    assert [seconds for _, _, seconds in cache.stats().days] == [2.0, 4.0, 8.0]
    assert cache.stats().seconds_saved == 15.0


def test_a_chosen_id_is_kept_and_can_be_had_once(cache):
    chosen = "0123456789abcdef" * 2
    entry = cache.put(new_entry(1), chosen)
    assert entry.id == chosen
    assert cache.get(chosen) == entry
    with pytest.raises(ValueError, match=f"{chosen} already"):
        cache.put(new_entry(2), entry_id=chosen)
    assert cache.entries() == [entry]
    assert cache.load(chosen)
    cache.forget(chosen)
    assert cache.put(new_entry(2), chosen).id == chosen


@pytest.mark.parametrize("bad", ["", "x", "../" + "0" * 29, "A" * 32, "0" * 33])
def test_what_is_no_id_is_refused(cache, bad):
    with pytest.raises(ValueError, match="32 lower-case hex"):
        cache.put(new_entry(1), bad)
    assert cache.count() == 0


def test_a_pin_is_seen_kept_and_undone(cache, open_cache):
    entry = cache.put(new_entry(1))
    assert not entry.pinned
    cache.pin(entry.id)
    cache.pin(entry.id)
    assert open_cache().get(entry.id) == replace(entry, pinned=True)
    assert cache.stats().pinned_bytes == entry.bytes
    cache.pin(entry.id, False)
    assert cache.get(entry.id) == entry
    assert cache.stats().pinned_bytes == 0
    with pytest.raises(EntryMissing):
        cache.pin("0" * 32)


def test_a_pinned_entry_can_be_forgotten(cache):
    entry = cache.put(new_entry(1))
    cache.pin(entry.id)
    cache.forget(entry.id)
    assert cache.stats().pinned_bytes == cache.count() == 0


def test_pinned_entries_stay_and_a_cache_full_of_them_says_so(open_cache):
    size = open_cache().put(new_entry(0)).bytes
    cache = open_cache(max_bytes=int(3.5 * size))
    cache.clear()
    kept = [cache.put(new_entry(n)) for n in (1, 2)]
    for entry in kept:
        cache.pin(entry.id)
    for number in range(3, 8):
        cache.put(new_entry(number))
    assert {entry.id for entry in kept} < {entry.id for entry in cache.entries()}
    last = cache.entries()[0]
    cache.pin(last.id)
    with pytest.raises(CacheUnavailable, match=r"bytes are being stored and .* are pinned.*Unpin"):
        cache.put(new_entry(9))
    assert {entry.id for entry in cache.entries()} == {*(entry.id for entry in kept), last.id}
    cache.pin(last.id, False)
    cache.put(new_entry(9))
    assert cache.get(last.id) is None


def test_the_limit_of_entries_holds_with_pins(open_cache):
    cache = open_cache(max_entries=3)
    pinned = cache.put(new_entry(0))
    cache.pin(pinned.id)
    for number in range(1, 6):
        cache.put(new_entry(number))
        assert cache.count() <= 3
    assert numbers(cache) == [5, 4, 0]
    assert cache.stats().max_entries == 3
    for entry in cache.entries():
        cache.pin(entry.id)
    with pytest.raises(CacheUnavailable, match="3 are pinned, so that 1 more would exceed 3"):
        cache.put(new_entry(7))


def test_a_lowered_limit_of_entries_holds_from_the_start_and_spares_pins(open_cache):
    first = open_cache()
    made = [first.put(new_entry(number)) for number in range(6)]
    for entry in made[:2]:
        first.pin(entry.id)
    assert numbers(open_cache(max_entries=3)) == [5, 1, 0]
    assert numbers(open_cache(max_entries=1)) == [1, 0]


def test_a_limit_of_no_entries_is_refused(open_cache):
    with pytest.raises(ValueError, match="max_entries 0"):
        open_cache(max_entries=0)
