"""What the local cache does beyond the contract of all caches (test_contract.py): its files, limits, threads."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from chorus.cache import CacheUnavailable, EntryMissing, VectorLengthMismatch

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector, unit

ELSEWHERE = replace(SPACE, weights="weights-b")


def files(root):
    return {path for path in root.rglob("*") if path.is_file()}


def blob_bytes(root):
    return sum(path.stat().st_size for path in files(root) if "sqlite" not in path.name)


def test_a_tensor_that_cannot_be_stored_is_named_and_leaves_nothing(cache, root):
    with pytest.raises(ValueError, match="'final'"):
        cache.put(new_entry(1, tensors={"final": torch.ones(SPACE.shape).to_sparse()}))
    assert cache.stats().bytes == blob_bytes(root) == 0


def test_a_tensor_the_entry_does_not_have_is_missing(cache):
    entry = cache.put(new_entry(1))
    with pytest.raises(EntryMissing, match="no tensor preview"):
        cache.load(entry.id, ["preview"])
    assert cache.get(entry.id) == entry


def test_blobs_are_plain_safetensors_files_with_the_entry_in_their_header(cache, root):
    entry = cache.put(new_entry(1))
    path = root / "blobs" / entry.id[:2] / f"{entry.id}.safetensors"
    assert path.stat().st_size == entry.bytes
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["record"])["prompt"] == entry.prompt
        assert sorted(file.keys()) == list(entry.tensor_names)


def test_vectors_of_another_length_need_another_embedder(cache, root):
    cache.put(new_entry(1, vector=unit([1, 0])))
    with pytest.raises(VectorLengthMismatch, match="have 2 numbers, this one has 3"):
        cache.put(new_entry(2, vector=unit([1, 0, 0])))
    with pytest.raises(VectorLengthMismatch, match="another name"):
        cache.search(unit([1, 0, 0]), EMBEDDER, SPACE)
    assert cache.stats().bytes == blob_bytes(root)


def test_entries_lists_the_newest_first_in_pages(cache):
    made = [cache.put(new_entry(n)) for n in range(5)]
    assert cache.entries() == made[::-1]
    assert cache.entries(limit=2, offset=1) == [made[3], made[2]]


def test_the_limit_holds_and_the_least_recently_used_go(open_cache, root):
    size = open_cache().put(new_entry(0)).bytes
    cache = open_cache(max_bytes=int(3.5 * size))
    cache.clear()
    a, b, c = (cache.put(new_entry(n)) for n in (1, 2, 3))
    cache.record_hit(a.id, 1.0)
    d = cache.put(new_entry(4))
    assert {entry.id for entry in cache.entries()} == {a.id, c.id, d.id}
    assert [match.entry.id for match in cache.search(random_vector(2), EMBEDDER, SPACE, k=9)].count(b.id) == 0
    with pytest.raises(EntryMissing):
        cache.load(b.id)
    assert cache.stats().bytes == blob_bytes(root) <= cache.max_bytes


def test_a_lowered_limit_holds_from_the_start(open_cache, root):
    first = open_cache()
    for number in range(6):
        first.put(new_entry(number))
    limit = first.stats().bytes // 2
    assert open_cache(max_bytes=limit).stats().entries == 3
    assert blob_bytes(root) <= limit


def test_what_is_forgotten_is_nowhere_on_disk(cache, root):
    secret = new_entry(1, prompt="the lighthouse keeper's secret")
    entry = cache.put(secret)
    kept = cache.put(new_entry(2))
    assert any(b"lighthouse" in path.read_bytes() for path in files(root))
    cache.forget(entry.id)
    cache.forget(entry.id)  # gone already: no error
    assert not any(b"lighthouse" in path.read_bytes() for path in files(root))
    assert blob_bytes(root) == kept.bytes
    assert cache.get(entry.id) is None


def test_clear_leaves_nothing(cache, root):
    for number in range(3):
        cache.put(new_entry(number))
    assert cache.clear() == 3
    assert blob_bytes(root) == cache.stats().bytes == cache.stats().entries == 0
    assert cache.search(random_vector(1), EMBEDDER, SPACE) == []
    assert_is_entry(4, cache.load(cache.put(new_entry(4)).id))


def test_entries_survive_a_restart(cache, open_cache):
    entry = cache.put(new_entry(1))
    cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.version()
    again = open_cache()
    assert [match.entry for match in again.search(random_vector(1), EMBEDDER, SPACE)] == [entry]
    assert_is_entry(1, again.load(entry.id))


def test_a_reader_that_lags_behind_the_kept_history_starts_over(cache, open_cache, monkeypatch):
    for module in ("index", "transaction"):
        monkeypatch.setattr(sys.modules[f"chorus.cache.{module}"], "HISTORY", 3)
    other = open_cache()
    made = [cache.put(new_entry(n, vector=random_vector(1))) for n in range(6)]
    assert len(other.search(random_vector(1), EMBEDDER, SPACE, k=9)) == 6
    for entry in made[:5]:
        cache.forget(entry.id)
    assert [match.entry for match in other.search(random_vector(1), EMBEDDER, SPACE, k=9)] == [made[5]]


def test_half_written_and_damaged_leftovers_are_deleted_after_an_hour_and_not_before(cache, open_cache, root):
    entry = cache.put(new_entry(1))
    leftovers = [root / "partial" / ("0" * 32), root / "quarantine" / f"{'1' * 32}.safetensors"]
    for path in leftovers:
        path.write_bytes(b"unfinished")
    open_cache()
    assert all(path.exists() for path in leftovers)
    for path in [*leftovers, *root.glob("blobs/*/*")]:
        os.utime(path, (time.time() - 4000,) * 2)
    open_cache()
    assert not any(path.exists() for path in leftovers)
    assert_is_entry(1, cache.load(entry.id))


def test_threads_share_a_cache(open_cache, root):
    cache = open_cache(max_bytes=150_000, timeout=20)
    failures = []

    def work(first):
        try:
            for number in range(first, first + 15):
                entry = cache.put(new_entry(number))
                for match in cache.search(random_vector(number), EMBEDDER, SPACE):
                    with suppress(EntryMissing):  # evicted by another thread
                        assert_is_entry(match.entry.settings["number"], cache.load(match.entry.id))
                cache.record_hit(entry.id, 1.0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert cache.stats().hits == 60
    assert blob_bytes(root) == cache.stats().bytes <= 150_000
