"""What every cache promises, wherever it keeps its entries."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from chorus.cache import (
    Cache,
    CacheUnavailable,
    EntryMissing,
    EntryTooLarge,
    LocalCache,
    Query,
    VectorLengthMismatch,
    WriteBehind,
    every,
)
from chorus.cache.shared import Settings, SharedCache

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector, unit

ELSEWHERE = replace(SPACE, weights="weights-b")


@pytest.fixture(params=["local", "shared, folder", "shared, S3"])
def open_cache(request, tmp_path, monkeypatch) -> Iterator[Callable[..., Cache]]:
    """`open_cache(max_bytes=…)`: the same cache again, as another process would open it."""
    opened: list[Cache] = []
    if request.param == "local":

        def open_local(**options) -> Cache:
            opened.append(LocalCache(tmp_path / "cache", **options))
            return opened[-1]

        yield open_local
        for cache in opened:
            cache.close()
        return
    postgres = request.getfixturevalue("postgres")
    tenant = f"t{uuid.uuid4().hex[:12]}"
    if request.param == "shared, S3":
        s3_server = request.getfixturevalue("s3_server")
        for name, value in s3_server.environment().items():
            monkeypatch.setenv(name, value)
        blobs = f"s3://{s3_server.bucket}/contract"
    else:
        blobs = (tmp_path / "share").as_uri()
        (tmp_path / "share").mkdir()

    def open_one(**options) -> Cache:
        tier = tmp_path / f"machine-{len(opened)}"
        opened.append(SharedCache(Settings(postgres.url(), blobs, tenant), "default", tier=tier, **options))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache) -> Cache:
    return open_cache()


@pytest.mark.parametrize("kind", [LocalCache, SharedCache, WriteBehind])
def test_it_has_the_methods_of_a_cache(kind):
    promised = {name: f for name, f in vars(Cache).items() if inspect.isfunction(f) and name[0] != "_"}
    for name, function in promised.items():
        assert inspect.signature(getattr(kind, name)) == inspect.signature(function), name


# -- entries


def test_an_entry_comes_back_bit_by_bit(cache, open_cache):
    new = new_entry(1, parent="abc", is_source=False, settings={"seed": 2**63, "name": "日本"})
    entry = cache.put(new)
    for name in ("space", "request", "prompt", "embedder", "sigmas", "settings", "seconds", "is_source", "parent"):
        assert getattr(entry, name) == getattr(new, name)
    assert entry.tensor_names == ("checkpoint/0.937500", "final", "tokens")
    for one in (cache, open_cache()):
        assert one.get(entry.id) == entry
        assert_is_entry(1, one.load(entry.id))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("tokens", torch.empty(0, 3)),
        ("checkpoint/0.937500", torch.randn(1, 4, 2, 4, 8)[..., ::2]),
        ("checkpoint/0.500000", torch.randn(SPACE.shape).half()),
        ("checkpoint/0.000001", torch.full(SPACE.shape, -0.0, dtype=torch.bfloat16)),
        ("preview", torch.arange(2 * 5 * 7 * 3, dtype=torch.uint8).reshape(2, 5, 7, 3)),
    ],
    ids=["empty", "strided", "half", "bfloat16", "uint8"],
)
def test_any_sound_tensor_comes_back(cache, open_cache, name, tensor):
    """The final latent shares its memory with the tensor where their shapes agree."""
    final = tensor if tensor.shape == SPACE.shape else torch.ones(SPACE.shape)
    entry = cache.put(new_entry(1, tensors={"final": final, name: tensor}))
    loaded = open_cache().load(entry.id)
    for back, given in ((loaded["final"], final), (loaded[name], tensor)):
        assert (back.dtype, back.shape) == (given.dtype, given.shape)
        assert torch.equal(
            back.reshape(-1).contiguous().view(torch.uint8), given.contiguous().reshape(-1).view(torch.uint8)
        )


def test_loaded_tensors_belong_to_the_caller(cache):
    entry = cache.put(new_entry(1))
    first = cache.load(entry.id, ["final"])
    assert list(first) == ["final"]
    first["final"].zero_()
    assert_is_entry(1, cache.load(entry.id))


def test_an_id_can_be_chosen_once(cache):
    chosen = "0123456789abcdef" * 2
    assert cache.put(new_entry(1), entry_id=chosen).id == chosen
    with pytest.raises(ValueError, match=chosen):
        cache.put(new_entry(2), entry_id=chosen)
    for bad in ("ABCDEF" * 6, "../../../../etc/passwd", "", "0" * 31):
        with pytest.raises(ValueError, match="id"):
            cache.put(new_entry(2), entry_id=bad)
    assert_is_entry(1, cache.load(chosen))
    assert cache.count() == 1


def test_a_tensor_that_cannot_be_stored_is_named_and_leaves_nothing(cache):
    with pytest.raises(ValueError, match="'final'"):
        cache.put(new_entry(1, tensors={"final": torch.ones(SPACE.shape).to_sparse()}))
    for name, tensor in (("final", torch.full(SPACE.shape, float("nan"))), ("words", torch.ones(3))):
        with pytest.raises(ValueError, match=name):
            cache.put(new_entry(1, tensors={"final": torch.ones(SPACE.shape), name: tensor}))
    assert cache.stats().bytes == 0


def test_what_is_not_there_is_missing(cache):
    entry = cache.put(new_entry(1))
    with pytest.raises(EntryMissing, match="no tensor preview"):
        cache.load(entry.id, ["preview"])
    for nothing in ("0" * 32, "", "../x", "\x00", "'; DROP TABLE entries; --"):
        assert cache.get(nothing) is None
        with pytest.raises(EntryMissing):
            cache.load(nothing)
        with pytest.raises(EntryMissing):
            cache.pin(nothing)
        cache.forget(nothing)
        cache.record_hit(nothing, 0.0)
    assert_is_entry(1, cache.load(entry.id))


@pytest.mark.parametrize(
    "words",
    ["'; DROP SCHEMA chorus CASCADE; --", "100 % %s %(x)s {}", "\\", '"', "null \x00 byte", "half \ud83d", "日本 ß"],
    ids=["sql", "percent", "backslash", "quote", "nul", "surrogate", "unicode"],
)
def test_any_text_is_kept_and_found(cache, words):
    name = words if words.isprintable() else "a name"  # what entries are found by is a name, not what people type
    entry = cache.put(new_entry(1, prompt=words, request=name, embedder=name, space=replace(SPACE, weights=name)))
    cache.put(new_entry(2))
    assert cache.find_request(name) == entry
    assert [match.entry for match in cache.search(random_vector(1), name, entry.space)] == [entry]
    assert cache.entries(query=Query(words=words.upper())) == [entry]
    assert cache.entries(query=Query(weights=name)) == [entry]
    assert name in {model.weights for model in cache.stats().models}


# -- files that come and go


def test_a_file_goes_from_one_cache_to_another_byte_by_byte(cache, open_cache, tmp_path):
    entry = cache.put(new_entry(1))
    content = cache.file(entry.id)
    assert len(content) == entry.bytes
    cache.forget(entry.id)
    with pytest.raises(EntryMissing):
        cache.file(entry.id)
    with closing(LocalCache(tmp_path / "elsewhere")) as elsewhere:
        assert elsewhere.adopt(entry.id, content).created == entry.created
        assert elsewhere.file(entry.id) == content
    taken = cache.adopt(entry.id, content)  # the id is free again
    for one in (cache, open_cache()):
        assert one.get(entry.id) == taken
        assert one.file(entry.id) == content
        assert_is_entry(1, one.load(entry.id))
        assert [match.entry for match in one.search(random_vector(1), EMBEDDER, SPACE)] == [taken]
    assert cache.stats().bytes == len(content)


def test_a_file_is_not_adopted_for_an_entry_that_is_there(cache):
    entry = cache.put(new_entry(1))
    content = cache.file(entry.id)
    with pytest.raises(ValueError, match=entry.id):
        cache.adopt(entry.id, content)
    assert cache.get(entry.id) == entry
    assert_is_entry(1, cache.load(entry.id))


@pytest.mark.parametrize("entry_id", ["0" * 32, "../../../../etc/passwd", "ABCDEF" * 6, ""])
def test_a_file_is_adopted_under_its_own_id_only(cache, entry_id):
    content = cache.file(cache.put(new_entry(1)).id)
    cache.clear()
    with pytest.raises(ValueError, match=r"id|another entry"):
        cache.adopt(entry_id, content)
    assert cache.stats().bytes == cache.count() == 0


def test_a_damaged_file_is_not_adopted_and_takes_no_room(cache):
    entry = cache.put(new_entry(1))
    content = cache.file(entry.id)
    cache.clear()
    for place in (0, len(content) // 2, len(content) - 1):
        broken = bytearray(content)
        broken[place] ^= 1
        with pytest.raises(ValueError, match="no sound entry"):
            cache.adopt(entry.id, bytes(broken))
    for short in (b"", content[:7], content[:-1]):
        with pytest.raises(ValueError, match="no sound entry"):
            cache.adopt(entry.id, short)
    assert cache.stats().bytes == cache.count() == 0
    assert_is_entry(1, cache.load(cache.adopt(entry.id, content).id))


def test_an_adopted_file_keeps_to_the_limits(cache, open_cache):
    entries = [cache.put(new_entry(number, kilobytes=4 if number else 100)) for number in range(3)]
    large, first, second = ((entry.id, cache.file(entry.id)) for entry in entries)
    cache.clear()
    cache = open_cache(max_bytes=int(1.5 * len(first[1])))
    cache.adopt(*first)
    with pytest.raises(EntryTooLarge):
        cache.adopt(*large)
    assert cache.adopt(*second).id == second[0]
    assert [entry.id for entry in every(cache)] == [second[0]]
    cache.pin(second[0])
    with pytest.raises(CacheUnavailable, match="pinned"):
        cache.adopt(*first)
    assert cache.stats().bytes == len(second[1])


def test_a_file_with_a_vector_of_another_length_is_not_adopted(cache):
    entry = cache.put(new_entry(1, vector=unit([1, 0])))
    content = cache.file(entry.id)
    cache.clear()
    cache.put(new_entry(2, vector=unit([1, 0, 0])))
    with pytest.raises(VectorLengthMismatch):
        cache.adopt(entry.id, content)
    assert cache.count() == 1


# -- finding


def test_search_finds_the_nearest_sources_of_its_space(cache):
    vectors = {"same": [1, 0, 0], "near": [1, 0.2, 0], "far": [0, 1, 0], "opposite": [-1, 0, 0]}
    for name, vector in vectors.items():
        cache.put(new_entry(1, vector=unit(vector), prompt=name))
    matches = cache.search(unit([1, 0, 0]), EMBEDDER, SPACE, k=4)
    assert [match.entry.prompt for match in matches] == ["same", "near", "far", "opposite"]
    assert [match.score for match in matches] == pytest.approx([1, 0.98058, 0, -1], abs=1e-5)
    assert [match.entry.prompt for match in cache.search(unit([1, 0, 0]), EMBEDDER, SPACE, k=1)] == ["same"]
    assert cache.search(unit([1, 0, 0]), EMBEDDER, SPACE, k=0) == []


def test_scores_are_those_of_float64(cache):
    numbers = range(12)
    for number in numbers:
        cache.put(new_entry(number, vector=random_vector(number, 700)))
    query = random_vector(99, 700)
    expected = sorted((float(random_vector(n, 700).astype(float) @ query.astype(float)) for n in numbers), reverse=True)
    assert [match.score for match in cache.search(query, EMBEDDER, SPACE, k=12)] == pytest.approx(expected, abs=1e-12)


def test_other_spaces_embedders_and_hits_are_not_searched(cache):
    vector = unit([1, 0])
    cache.put(new_entry(1, vector=vector, space=ELSEWHERE))
    cache.put(new_entry(2, vector=vector, embedder="another"))
    cache.put(new_entry(3, vector=vector, is_source=False))
    assert cache.search(vector, EMBEDDER, SPACE) == []
    assert cache.find_request("request-3").is_source is False


def test_equal_scores_come_newest_first(cache):
    made = [cache.put(new_entry(n, vector=random_vector(7))) for n in range(40)]
    cache.forget(made.pop(20).id)
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
    assert [str(one) for one in SPACE.differences(match.entry.space)] == ["other weights"]


def test_vectors_of_another_length_need_another_embedder(cache):
    kept = cache.put(new_entry(1, vector=unit([1, 0])))
    with pytest.raises(VectorLengthMismatch, match="have 2 numbers, this one has 3"):
        cache.put(new_entry(2, vector=unit([1, 0, 0])))
    with pytest.raises(VectorLengthMismatch, match="another name"):
        cache.search(unit([1, 0, 0]), EMBEDDER, SPACE)
    assert cache.stats().bytes == kept.bytes
    cache.clear()
    cache.put(new_entry(2, vector=unit([1, 0, 0])))


@pytest.mark.parametrize(
    "vector",
    [np.ones(3, np.float32), np.ones((1, 1), np.float32), np.ones(1), np.full(2, np.nan, np.float32)],
    ids=["norm", "two dimensions", "float64", "not a number"],
)
def test_a_vector_that_is_none_is_refused(cache, vector):
    with pytest.raises(ValueError, match="prompt vector"):
        cache.search(vector, EMBEDDER, SPACE)


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


def test_changes_of_another_process_are_found(cache, open_cache):
    other = open_cache()
    vector = random_vector(1)
    assert other.search(vector, EMBEDDER, SPACE) == []
    entry, later = cache.put(new_entry(1)), cache.put(new_entry(2))
    assert other.search(vector, EMBEDDER, SPACE)[0].entry == entry
    cache.forget(entry.id)
    assert [match.entry for match in other.search(vector, EMBEDDER, SPACE)] == [later]
    with pytest.raises(EntryMissing):
        other.load(entry.id)
    cache.clear()
    assert other.search(vector, EMBEDDER, SPACE) == []


# -- listing and statistics


def test_entries_are_listed_as_asked(cache):
    made = [
        cache.put(new_entry(0, prompt="A Red Fox", parent="p" * 32, is_source=False)),
        cache.put(new_entry(1, prompt="a red ball", kilobytes=9)),
        cache.put(new_entry(2, prompt="a blue ball", space=ELSEWHERE)),
        cache.put(new_entry(3, prompt="a STRASSE", space=replace(SPACE, shape=(1, 4, 4, 4, 4)))),
    ]
    cache.record_hit(made[1].id, 5.0)
    cache.record_hit(made[2].id, 2.0)
    cache.record_hit(made[2].id, 2.0)
    cache.pin(made[3].id)
    now = time.time() + 60

    def answer(**query):
        found = cache.entries(query=Query(**query))
        assert cache.count(Query(**query)) == len(found)
        return [entry.settings["number"] for entry in found]

    assert answer() == [3, 2, 1, 0]
    assert answer(sort="oldest") == [0, 1, 2, 3]
    assert answer(sort="used")[:2] == [2, 1]
    assert answer(sort="hits") == [2, 1, 3, 0]
    assert answer(sort="saved") == [1, 2, 3, 0]
    assert answer(sort="bytes")[0] == 1
    assert answer(words="red") == [1, 0]
    assert answer(words="straße") == [3]
    assert answer(words="red", source=True) == [1]
    assert answer(weights="weights-b") == answer(weights="weights-b"[:9]) == [2]
    assert answer(shape=(1, 4, 4, 4, 4)) == [3]
    assert answer(source=False) == answer(parent="p" * 32) == [0]
    assert answer(pinned=True) == [3]
    assert answer(pinned=False) == [2, 1, 0]
    assert answer(created_before=now) == answer(created_after=made[0].created - 1) == [3, 2, 1, 0]
    assert answer(created_after=now) == answer(created_before=made[0].created - 1) == []
    assert answer(unused_since=now) == [3, 2, 1, 0]
    assert [entry.settings["number"] for entry in cache.entries(limit=2, offset=1)] == [2, 1]


def test_hits_and_saved_time_are_counted_and_outlive_their_entry(cache, open_cache):
    entry = cache.put(new_entry(1))
    cache.record_hit(entry.id, 4.5)
    cache.record_hit(entry.id, 2.0)
    seen = cache.get(entry.id)
    assert (seen.hits, seen.saved) == (2, 6.5)
    assert seen.used > entry.used
    (model,) = cache.stats().models
    assert (model.weights, model.latent_format, model.entries) == (SPACE.weights, SPACE.latent_format, 1)
    assert (model.bytes, model.hits, model.seconds_saved) == (entry.bytes, 2, 6.5)
    cache.forget(entry.id)
    stats = open_cache().stats()
    assert (stats.hits, stats.seconds_saved, stats.models) == (2, 6.5, ())
    ((day, hits, seconds),) = stats.days
    assert (day, hits, seconds) == (time.strftime("%Y-%m-%d", time.gmtime()), 2, 6.5)


# -- limits and deleting


def test_the_limit_holds_and_the_least_recently_used_go(cache, open_cache):
    size = cache.put(new_entry(0)).bytes
    cache.clear()
    cache = open_cache(max_bytes=int(3.5 * size))
    a, b, c = (cache.put(new_entry(n)) for n in (1, 2, 3))
    cache.record_hit(a.id, 1.0)
    d = cache.put(new_entry(4))
    assert {entry.id for entry in cache.entries()} == {a.id, c.id, d.id}
    assert b.id not in {match.entry.id for match in cache.search(random_vector(2), EMBEDDER, SPACE, k=9)}
    with pytest.raises(EntryMissing):
        cache.load(b.id)
    assert cache.stats().bytes == 3 * size <= cache.stats().max_bytes


def test_pinned_entries_stay_and_count(cache, open_cache):
    size = cache.put(new_entry(0)).bytes
    cache.clear()
    cache = open_cache(max_bytes=int(2.5 * size))
    kept = cache.put(new_entry(1))
    cache.pin(kept.id)
    assert cache.get(kept.id).pinned
    for number in (2, 3, 4):
        last = cache.put(new_entry(number))
    assert {entry.id for entry in cache.entries()} == {kept.id, last.id}
    assert cache.stats().pinned_bytes == size
    cache.pin(last.id)
    with pytest.raises(CacheUnavailable, match="pinned"):
        cache.put(new_entry(5))
    assert cache.stats().bytes == 2 * size
    cache.pin(kept.id, False)
    newest = cache.put(new_entry(6))
    assert {entry.id for entry in cache.entries()} == {newest.id, last.id}


def test_an_entry_that_can_never_fit_evicts_nothing(open_cache):
    cache = open_cache(max_bytes=20_000)
    entry = cache.put(new_entry(1))
    with pytest.raises(EntryTooLarge, match="20,000"):
        cache.put(new_entry(2, kilobytes=100))
    assert cache.entries() == [entry]


def test_a_lowered_limit_holds_from_the_start(open_cache):
    first = open_cache()
    for number in range(6):
        first.put(new_entry(number))
    limit = first.stats().bytes // 2
    stats = open_cache(max_bytes=limit).stats()
    assert (stats.entries, stats.max_bytes) == (3, limit)


def test_forgotten_entries_are_gone(cache):
    entry, kept = cache.put(new_entry(1)), cache.put(new_entry(2))
    cache.forget(entry.id)
    cache.forget(entry.id)
    assert cache.get(entry.id) is None
    with pytest.raises(EntryMissing):
        cache.load(entry.id)
    assert cache.stats().bytes == kept.bytes


def test_clear_leaves_nothing(cache):
    for number in range(3):
        cache.put(new_entry(number))
    assert cache.clear() == 3
    assert cache.stats().bytes == cache.stats().entries == cache.count() == 0
    assert cache.search(random_vector(1), EMBEDDER, SPACE) == []
    assert_is_entry(4, cache.load(cache.put(new_entry(4)).id))


def test_a_closed_cache_is_unavailable(cache):
    cache.put(new_entry(1))
    cache.close()
    with pytest.raises(CacheUnavailable, match="closed"):
        cache.version()
