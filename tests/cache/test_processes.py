"""Several processes on one cache, killed processes, and a disk that is full."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from chorus.cache import LocalCache, Query, local

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, SIGKILL and resource limits")


def tensor_files(root):
    """{path: size} of what entries occupy, of a moment in which nothing changed; None when there was none."""
    first = list_files(root)
    return first if first is not None and first == list_files(root) else None


def list_files(root):
    try:
        return {
            path: path.stat().st_size
            for folder in ("blobs", "partial", "quarantine")
            for path in (root / folder).rglob("*")
            if path.is_file()
        }
    except FileNotFoundError:
        return None


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def let_go(writers):
    """Start writers at the same moment."""
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return writers


def test_two_writers_never_exceed_the_limit_and_are_seen_by_a_third(open_cache, root, start):
    limit = 1_000_000
    cache = open_cache(max_bytes=limit, timeout=20)
    assert cache.search(random_vector(113), EMBEDDER, SPACE) == []
    version = cache.version()
    writers = let_go([start("writer.py", root, first, first + 14, 150, limit, 0) for first in (0, 100)])
    largest = samples = 0
    while any(writer.poll() is None for writer in writers):
        assert cache.stats().bytes <= limit
        if (found := tensor_files(root)) is not None:
            largest = max(largest, sum(found.values()))
            samples += 1
        time.sleep(0.01)
    for writer in writers:
        finish(writer)

    assert samples > 10
    assert limit // 2 < largest <= limit
    assert cache.version() >= version + 28
    newest = cache.entries()[0]
    (match, *_) = cache.search(random_vector(newest.settings["number"]), EMBEDDER, SPACE)
    assert match.entry == newest
    assert match.score == pytest.approx(1.0)
    for entry in cache.entries():
        assert_is_entry(entry.settings["number"], cache.load(entry.id), kilobytes=150)
    assert sum(tensor_files(root).values()) == cache.stats().bytes


def test_three_writers_never_exceed_the_limit_of_entries_and_lose_no_pin(open_cache, root, start):
    cache = open_cache(max_entries=20, timeout=20)
    writers = let_go([start("writer.py", root, first, first + 20, 4, 10**9, 20) for first in (0, 100, 200)])
    most = samples = 0
    while any(writer.poll() is None for writer in writers):
        count = cache.count()
        assert count <= 20
        if (found := tensor_files(root)) is not None:
            assert len(found) <= 20
        most, samples = max(most, count), samples + 1
        time.sleep(0.005)
    for writer in writers:
        finish(writer)

    assert samples > 10
    assert most == 20 == cache.count()
    pinned = {entry.settings["number"] for entry in cache.entries(query=Query(pinned=True))}
    assert pinned == {first + number for first in (0, 100, 200) for number in (0, 5, 10, 15)}


@posix
@pytest.mark.parametrize("limit", [10**9, 6_000_000], ids=["roomy", "evicting"])
def test_killed_writers_lose_no_committed_entry_and_leave_nothing(root, start, open_cache, monkeypatch, limit):
    reported = dict(line.split() for line in finish(start("killed_writers.py", root, 20, limit)).splitlines() if line)
    assert len(reported) >= 10

    cache = open_cache(max_bytes=limit)
    entries = {entry.id: entry for entry in cache.entries(limit=10_000)}
    for entry in entries.values():
        assert_is_entry(entry.settings["number"], cache.load(entry.id), kilobytes=256)
    if limit == 10**9:
        assert reported.keys() <= entries.keys()
    for entry_id in reported.keys() & entries.keys():
        assert entries[entry_id].settings["number"] == int(reported[entry_id])
    assert sum(tensor_files(root).values()) <= limit

    monkeypatch.setattr(local, "RESERVED_FOR", 0.0)  # as if an hour had passed
    monkeypatch.setattr(local, "ORPHANED_AFTER", 0.0)
    swept = open_cache(max_bytes=limit)
    assert swept.stats().entries == len(entries)
    assert {path.stem for path in tensor_files(root)} == entries.keys()
    assert sum(tensor_files(root).values()) == swept.stats().bytes
    with swept._catalog.reading() as transaction:
        assert transaction.totals().reserved == 0


@posix
def test_a_full_disk_is_a_message_and_leaves_nothing(root, start):
    output = finish(start("full_disk.py", root)).splitlines()
    assert output[-1] == "done"
    assert len(output) == 3
    assert "File too large" in output[0]
    assert all("unavailable" in line and "Check free space" in line for line in output[:2])
    cache = LocalCache(root)
    assert sum(tensor_files(root).values()) == cache.stats().bytes
    assert_is_entry(1, cache.load(cache.find_request("request-1").id))
    cache.put(new_entry(500))
    cache.close()


@posix
def test_a_folder_that_cannot_be_written_to_is_still_read(start):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be entered by another user
        Path(folder).chmod(0o755)
        root = Path(folder, "cache")
        cache = LocalCache(root)
        cache.put(new_entry(1))
        cache.close()
        before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        lines = finish(start("read_only.py", root)).splitlines()
        refused = [line for line in lines if line.startswith("The cache at")]
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)
        assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert len(refused) == 6
    assert "changed" not in lines
    assert all("unavailable" in line and "permissions" in line for line in refused)
