"""Many vectors: which search serves, and that it finds what an exact one would."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import numpy as np
import psycopg
import pytest

from chorus.cache.record import write_record
from chorus.cache.shared.catalog import Catalog

from ..cache.sample import EMBEDDER, SPACE, new_entry, random_vector, unit

ELSEWHERE = replace(SPACE, weights="weights-b")


@pytest.fixture
def fill(cache, db, tenant):
    """`fill(vectors, space=…)`: rows of sources with these vectors, without files."""

    def fill_in(vectors, embedder, space=SPACE):
        new = new_entry(0, kilobytes=1, space=space, embedder=embedder)
        cache.version()
        catalog = Catalog(db, tenant, "default")
        with db.transaction():
            catalog.index(embedder, vectors.shape[1])
            for number, vector in enumerate(vectors):
                made = replace(new, vector=vector, settings={"number": number}, request=str(number))
                catalog.insert(write_record(uuid.uuid4().hex, time.time(), made), vector, "0" * 64, 100)
        db.execute("ANALYZE chorus.vectors")  # as autovacuum does

    return fill_in


def clustered(count: int, length: int, seed: int) -> np.ndarray:
    """[count, length] float32 of unit norm, about 50 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, length))
    points = centres[rng.integers(50, size=count)] + 0.7 * rng.standard_normal((count, length))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def index_scans(db, embedder, length):
    """How often the embedder's own index was read."""
    with psycopg.connect(db.info.dsn, autocommit=True) as fresh:
        rows = fresh.execute(
            "SELECT s.idx_scan FROM pg_stat_user_indexes s JOIN pg_indexes i ON i.indexname = s.indexrelname"
            " WHERE i.indexdef LIKE %s AND i.indexdef LIKE '%%hnsw%%' AND i.indexdef LIKE %s",
            (f"%'{embedder}'%", f"%dims = {length})%"),
        ).fetchall()
    ((scans,),) = rows
    return scans


def numbers(matches):
    return [match.entry.settings["number"] for match in matches]


@pytest.mark.parametrize(("length", "count"), [(64, 1500), (2200, 250), (4096, 250)])
def test_large_spaces_are_searched_by_index_and_hardly_a_match_is_missed(cache, fill, db, monkeypatch, length, count):
    embedder = f"embedder-{length}"
    vectors = clustered(count, length, 1)
    fill(vectors, embedder)
    queries = clustered(20, length, 2)
    monkeypatch.setattr("chorus.cache.shared.cache.EXACT", 100)
    db.execute("ALTER SYSTEM SET enable_sort = off")  # so many rows are few enough to sort them all
    db.execute("SELECT pg_reload_conf()")
    try:
        found = hits = 0
        for query in queries:
            exact = np.argsort(-(vectors.astype(float) @ query.astype(float)))[:10].tolist()
            matches = cache.search(query, embedder, SPACE, k=10)
            found += len(matches)
            hits += len(set(exact) & set(numbers(matches)))
            scores = [float(vectors[n].astype(float) @ query.astype(float)) for n in numbers(matches)]
            assert [match.score for match in matches] == pytest.approx(scores, abs=1e-12)
            assert scores == sorted(scores, reverse=True)
        assert found == 200
        assert hits / found >= 0.98
        cache.close()  # a connection reports its statistics when it ends, at the latest
        deadline = time.monotonic() + 10
        while index_scans(db, embedder, length) < 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert index_scans(db, embedder, length) >= 20
    finally:
        db.execute("ALTER SYSTEM RESET enable_sort")
        db.execute("SELECT pg_reload_conf()")


def test_a_small_space_among_many_entries_is_searched_exactly(cache, fill, monkeypatch):
    embedder = "filters"
    monkeypatch.setattr("chorus.cache.shared.cache.EXACT", 100)
    many, few = clustered(800, 32, 3), clustered(40, 32, 4)
    fill(many, embedder)
    fill(few, embedder, ELSEWHERE)
    for query in clustered(20, 32, 5):
        exact = np.argsort(-(few.astype(float) @ query.astype(float)))[:3].tolist()
        assert numbers(cache.search(query, embedder, ELSEWHERE)) == exact
        assert numbers(cache.search_elsewhere(query, embedder, SPACE)) == exact


def test_filters_cost_no_matches(cache, fill, monkeypatch):
    """A tenth of an embedder's vectors are asked for, none of them near the query: the scan goes on until it has k."""
    monkeypatch.setattr("chorus.cache.shared.cache.EXACT", 50)
    near = np.stack([unit(np.r_[1.0, 0.05 * random_vector(n, 15)]) for n in range(800)])
    far = np.stack([unit(np.r_[-1.0, random_vector(n, 15)]) for n in range(80)])
    fill(near, "skewed")
    fill(far, "skewed", ELSEWHERE)
    matches = cache.search(unit(np.r_[1.0, np.zeros(15)]), "skewed", ELSEWHERE, k=5)
    assert len(matches) == 5
    assert all(match.entry.space == ELSEWHERE for match in matches)


def test_each_embedder_has_an_index_of_its_own_up_to_a_number(cache, db, tenant):
    def indexes():
        return db.execute("SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'hnsw\\_%'").fetchone()[0]

    before = indexes()
    cache.put(new_entry(1, embedder=f"{tenant}'; DROP TABLE x --", vector=random_vector(1, 5)))
    cache.put(new_entry(2, embedder=f"{tenant}-b", vector=random_vector(1, 6)))
    cache.put(new_entry(3, embedder=f"{tenant}-b", vector=random_vector(1, 6)))
    cache.put(new_entry(4, embedder=f"{tenant}-c", vector=random_vector(1, 6), is_source=False))
    assert indexes() == before + 2
    for number in range(70):
        db.execute("SELECT chorus.index_embedder(%s, 3)", (f"{tenant}-{number}",))
    assert indexes() == 64
    cache.put(new_entry(5, embedder=f"{tenant}-beyond"))
    assert len(cache.search(random_vector(5), f"{tenant}-beyond", SPACE)) == 1
    for (name,) in db.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE 'hnsw\\_%'").fetchall():
        db.execute(f"DROP INDEX chorus.{name}")


def test_ties_across_the_edge_are_the_newest(cache, fill):
    vectors = np.repeat(clustered(1, 16, 7), 300, axis=0)
    fill(vectors, "ties")
    assert numbers(cache.search(vectors[0], "ties", SPACE, k=4)) == [299, 298, 297, 296]


def test_an_empty_embedder_name_is_no_search(cache):
    cache.put(new_entry(1))
    assert cache.search(random_vector(1), "", SPACE) == []
    assert len(cache.search(random_vector(1), EMBEDDER, SPACE)) == 1
