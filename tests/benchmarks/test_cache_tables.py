"""The tables about the cache alone: look-ups by entries, and eviction by policy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import report
from benchmarks.prompts import stream, vectors, vidprom, with_repeats
from benchmarks.tables import lookup
from benchmarks.tables.capacity import serve_with_chorus
from benchmarks.tables.lookup import Prompts, Size
from chorus.cache.eviction import POLICIES

SMALL = Size(300, 256)


def test_vectors_lie_in_clusters_and_are_the_same_each_time():
    prompts = Prompts(256)
    points = prompts.chunk(1, 400)
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    assert (points == Prompts(256).chunk(1, 400)).all()
    nearest = (prompts.queries() @ points.T).max(axis=1)
    assert 0.6 < np.median(nearest) < 0.99


def test_a_look_up_is_measured_on_a_catalog_of_that_size_and_compared_with_all_vectors(tmp_path):
    row = lookup.measured(SMALL, tmp_path)
    assert row["entries"] == 300
    assert row["recall@1"]["mean"] == 1.0
    assert row["recall@1"]["n"] == lookup.QUERIES
    assert 0 < row["index p50, ms"]["mean"] < row["p50, ms"]["mean"] <= row["p99, ms"]["mean"]


def test_a_stopped_run_goes_on_with_what_is_there(tmp_path, monkeypatch):
    prompts = Prompts(SMALL.length)
    lookup.fill(tmp_path, Size(120, SMALL.length), prompts)
    lookup.fill(tmp_path, SMALL, prompts)
    cache, _ = lookup.started(tmp_path, prompts.queries()[0])
    assert cache.count() == 300
    found = [cache.search(query, lookup.EMBEDDER, lookup.SPACE, 1)[0].entry.id for query in prompts.queries()]
    cache.close()
    assert found == [f"{number:032x}" for number in lookup.best(SMALL, prompts, prompts.queries())]

    monkeypatch.setattr(lookup, "measured", lambda size, place: {"entries": size.entries})
    first = lookup.kept(SMALL, tmp_path / "kept")
    monkeypatch.setattr(lookup, "measured", lambda size, place: pytest.fail("measured again"))
    assert lookup.kept(SMALL, tmp_path / "kept") == first


def test_the_cache_has_a_summary_of_its_own(tmp_path):
    made = report.Result("x", "x", ["a"], [], summary={"lookup_ms_p50": {"1000": 1.0}}, summary_file="cache.json")
    report.summarise(made, tmp_path)
    made.summary = {"lookup_ms_p50": {"4000": 2.0}}
    report.summarise(made, tmp_path)
    assert json.loads((tmp_path / "cache.json").read_text()) == {"lookup_ms_p50": {"1000": 1.0, "4000": 2.0}}
    assert not (tmp_path / "summary.json").exists()


def test_every_policy_serves_as_much_as_the_others_without_a_limit_and_less_with_one():
    requests = with_repeats(stream(vidprom(), 40, seed=2, style=8), 0.3, seed=2)
    points = vectors([request.caption for request in requests])
    free = serve_with_chorus(requests, points, None)
    for policy in POLICIES:
        assert (serve_with_chorus(requests, points, None, policy) == free).all()
        assert serve_with_chorus(requests, points, 2, policy).sum() < free.sum()
