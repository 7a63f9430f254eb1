"""The tables' own arithmetic: who serves whom, which K, what a rival has at equal cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.pairs import Pair, hit_pairs, request
from benchmarks.prompts import vectors
from benchmarks.rivals import between
from benchmarks.tables import hits, locality, looks
from small_wan import scenes

RED = scenes.Caption("red", "circle", "right", "navy")
GREEN = replace(RED, colour="green")
OTHER = scenes.Caption("pink", "cross", "up", "olive", ("cyan", "square", "left"), 1)


def test_only_cold_requests_serve_later_ones():
    near = float(vectors([RED])[0] @ vectors([GREEN])[0])
    steps = locality.run_stream([RED, GREEN, GREEN, OTHER], 1, 4, lowest=near - 0.01, warm=1)
    assert [s.nearest.prompt if s.nearest else None for s in steps] == [RED.text, RED.text, RED.text]
    assert steps[0].score == pytest.approx(near, abs=1e-5)
    # The same prompt again is another take: cold, and from then on a source.
    again = locality.run_stream([RED, RED, GREEN], 1, 4, lowest=near - 0.01, warm=0)
    assert again[2].nearest.seed in (again[0].target.seed, again[1].target.seed)


@pytest.mark.parametrize("score, k", [(0.96, 25), (0.95, 20), (0.91, 20), (0.86, 15), (0.76, 10), (0.66, 5), (0.65, 0)])
def test_nirvanas_table(score, k):
    pair = Pair(request(RED, 1, 50), request(GREEN, 2, 50), score)
    system = locality.nirvana_table(50)(pair)
    assert (system.k1 if system else 0) == k


def test_pairs_are_alike_different_and_reproducible():
    pairs = hit_pairs(12, 5, 20)
    for pair in pairs:
        assert pair.changed
        assert pair.source.prompt != pair.target.prompt
        points = vectors([pair.source.caption, pair.target.caption])
        assert float(points[0] @ points[1]) == pytest.approx(pair.score, abs=1e-5)
    assert pairs == hit_pairs(12, 5, 20)
    assert {p.source.seed for p in pairs}.isdisjoint({p.target.seed for p in pairs})


def test_a_rival_at_a_fractional_cost_lies_between():
    measured = {steps: {"alignment": steps / 4, "features": [steps], "error": None} for steps in range(1, 5)}
    assert between(2.25, 4, measured.__getitem__) == {"alignment": 0.5625, "features": [2], "error": None}
    assert between(2.75, 4, measured.__getitem__)["features"] == [3]
    for cost, steps in ((0.3, 1), (2.0, 2), (4.0, 4), (4.2, 4)):
        assert between(cost, 4, measured.__getitem__) == measured[steps]


def test_ratios_are_of_means_and_none_where_the_rival_loses_nothing():
    cold, ours, rival = np.array([1.0, 1.0]), np.array([1.0, 0.9]), np.array([0.8, 1.0])
    assert hits._ratio(cold - ours, cold - rival) == pytest.approx(0.5)
    assert np.isnan(hits._ratio(cold - ours, cold - cold))


def test_a_second_look_and_a_lower_bound_mark_no_less(monkeypatch):
    monkeypatch.setattr(looks, "QUICK", {20: 1})
    rows = [row for row in looks.measure(None, False).rows if row["change"] == "all"]
    marked = {(row["look"], row["highest"]): row["marked"]["mean"] for row in rows}
    assert set(marked) == {(look, highest) for look in ("first", "both") for highest in looks.HIGHEST}
    assert all(0 < marked["first", highest] <= marked["both", highest] < 1 for highest in looks.HIGHEST)
    first = [marked["first", highest] for highest in looks.HIGHEST]
    assert first == sorted(first) and first[0] < first[-1]
    assert all(0 < row["found"]["mean"] <= 1 and 0 < row["right"]["mean"] <= 1 for row in rows)


def test_the_command_writes_tables(checkout, tmp_path):
    launch = [sys.executable, "-P", str(checkout / "tools" / "launch.py"), "benchmarks"]
    done = subprocess.run(
        [*launch, "overhead", "--output", str(tmp_path)], capture_output=True, text=True, cwd=checkout
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert {row["when"] for row in rows} == {"every request", "a hit", "a miss"}
    assert all(row["ms"]["mean"] > 0 for row in rows)
    refused = subprocess.run([*launch, "no-such-table"], capture_output=True, text=True, cwd=checkout)
    assert refused.returncode == 2
    assert "there are " in refused.stderr and "can_tell" in refused.stderr
