"""Estimates, tables and files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import report


def test_interval_holds_the_mean_of_the_population():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        found = report.combined(lambda x: float(x.mean()), rng.normal(3.0, 1.0, 40), resamples=400)
        inside += found["low"] <= 3.0 <= found["high"]
    assert 85 <= inside <= 100


def test_combined_keeps_pairs_together():
    a = np.arange(50.0)
    same = report.combined(lambda x, y: float((x - y).mean()), a, a + 1)
    assert (same["mean"], same["low"], same["high"]) == (-1.0, -1.0, -1.0)
    with pytest.raises(ValueError, match="sizes"):
        report.combined(lambda x, y: 0.0, [1, 2], [1])


def test_files_and_summary(tmp_path):
    rows = [{"system": "cold", "alignment": report.estimate([1.0, 0.5])}]
    result = report.Result(
        "made_up",
        "A table",
        ["system", "alignment"],
        rows,
        seeds=[1],
        summary={"ratio": {"4": report.estimate([0.5])}, "loss": report.estimate([0.1])},
        draw=lambda axes: axes.plot([0, 1], [0, 1]),
    )
    content = json.loads(report.write(result, "make bench ARGS=made_up", 1.0, tmp_path).read_text())
    assert {"command", "commit", "machine", "seeds", "seconds", "rows"} <= set(content)
    assert content["rows"][0]["alignment"]["n"] == 2
    assert (tmp_path / "made_up.png").read_bytes().startswith(b"\x89PNG")
    report.summarise(result, tmp_path)
    other = report.Result("other", "", [], [], summary={"ratio": {"20": report.estimate([0.7])}})
    summary = json.loads(report.summarise(other, tmp_path).read_text())
    assert set(summary["ratio"]) == {"4", "20"}
    assert summary["loss"]["mean"] == 0.1
    assert "| cold | 0.750 ±" in report.markdown(content)


def test_a_table_of_the_cache_has_a_summary_of_its_own(tmp_path):
    result = report.Result("made_up", "", [], [], summary={"load": {"lost": 0}}, summary_file="cache.json")
    assert report.summarise(result, tmp_path) == tmp_path / "cache.json"
    assert json.loads((tmp_path / "cache.json").read_text()) == {"load": {"lost": 0}}
    assert not (tmp_path / "summary.json").exists()
