"""What a cache promises when nothing goes wrong."""

from __future__ import annotations

import inspect
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

from chorus.cache import Cache, CacheUnavailable, EntryMissing, EntryTooLarge, LocalCache, VectorLengthMismatch

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector, unit

ELSEWHERE = replace(SPACE, weights="weights-b")


def files(root):
    return {path for path in root.rglob("*") if path.is_file()}


def blob_bytes(root):
    return sum(path.stat().st_size for path in files(root) if "sqlite" not in path.name)


def test_local_cache_is_a_cache():
    promised = {name: f for name, f in vars(Cache).items() if inspect.isfunction(f) and name[0] != "_"}
    for name, function in promised.items():
        if name != "__init__":
            assert inspect.signature(getattr(LocalCache, name)) == inspect.signature(function), name


def test_an_entry_comes_back_bit_by_bit(cache):
    new = new_entry(1, parent="abc", is_source=False, settings={"seed": 2**63, "name": "日本"})
    entry = cache.put(new)
    for name in (
        "space",
        "request",
        "prompt",
        "embedder",
        "sigmas",
        "settings",
        "seconds",
        "is_source",
        "parent",
    ):
        assert getattr(entry, name) == getattr(new, name)
    assert entry.tensor_names == ("checkpoint/0.937500", "final")
    assert cache.get(entry.id) == entry
    assert_is_entry(1, cache.load(entry.id))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.empty(0, 3),
        torch.randn(4, 6)[:, ::2],
        torch.randn(3).expand(5, 3),
        torch.tensor([float("nan"), float("-inf"), -0.0]),
        torch.arange(5, dtype=torch.uint8),
        torch.randn(3, requires_grad=True),
        torch.randn(8).to(torch.float8_e4m3fn),
    ],
    ids=["scalar", "empty", "strided", "expanded", "not finite", "uint8", "with gradient", "float8"],
)
def test_any_tensor_comes_back(cache, tensor):
    loaded = cache.load(cache.put(new_entry(1, tensors={"one": tensor, "again": tensor})).id)
    for name in ("one", "again"):
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert (
            loaded[name].untyped_storage().tolist()
            == tensor.detach().clone(memory_format=torch.contiguous_format).untyped_storage().tolist()
        )


def test_loaded_tensors_belong_to_the_caller(cache):
    entry = cache.put(new_entry(1))
    first = cache.load(entry.id, ["final"])
    assert list(first) == ["final"]
    assert first["final"].untyped_storage().nbytes() == first["final"].nbytes
    first["final"].zero_()
    assert_is_entry(1, cache.load(entry.id))


def test_a_tensor_that_cannot_be_stored_is_named_and_leaves_nothing(cache, root):
    with pytest.raises(ValueError, match="'sparse'"):
        cache.put(new_entry(1, tensors={"sparse": torch.eye(3).to_sparse()}))
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


def test_search_finds_the_nearest_sources_of_its_space(cache):
    vectors = {
        "same": unit([1, 0, 0]),
        "near": unit([1, 0.2, 0]),
        "far": unit([0, 1, 0]),
        "opposite": unit([-1, 0, 0]),
    }
    for name, vector in vectors.items():
        cache.put(new_entry(1, vector=vector, prompt=name))
    matches = cache.search(unit([1, 0, 0]), EMBEDDER, SPACE, k=4)
    assert [match.entry.prompt for match in matches] == ["same", "near", "far", "opposite"]
    assert [match.score for match in matches] == pytest.approx([1, 0.98058, 0, -1], abs=1e-5)
    assert [match.entry.prompt for match in cache.search(unit([1, 0, 0]), EMBEDDER, SPACE, k=1)] == ["same"]


def test_other_spaces_embedders_and_hits_are_not_searched(cache):
    vector = unit([1, 0])
    cache.put(new_entry(1, vector=vector, space=ELSEWHERE))
    cache.put(new_entry(2, vector=vector, embedder="another"))
    cache.put(new_entry(3, vector=vector, is_source=False))
    assert cache.search(vector, EMBEDDER, SPACE) == []
    assert cache.find_request("request-3").is_source is False


def test_equal_scores_come_newest_first(cache):
    made = [cache.put(new_entry(n, vector=random_vector(7))) for n in range(40)]
    cache.forget(made.pop(20).id)  # the gap is filled with another row
    matches = cache.search(random_vector(7), EMBEDDER, SPACE, k=5)
    assert [match.entry.id for match in matches] == [entry.id for entry in reversed(made[-5:])]


def test_elsewhere_finds_only_what_a_search_may_not(cache):
    vector = unit([1, 0])
    cache.put(new_entry(1, vector=vector))
    cache.put(new_entry(2, vector=vector, embedder="another", space=ELSEWHERE))
    assert cache.search_elsewhere(vector, EMBEDDER, SPACE) == []
    there = cache.put(new_entry(3, vector=unit([1, 1]), space=ELSEWHERE))
    (match,) = cache.search_elsewhere(vector, EMBEDDER, SPACE)
    assert match.entry.id == there.id
    assert SPACE.differences(match.entry.space) == ("other weights",)


def test_vectors_of_another_length_need_another_embedder(cache, root):
    cache.put(new_entry(1, vector=unit([1, 0])))
    with pytest.raises(VectorLengthMismatch, match="have 2 numbers, this one has 3"):
        cache.put(new_entry(2, vector=unit([1, 0, 0])))
    with pytest.raises(VectorLengthMismatch, match="another name"):
        cache.search(unit([1, 0, 0]), EMBEDDER, SPACE)
    assert cache.stats().bytes == blob_bytes(root)


def test_the_newest_entry_of_a_request_is_found(cache):
    assert cache.find_request("same") is None
    cache.put(new_entry(1, request="same"))
    newest = cache.put(new_entry(2, request="same"))
    cache.put(new_entry(3))
    assert cache.find_request("same") == newest


def test_version_changes_with_what_can_be_found_and_not_with_hits(cache):
    versions = [cache.version()]
    entry = cache.put(new_entry(1))
    versions.append(cache.version())
    cache.record_hit(entry.id, 1.0)
    assert cache.version() == versions[-1]
    cache.forget(entry.id)
    versions.append(cache.version())
    cache.put(new_entry(2))
    versions.append(cache.version())
    cache.clear()
    versions.append(cache.version())
    assert len(set(versions)) == len(versions)


def test_hits_and_saved_time_are_counted_and_outlive_their_entry(cache, open_cache):
    entry = cache.put(new_entry(1))
    cache.record_hit(entry.id, 4.5)
    cache.record_hit(entry.id, 2.0)
    seen = cache.get(entry.id)
    assert seen.hits == 2
    assert seen.used > entry.used
    cache.forget(entry.id)
    stats = open_cache().stats()
    assert (stats.hits, stats.seconds_saved) == (2, 6.5)


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


def test_an_entry_that_can_never_fit_evicts_nothing(open_cache):
    cache = open_cache(max_bytes=20_000)
    entry = cache.put(new_entry(1))
    with pytest.raises(EntryTooLarge, match="20,000"):
        cache.put(new_entry(2, kilobytes=100))
    assert cache.entries() == [entry]


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


def test_changes_of_another_process_are_found(cache, open_cache):
    """Two caches on one folder share nothing in memory, like two processes."""
    other = open_cache()
    vector = random_vector(1)
    assert other.search(vector, EMBEDDER, SPACE) == []
    seen = other.version()
    entry, later = cache.put(new_entry(1)), cache.put(new_entry(2))
    assert other.version() != seen
    assert other.search(vector, EMBEDDER, SPACE)[0].entry == entry
    cache.forget(entry.id)
    assert [match.entry for match in other.search(vector, EMBEDDER, SPACE)] == [later]
    cache.clear()
    assert other.search(vector, EMBEDDER, SPACE) == []


def test_a_reader_that_lags_behind_the_kept_history_starts_over(cache, open_cache, monkeypatch):
    for module in ("index", "transaction"):
        monkeypatch.setattr(sys.modules[f"chorus.cache.{module}"], "HISTORY", 3)
    other = open_cache()
    made = [cache.put(new_entry(n, vector=random_vector(1))) for n in range(6)]
    assert len(other.search(random_vector(1), EMBEDDER, SPACE, k=9)) == 6
    for entry in made[:5]:
        cache.forget(entry.id)
    assert [match.entry for match in other.search(random_vector(1), EMBEDDER, SPACE, k=9)] == [made[5]]


def test_leftovers_are_swept_after_an_hour_and_not_before(cache, open_cache, root):
    entry = cache.put(new_entry(1))
    partial = root / "partial" / ("0" * 32)
    orphan = root / "blobs" / "11" / f"{'1' * 32}.safetensors"
    orphan.parent.mkdir(exist_ok=True)
    leftovers = [partial, orphan]
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
