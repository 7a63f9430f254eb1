"""Search in many entries: it follows the catalog, and is exact, with FAISS and with NumPy."""

from __future__ import annotations

import functools
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.cache import Query, vectors
from chorus.cache.record import write_record
from chorus.cache.vectors import ArrayVectors, FaissVectors, faiss_or_none

from .sample import EMBEDDER, SPACE, new_entry, random_vector, unit

MANY, LENGTH = 700, 32
TEMPLATE = new_entry(0)
ELSEWHERE = replace(SPACE, task="i2v:crowded")


@functools.cache
def clustered(number: int) -> np.ndarray:
    """Vectors in forty clusters, like prompts."""
    return unit(random_vector(number % 40, LENGTH) + 0.5 * random_vector(10_000 + number, LENGTH))


@pytest.fixture(params=[FaissVectors, ArrayVectors])
def kind(request, monkeypatch):
    """Searches by one and by the other."""
    if request.param is ArrayVectors:
        monkeypatch.setattr(vectors, "faiss_or_none", lambda: None)
    return request.param


@pytest.fixture
def fill():
    """`fill(cache, range)`: rows of entries with these numbers as ids, without files."""

    def fill_one(cache, numbers, space=SPACE):
        with cache._catalog.writing() as transaction:
            for number in numbers:
                record = write_record(f"{number:032x}", 1e9 + number, replace(TEMPLATE, space=space))
                transaction.insert(record, clustered(number), "0" * 64, 1000)

    return fill_one


@pytest.fixture
def large(kind, open_cache, fill):
    """A cache that holds the entries 0 … MANY − 1 and has been searched."""
    cache = open_cache()
    fill(cache, range(MANY))
    cache.search(clustered(0), EMBEDDER, SPACE)
    assert isinstance(family(cache)._vectors, kind)
    return cache


def family(cache):
    return cache._index._families[EMBEDDER]


def found(cache, number, k=1, space=SPACE):
    return [int(match.entry.id, 16) for match in cache.search(clustered(number), EMBEDDER, space, k)]


def drop(cache, numbers):
    with cache._catalog.writing() as transaction:
        for number in numbers:
            transaction.drop(transaction.rows_of(f"{number:032x}"))


def exact(numbers, query, k):
    scores = {number: float(clustered(number).astype(float) @ query.astype(float)) for number in numbers}
    return sorted(numbers, key=lambda number: (-scores[number], -number))[:k]


def test_search_is_exact(large):
    for number in range(50):
        query = unit(clustered(number) + 0.3 * random_vector(number, LENGTH))
        matches = large.search(query, EMBEDDER, SPACE, k=3)
        assert [int(match.entry.id, 16) for match in matches] == exact(range(MANY), query, 3)
        for match in matches:
            assert match.score == pytest.approx(clustered(int(match.entry.id, 16)).astype(float) @ query, abs=1e-6)


def test_equal_vectors_come_newest_first_among_many(large):
    made = [large.put(new_entry(n, vector=clustered(7))) for n in range(30)]
    matches = large.search(clustered(7), EMBEDDER, SPACE, k=31)
    assert [match.entry.id for match in matches] == [*(entry.id for entry in reversed(made)), f"{7:032x}"]


def test_what_others_add_and_remove_is_followed(large, open_cache, fill):
    other = open_cache()
    fill(other, range(MANY, MANY + 100))
    assert all(found(large, number) == [number] for number in range(MANY, MANY + 100))
    drop(other, range(300))
    assert not set(range(300)) & {number for query in range(300) for number in found(large, query, 5)}
    assert len(family(large)._seqs) == MANY + 100 - 300  # gone from memory, too
    assert found(large, 699) == [699]
    drop(other, range(300, MANY + 100))
    assert found(large, 600) == []
    assert family(large)._vectors is None
    fill(other, [5])
    assert found(large, 600) == [5]


def test_a_search_that_starts_over_has_each_entry_once(large, fill, monkeypatch):
    """As after more changes than the catalog keeps tombstones for."""
    monkeypatch.setattr(sys.modules["chorus.cache.index"], "HISTORY", 3)
    drop(large, range(10))
    fill(large, range(MANY, MANY + 10))
    assert sorted(found(large, 0, k=2 * MANY)) == list(range(10, MANY + 10))


def test_elsewhere_answers_from_small_and_large_spaces(large, fill):
    for number in range(30):
        fill(large, [5000 + number], space=replace(SPACE, task=f"i2v:{number}"))
    fill(large, range(MANY, MANY + 320), space=ELSEWHERE)
    for number in (5003, 5029, MANY + 3, MANY + 319):
        matches = large.search_elsewhere(clustered(number), EMBEDDER, SPACE, k=2)
        assert int(matches[0].entry.id, 16) == number
        assert all(match.entry.space != SPACE for match in matches)
    assert int(large.search_elsewhere(clustered(9), EMBEDDER, ELSEWHERE)[0].entry.id, 16) == 9
    assert found(large, 9, space=replace(SPACE, task="none")) == []


def test_a_changed_vector_is_never_served_whatever_it_scores(kind, open_cache, root, fill):
    cache = open_cache()
    fill(cache, range(MANY))
    cache.close()
    (path,) = root.glob("catalog-*.sqlite")
    db = sqlite3.connect(path)
    changes = {1: clustered(2) * np.float32(3), 4: clustered(2) * np.float32(np.nan), 8: np.zeros(1, np.float32)}
    for number, vector in changes.items():
        db.execute("UPDATE entries SET vector = ? WHERE id = ?", (vector.tobytes(), f"{number:032x}"))
    db.execute("UPDATE entries SET vector = x'00' WHERE id = ?", (f"{9:032x}",))
    db.commit()
    db.close()
    cache = open_cache()
    assert found(cache, 2, 3) == exact(set(range(MANY)) - {1, 4, 8, 9}, clustered(2), 3)
    assert found(cache, 1) != [1]
    assert cache.get(f"{4:032x}") is cache.get(f"{8:032x}") is cache.get(f"{9:032x}") is None
    assert cache.count(Query(source=True)) == MANY - 4


def test_where_faiss_is_missing_it_is_said_once(open_cache, fill, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    faiss_or_none.cache_clear()
    try:
        cache = open_cache()
        fill(cache, range(20))
        assert all(found(cache, number) == [number] for number in range(20))
        assert ["faiss is not installed" in record.message for record in caplog.records] == [True]
    finally:
        faiss_or_none.cache_clear()


def test_faiss_is_not_loaded_on_macos(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    faiss_or_none.cache_clear()
    try:
        assert faiss_or_none() is None
    finally:
        faiss_or_none.cache_clear()


rows = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=3, max_size=3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(rows, min_size=1, max_size=9), min_size=1, max_size=4), rows, st.integers(1, 12), st.data())
def test_both_kinds_of_vectors_answer_alike(batches, query, ask, data):
    """After any additions and removals: the same best rows, up to the order of equal ones, and the same vectors."""
    pair = FaissVectors(3), ArrayVectors(3)
    count = 0
    for batch in batches:
        for one in pair:
            one.add(np.array(batch, np.float32))
        count += len(batch)
        kept = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
        for one in pair:
            one.keep(kept)
        count = int(kept.sum())
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    answers = [one.best(np.array(query, np.float32), wanted, ask) for one in pair]
    assert answers[0][1].tolist() == answers[1][1].tolist()
    for one, (found_rows, scores) in zip(pair, answers, strict=True):
        assert len(found_rows) == min(ask, int(wanted.sum()))
        assert wanted[found_rows].all()
        assert (one.at(found_rows) @ np.array(query, np.float32)).tolist() == scores.tolist()
    everything = np.arange(count)
    assert pair[0].at(everything).tolist() == pair[1].at(everything).tolist()


def test_the_search_index_of_an_earlier_version_is_deleted(open_cache, root):
    """It holds the vectors of prompts, forgotten ones too."""
    open_cache().close()
    (root / "index").mkdir()
    (root / "index" / "one.ivf").write_bytes(b"vectors")
    open_cache()
    assert not (root / "index").exists()
