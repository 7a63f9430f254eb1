"""The capacity table: NIRVANA's eviction as published, the real LocalCache within its limit, and honest hits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.prompts import Request, stream, vectors, vidprom, with_repeats
from benchmarks.tables import capacity
from benchmarks.tables.capacity import (
    NIRVANA_TABLE,
    ChorusCache,
    NirvanaCache,
    bytes_of,
    proportion,
    serve_with_chorus,
    serve_with_nirvana,
)
from chorus.cache import LocalCache
from chorus.reuse.calibration import calibration_of

KS = [k for _, k in NIRVANA_TABLE]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return with_repeats(stream(vidprom(), 50, seed=2, style=8), 0.3, seed=2)


@pytest.fixture(scope="module")
def points(requests) -> np.ndarray:
    return vectors([r.caption for r in requests])


def alike(*pairs: tuple[int, int, float], count: int) -> np.ndarray:
    """[count, count] similarities: 1 on the diagonal, those of `pairs`, 0 elsewhere."""
    similarities = np.eye(count)
    for i, j, similarity in pairs:
        similarities[i, j] = similarities[j, i] = similarity
    return similarities


# -- NIRVANA


@pytest.mark.parametrize(
    ("similarity", "k"), [(0.96, 25), (0.95, 20), (0.91, 20), (0.86, 15), (0.76, 10), (0.66, 5), (0.65, 0), (0.3, 0)]
)
def test_nirvana_skips_what_its_table_says(similarity, k):
    cache = NirvanaCache(alike((0, 1, similarity), count=2), None)
    assert cache.serve(0) == 0.0
    assert cache.serve(1) == k / 50


def test_a_hit_is_no_source_for_later_requests():
    cache = NirvanaCache(alike((0, 1, 0.92), (1, 2, 0.99), (0, 2, 0.3), count=3), None)
    assert [cache.serve(i) > 0 for i in range(3)] == [False, True, False]


def test_lcbfu_evicts_the_least_frequency_times_k():
    # Prompt 0's K = 5 state, used three more times, scores 20; its K = 10 state, used once more, scores 20 as well.
    cache = NirvanaCache(alike(*((0, i, 0.7) for i in (1, 2, 3)), (0, 4, 0.8), count=6), 5)
    for i in range(5):
        cache.serve(i)
    assert {k: s.frequency for (_, k), s in cache.states.items()} == {5: 4, 10: 2, 15: 1, 20: 1, 25: 1}
    gone = []
    while cache.states:
        before = {key: s.frequency * key[1] for key, s in cache.states.items()}
        cache._evict()
        (key,) = before.keys() - cache.states.keys()
        assert before[key] == min(before.values())
        gone.append(key[1])
    assert gone[0] == 15 and set(gone) == set(KS)


def test_lru_evicts_the_least_recently_used():
    cache = NirvanaCache(alike((0, 2, 0.7), count=4), 10, "LRU")
    for i in range(4):
        cache.serve(i)
    # Prompt 3 needs five places: the four of prompt 0 that request 2 did not use, and one of prompt 1.
    assert {k for prompt, k in cache.states if prompt == 0} == {5}
    assert len([k for prompt, k in cache.states if prompt == 1]) == 4
    assert len([k for prompt, k in cache.states if prompt == 3]) == 5


def test_a_state_that_is_gone_leaves_the_next_earlier_one():
    cache = NirvanaCache(alike((0, 1, 0.99), count=2), None)
    cache.serve(0)
    del cache.states[0, 25]
    assert cache.serve(1) == 20 / 50


@pytest.mark.parametrize("evict", capacity.SCORES)
def test_nirvana_never_keeps_more_than_its_capacity(points, evict):
    cache = NirvanaCache(points @ points.T, 22, evict)
    sizes = []
    for i in range(len(points)):
        cache.serve(i)
        sizes.append(len(cache.states))
    assert max(sizes) <= 22
    assert max(sizes) > 22 - len(KS)


def test_a_capacity_below_one_prompt_is_refused():
    with pytest.raises(ValueError, match="4 states"):
        NirvanaCache(np.eye(2), 4)


# -- Chorus


def test_chorus_never_keeps_more_than_its_capacity(requests, points, tmp_path: Path):
    limit = bytes_of(4, points[0])
    cache = LocalCache(tmp_path / "cache", max_bytes=limit)
    system, sources, used = ChorusCache(cache), [], []
    for i, r in enumerate(requests[:40]):
        system.serve(i, r.caption.text, points[i])
        used.append(cache.stats().bytes)
        sources.append(sum(entry.is_source for entry in cache.entries()))
    cache.close()
    assert max(used) <= limit
    assert max(sources) == 4


def test_the_capacity_is_that_of_cold_runs(points, tmp_path: Path):
    cache = LocalCache(tmp_path / "cache", max_bytes=bytes_of(3, points[0]))
    system = ChorusCache(cache)
    for i in range(5):
        system.put(i, "a prompt", points[i], parent=None)
    kept = cache.stats().entries
    cache.close()
    assert kept == 3


def test_chorus_saves_what_its_calibration_says_and_takes_the_same_prompt_for_another_take(requests, points):
    """Without a limit, the nearest cold prompt decides."""
    calibration = calibration_of(capacity.EMBEDDER)
    cold: list[int] = []
    expected = []
    for i, r in enumerate(requests):
        scores = points[cold] @ points[i] if cold else np.array([-1.0])
        best = float(scores.max())
        same = bool(cold) and requests[cold[int(scores.argmax())]].caption.text == r.caption.text
        hit = best >= calibration.threshold and not same
        expected.append(calibration.reuse(best).of(capacity.STEPS) if hit else 0.0)
        if not hit:
            cold.append(i)
    assert 0 < np.count_nonzero(expected) < len(expected)
    assert serve_with_chorus(requests, points, None) == pytest.approx(np.array(expected), abs=1e-5)


# -- the table


@pytest.mark.parametrize("serve", [serve_with_chorus, serve_with_nirvana])
def test_a_larger_cache_has_no_fewer_hits(requests, points, serve):
    few, many = ((serve(requests, points, c) > 0).mean() for c in (3, None))
    assert few < many


def test_results_do_not_depend_on_the_run(requests, points):
    first, again = (serve_with_chorus(requests[:30], points[:30], 3) for _ in range(2))
    assert np.array_equal(first, again)


def test_a_proportion_has_wilsons_interval():
    hits = np.array([True] * 7 + [False] * 13)
    z, p, n = norm.ppf(0.975), 0.35, 20
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = proportion(hits)
    assert (found["mean"], found["n"]) == (0.35, 20)
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half), abs=1e-5)
