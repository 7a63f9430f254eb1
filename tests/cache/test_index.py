"""Search where there are many entries: an approximate index that follows the catalog, and its snapshot."""

from __future__ import annotations

import functools
import sqlite3
import sys
from dataclasses import replace

import numpy as np
import pytest

from chorus.cache import Query, approximate, index
from chorus.cache.approximate import ApproximatePool
from chorus.cache.pool import ExactPool
from chorus.cache.record import write_record

from .sample import EMBEDDER, SPACE, new_entry, random_vector, unit

MANY, LENGTH = 700, 32
TEMPLATE = new_entry(0)
CROWDED = replace(SPACE, task="i2v:crowded")


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    """Spaces are large from 300 sources on."""
    monkeypatch.setattr(index, "APPROXIMATE_FROM", 300)


@functools.cache
def clustered(number: int) -> np.ndarray:
    """Vectors in forty clusters, like prompts."""
    return unit(random_vector(number % 40, LENGTH) + 0.5 * random_vector(10_000 + number, LENGTH))


@pytest.fixture
def fill(root, open_cache):
    """`fill(cache, range)`: rows of entries with these numbers as ids, without files."""

    def fill_one(cache, numbers, space=SPACE):
        with cache._catalog.writing() as transaction:
            for number in numbers:
                record = write_record(f"{number:032x}", 1e9 + number, replace(TEMPLATE, space=space))
                transaction.insert(record, clustered(number), "0" * 64, 1000)

    return fill_one


@pytest.fixture
def large(open_cache, fill):
    """A cache whose entries 0 … MANY − 1 are in an approximate index."""
    cache = open_cache()
    fill(cache, range(MANY))
    cache.search(clustered(0), EMBEDDER, SPACE)
    cache._index.wait()
    assert isinstance(pool(cache), ApproximatePool)
    return cache


def pool(cache, space=SPACE):
    """What the cache searches the space with, as of now."""
    cache.search(clustered(0), EMBEDDER, SPACE)
    return cache._index._families[EMBEDDER].pools[space.key()]


def snapshots(root):
    return sorted((root / "index").glob("*"))


def found(cache, number, k=1):
    return [int(match.entry.id, 16) for match in cache.search(clustered(number), EMBEDDER, SPACE, k)]


def exact(numbers, query, k):
    scores = {number: float(clustered(number).astype(float) @ query.astype(float)) for number in numbers}
    return sorted(numbers, key=lambda number: (-scores[number], -number))[:k]


def never(*arguments):
    raise AssertionError("trained again")


def test_search_is_exact_until_the_index_is_ready(open_cache, fill, monkeypatch):
    cache = open_cache()
    fill(cache, range(MANY))
    monkeypatch.setattr(index._Builder, "_run", lambda self: None)
    queries = [unit(clustered(n) + 0.3 * random_vector(n, LENGTH)) for n in range(50)]
    for query in queries:
        matches = cache.search(query, EMBEDDER, SPACE, k=3)
        assert [int(match.entry.id, 16) for match in matches] == exact(range(MANY), query, 3)
    assert isinstance(pool(cache), ExactPool)


def test_a_large_space_is_searched_with_exact_scores_and_hardly_a_miss(large):
    queries = [unit(clustered(n) + 0.3 * random_vector(n, LENGTH)) for n in range(200)]
    right = 0
    for query in queries:
        matches = large.search(query, EMBEDDER, SPACE, k=3)
        for match in matches:
            vector = clustered(int(match.entry.id, 16)).astype(float)
            assert match.score == pytest.approx(vector @ query.astype(float), abs=1e-12)
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
        right += int(matches[0].entry.id, 16) == exact(range(MANY), query, 1)[0]
    assert right >= 198


def test_equal_vectors_come_newest_first_in_a_large_space(large):
    made = [large.put(new_entry(n, vector=clustered(7))) for n in range(5)]
    matches = large.search(clustered(7), EMBEDDER, SPACE, k=6)
    assert [match.entry.id for match in matches] == [*(entry.id for entry in reversed(made)), f"{7:032x}"]
    assert isinstance(pool(large), ApproximatePool)


def test_a_large_space_follows_what_others_add_and_remove(large, open_cache, fill):
    other = open_cache()
    fill(other, range(MANY, MANY + 100))
    assert all(found(large, number) == [number] for number in range(MANY, MANY + 100))
    for number in range(300):
        with other._catalog.writing() as transaction:
            transaction.drop_id(f"{number:032x}")
    assert not set(range(300)) & {number for query in range(300) for number in found(large, query, 5)}
    assert len(pool(large)) == MANY + 100 - 300  # gone from memory, too
    other.clear()
    assert found(large, 600) == []


def test_what_changes_while_the_index_is_made_is_in_it(open_cache, fill, monkeypatch):
    cache = open_cache()
    fill(cache, range(MANY))
    run = index._Builder._run

    def later(self):
        with cache._catalog.writing() as transaction:
            transaction.drop_id(f"{3:032x}")
        fill(cache, range(MANY, MANY + 5))
        run(self)

    monkeypatch.setattr(index._Builder, "_run", later)
    cache.search(clustered(0), EMBEDDER, SPACE)
    cache._index.wait()
    assert isinstance(pool(cache), ApproximatePool)
    assert found(cache, MANY + 4) == [MANY + 4]
    assert found(cache, 3) != [3]


def test_a_failure_to_make_the_index_is_said_once_and_search_goes_on(open_cache, fill, monkeypatch, caplog):
    def broken(*arguments):
        raise MemoryError("no memory")

    monkeypatch.setattr(index, "train", broken)
    cache = open_cache()
    fill(cache, range(MANY))
    for number in range(20):
        assert found(cache, number) == [number]
        cache._index.wait()
    assert ["no memory" in record.message for record in caplog.records] == [True]


def test_without_faiss_search_is_exact_and_it_is_said_once(open_cache, fill, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    approximate.faiss_or_none.cache_clear()
    try:
        cache = open_cache()
        fill(cache, range(MANY))
        for number in range(20):
            assert found(cache, number) == [number]
        assert ["faiss is not installed" in record.message for record in caplog.records] == [True]
    finally:
        approximate.faiss_or_none.cache_clear()


# -- snapshots


def test_the_next_start_takes_the_snapshot_and_catches_up(large, open_cache, fill, root, monkeypatch):
    assert len(snapshots(root)) == 1
    fill(large, range(MANY, MANY + 50))
    with large._catalog.writing() as transaction:
        transaction.drop_id(f"{5:032x}")
    large.close()
    monkeypatch.setattr(index, "train", never)
    cache = open_cache()
    assert isinstance(pool(cache), ApproximatePool)
    assert found(cache, MANY + 49) == [MANY + 49]
    assert found(cache, 5) != [5]
    assert len(pool(cache)) == MANY + 49
    assert list((root / "index").glob("*.partial")) == []


@pytest.mark.parametrize("damage", ["first byte", "a byte", "footer", "truncated", "empty", "other"])
def test_a_damaged_snapshot_is_not_used_and_made_anew(large, open_cache, root, damage, caplog):
    large.close()
    (file,) = snapshots(root)
    content = bytearray(file.read_bytes())
    match damage:
        case "first byte":
            content[0] ^= 1
        case "a byte":
            content[len(content) // 2] ^= 16
        case "footer":
            content[-20] ^= 1
        case "truncated":
            content = content[:-100]
        case "empty":
            content = bytearray()
        case "other":
            content = bytearray(b"something else" * 100)
    file.write_bytes(content)
    cache = open_cache()
    assert found(cache, 17) == [17]
    assert any("is not used and made anew" in record.message for record in caplog.records)
    cache._index.wait()
    assert isinstance(pool(cache), ApproximatePool)
    assert file.read_bytes() != bytes(content)


def test_the_snapshot_of_another_catalog_is_not_used(large, open_cache, fill, root, monkeypatch):
    large.close()
    monkeypatch.setattr(index._Builder, "_run", lambda self: None)
    (path,) = root.glob("catalog-*.sqlite")
    for file in root.glob("catalog-*"):
        file.unlink()
    cache = open_cache()
    assert path.exists()  # a new one of the same name
    # The same numbers, as after a backup was put back: other entries.
    with cache._catalog.writing() as transaction:
        transaction._db.execute("DELETE FROM tombstones")
    fill(cache, range(5000, 5000 + MANY))
    assert found(cache, 5003) == [5003]
    assert found(cache, 3) != [3]
    assert isinstance(cache._index._families[EMBEDDER].pools[SPACE.key()], ExactPool)


def test_a_rebuilt_catalog_has_no_use_for_the_snapshot(large, root):
    large.rebuild()  # there are no files: all rows are gone
    assert found(large, 3) == []


def test_a_snapshot_that_most_entries_have_left_is_made_anew(large, open_cache, monkeypatch):
    monkeypatch.setattr(index._Builder, "_run", lambda self: None)
    with large._catalog.writing() as transaction:
        for number in range(400):
            transaction.drop_id(f"{number:032x}")
    large.close()
    cache = open_cache()
    assert found(cache, 600) == [600]
    assert isinstance(cache._index._families[EMBEDDER].pools[SPACE.key()], ExactPool)


def test_no_snapshot_keeps_what_was_forgotten(large, fill, root):
    elsewhere = replace(SPACE, task="i2v:crowded")
    fill(large, range(MANY, MANY + 320), space=elsewhere)
    large.search(clustered(0), EMBEDDER, elsewhere)
    large._index.wait()
    assert isinstance(pool(large, elsewhere), ApproximatePool)
    assert len(snapshots(root)) == 2
    large.forget(f"{MANY:032x}")
    assert len(snapshots(root)) == 1
    large.clear()
    assert snapshots(root) == []


def test_a_snapshot_that_cannot_be_written_is_said_and_search_goes_on(open_cache, fill, root, caplog):
    cache = open_cache()
    (root / "index").write_text("in the way")
    fill(cache, range(MANY))
    cache.search(clustered(0), EMBEDDER, SPACE)
    cache._index.wait()
    assert found(cache, 4) == [4]
    assert isinstance(pool(cache), ApproximatePool)
    assert ["not kept for the next start" in record.message for record in caplog.records] == [True]


# -- damage


def test_a_changed_vector_is_never_served_whatever_it_scores(large, open_cache, root):
    large.close()
    (path,) = root.glob("catalog-*.sqlite")
    db = sqlite3.connect(path)
    bad = clustered(2) * np.float32(3)
    db.execute("UPDATE entries SET vector = ? WHERE id = ?", (bad.tobytes(), f"{1:032x}"))
    db.execute("UPDATE entries SET vector = x'00' WHERE id = ?", (f"{8:032x}",))
    db.commit()
    db.close()
    for file in snapshots(root):
        file.unlink()
    cache = open_cache()
    assert found(cache, 2, 3)[0] == 2
    assert found(cache, 1) != [1]
    assert cache.get(f"{8:032x}") is None
    assert cache.count(Query(source=True)) == MANY - 2


def test_elsewhere_answers_from_small_and_large_spaces(large, fill):
    for number in range(30):
        fill(large, [5000 + number], space=replace(SPACE, task=f"i2v:{number}"))
    fill(large, range(MANY, MANY + 320), space=CROWDED)
    large.search_elsewhere(clustered(0), EMBEDDER, SPACE)
    large._index.wait()
    for number in (5003, 5029, MANY + 3, MANY + 319):
        matches = large.search_elsewhere(clustered(number), EMBEDDER, SPACE, k=2)
        assert int(matches[0].entry.id, 16) == number
        assert all(match.entry.space != SPACE for match in matches)
    matches = large.search_elsewhere(clustered(9), EMBEDDER, CROWDED)
    assert int(matches[0].entry.id, 16) == 9
