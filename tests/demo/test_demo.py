"""The demo, from its command to the files it writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FRAMES = 4
REQUEST_KEYS = {
    "name",
    "prompt",
    "outcome",
    "reason",
    "match_score",
    "source_prompt",
    "looked",
    "k1",
    "k2",
    "steps",
    "steps_computed",
    "step_equivalents",
    "token_share",
    "sampling_s",
    "chorus_s",
    "judged",
    "files",
}
COLD_KEYS = {"name", "prompt", "steps", "steps_computed", "step_equivalents", "sampling_s", "judged", "files"}


@pytest.fixture(scope="module")
def output(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of the demo wrote, started in a folder where an earlier one had left its report."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "report.json").write_text('{"version": 0}', encoding="utf-8")
    command = [sys.executable, str(checkout / "tools" / "run.py"), "demo", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}, timeout=280)
    said = done.stdout.decode("utf-8", "replace") + done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, said
    assert str(folder) in said.replace("\n", "")
    return folder


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def requests(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {request["name"]: request for request in report["requests"]}


def test_report_has_the_documented_keys(report, requests, checkout):
    assert report["version"] == 1
    assert set(report) == {"version", "machine", "comfyui", "requests", "target_cold", "files"}
    assert all(set(request) == REQUEST_KEYS for request in requests.values())
    assert set(report["target_cold"]) == COLD_KEYS
    documented = (checkout / "docs" / "demo.md").read_text(encoding="utf-8")
    keys = set(report) | REQUEST_KEYS | set(report["machine"])
    assert [key for key in sorted(keys) if f"`{key}`" not in documented] == []


def test_four_requests_end_as_promised(requests):
    outcomes = {name: request["outcome"] for name, request in requests.items()}
    assert outcomes == {"cold": "miss", "hit": "hit", "miss": "miss", "identical": "identical"}
    assert requests["cold"]["reason"] and requests["miss"]["reason"]


def test_similar_prompt_saves_a_quarter_of_the_work(requests):
    hit = requests["hit"]
    assert hit["source_prompt"] == requests["cold"]["prompt"]
    assert 0 < hit["looked"] < 1
    assert 0 < hit["k1"] <= hit["k2"] < hit["steps"]
    assert len(hit["token_share"]) == hit["k2"] - hit["k1"]
    assert hit["step_equivalents"] <= 0.75 * hit["steps"]


def test_identical_request_computes_nothing(requests):
    assert requests["identical"]["prompt"] == requests["hit"]["prompt"]
    assert requests["identical"]["steps_computed"] == 0
    assert requests["identical"]["step_equivalents"] == 0


def test_comparison_is_sampled_whole(report, requests):
    cold = report["target_cold"]
    assert cold["prompt"] == requests["hit"]["prompt"]
    assert cold["steps_computed"] == cold["steps"] == requests["hit"]["steps"]
    assert cold["sampling_s"] > 0


def test_similar_video_shows_its_own_words(requests):
    assert requests["hit"]["judged"] == dict.fromkeys(("background", "colour", "direction", "shape"), True)


def test_pictures_open_with_all_frames(report, output):
    animations = [report["files"]["side_by_side"]]
    for request in (*report["requests"], report["target_cold"]):
        animations += request["files"].values()
    assert "srd_mask.webp" in animations and len(animations) == 7
    for name in animations:
        with Image.open(output / name) as picture:
            assert picture.n_frames == FRAMES, name
            picture.load()
    with Image.open(output / report["files"]["contact_sheet"]) as sheet:
        sheet.load()


def test_every_command_works_on_the_cache_it_leaves(output, checkout, tmp_path):
    copy, bundle, other = tmp_path / "cache", tmp_path / "demo.chorus", tmp_path / "other"
    shutil.copytree(output / "cache", copy)

    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "chorus.cache", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, timeout=120, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    entries = json.loads(run("ls", copy, "--json"))
    assert [entry["is_source"] for entry in entries] == [True, False, True]
    source = entries[-1]["id"]
    assert json.loads(run("show", copy, source, "--json"))["hits"] >= 1
    assert json.loads(run("search", copy, "yellow circle", "--json"))[0]["id"] == entries[1]["id"]
    assert json.loads(run("stats", copy, "--json"))["hits"] >= 1
    assert "3 entries read, 0 damaged" in run("check", copy)
    assert "3 of format 2" in run("migrate", copy)
    run("pin", copy, source)
    assert "3 entries" in run("export", copy, bundle)
    assert "3 entries taken" in run("import", other, bundle)
    assert "2 entries evicted" in run("prune", copy, "--entries", 1)
    assert "1 entries deleted" in run("forget", copy, "--words", "red", "--yes")
    assert "3 entries deleted" in run("clear", other, "--yes")
