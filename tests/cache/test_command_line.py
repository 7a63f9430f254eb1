"""`python -m chorus.cache` on a real cache: what it says, what it does, its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .sample import new_entry


@pytest.fixture
def run(checkout: Path):
    """`run("ls", …)`: the command in a process of its own."""

    def run_one(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "chorus.cache", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=checkout, timeout=120, check=False)

    return run_one


@pytest.fixture
def filled(open_cache, root: Path) -> Path:
    """A cache of three entries, closed."""
    cache = open_cache()
    for number in range(3):
        cache.put(new_entry(number))
    cache.record_hit(cache.entries()[0].id, 12.5)
    cache.close()
    return root


def test_entries_are_listed_and_filtered_as_a_table_and_as_json(run, filled):
    table = run("ls", filled)
    assert table.returncode == 0 and "3 of 3 entries" in table.stdout
    found = json.loads(run("ls", filled, "--words", "TAKE 1", "--json").stdout)
    assert [e["prompt"] for e in found] == ["a red ball rolls left, take 1"]
    assert len(json.loads(run("ls", filled, "--limit", "2", "--json").stdout)) == 2


def test_one_entry_is_shown_by_the_beginning_of_its_id(run, filled):
    known = json.loads(run("ls", filled, "--json").stdout)[0]
    assert json.loads(run("show", filled, known["id"][:10], "--json").stdout) == known
    assert known["id"] in run("show", filled, known["id"]).stdout.replace("\n", "")
    nobody = run("show", filled, "zzz")
    assert nobody.returncode == 2 and "no entry" in nobody.stderr


def test_stats_tell_what_was_kept_and_saved(run, filled):
    known = json.loads(run("stats", filled, "--json").stdout)
    assert (known["entries"], known["hits"], known["seconds_saved"]) == (3, 1, 12.5)
    assert "3 entries" in run("stats", filled).stdout


def test_a_flipped_bit_is_found_and_the_rest_goes_on(run, filled):
    assert run("check", filled).returncode == 0
    victim = next(p for p in sorted((filled / "blobs").rglob("*")) if p.is_file())
    content = bytearray(victim.read_bytes())
    content[-3] ^= 4
    victim.write_bytes(content)
    found = run("check", filled, "--fix")
    assert found.returncode == 1 and "1 damaged" in found.stdout and victim.stem in found.stderr.replace("\n", "")
    again = run("check", filled)
    assert again.returncode == 0 and "2 entries read" in again.stdout


def test_what_is_forgotten_is_gone_from_disk(run, filled, checkout):
    assert run("forget", filled).returncode == 2
    refused = subprocess.run(
        [sys.executable, "-m", "chorus.cache", "forget", str(filled), "--words", "take 1"],
        input="n\n",
        capture_output=True,
        text=True,
        cwd=checkout,
        check=False,
    )
    assert refused.returncode == 1 and "Delete 1 entries?" in refused.stdout
    assert len(json.loads(run("ls", filled, "--json").stdout)) == 3
    assert run("forget", filled, "--words", "take 1", "--yes").returncode == 0
    left = json.loads(run("ls", filled, "--json").stdout)
    assert sorted(e["prompt"][-1] for e in left) == ["0", "2"]
    assert not any(b"take 1" in p.read_bytes() for p in filled.rglob("*") if p.is_file())
    assert "0 entries deleted" in run("forget", filled, "--older", "1", "--yes").stdout
    assert "2 entries deleted" in run("clear", filled, "--yes").stdout


def test_a_folder_without_a_cache_is_refused_and_left_alone(run, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        refused = run("stats", place)
        assert refused.returncode == 2 and "no cache" in refused.stderr
    assert list(tmp_path.iterdir()) == []
