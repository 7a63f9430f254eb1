"""Files damaged, lost, left behind, in the wrong place; and the copies on this machine."""

from __future__ import annotations

import os
import threading
import time
import uuid

import pytest

from chorus.cache import CacheUnavailable, EntryDamaged, EntryMissing, LocalCache
from chorus.cache.shared.tier import LocalTier

from ..cache.sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector
from .conftest import stored_files


def file_of(entry, share):
    (path,) = share.glob(f"*/??/{entry.id}.safetensors")
    return path


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_file_has_the_bytes_of_a_local_one(cache, share, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    entry = cache.put(new_entry(1), entry_id="f" * 32)
    content = file_of(entry, share).read_bytes()
    assert len(content) == entry.bytes
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID("f" * 32))
    local = LocalCache(tmp_path / "local")
    local.put(new_entry(1))
    (path,) = (tmp_path / "local" / "blobs").rglob("*.safetensors")
    assert path.read_bytes() == content
    local.close()


@pytest.mark.parametrize("at", [0, 20, -1], ids=["length", "header", "tensors"])
def test_a_damaged_file_is_quarantined_and_never_served(open_cache, share, at):
    cache, reader = open_cache(), open_cache()
    entry, sound = cache.put(new_entry(1)), cache.put(new_entry(2))
    flip(file_of(entry, share), at)
    with pytest.raises(EntryDamaged, match=entry.id):
        reader.load(entry.id)
    assert [match.entry for match in cache.search(random_vector(1), EMBEDDER, SPACE)] == [sound]
    assert cache.get(entry.id) is cache.find_request("request-1") is None
    with pytest.raises(EntryMissing):
        cache.load(entry.id)  # from its own sound copy neither: the row is out of use
    # It counts, and goes first.
    assert cache.stats().bytes == 2 * entry.bytes
    assert cache.count() == 1
    tight = open_cache(max_bytes=int(2.5 * entry.bytes))
    tight.put(new_entry(3))
    assert set(stored_files(share)) == {one.id for one in tight.entries()}
    assert tight.count() == 2


def test_a_file_cut_short_is_damaged(open_cache, share):
    entry = open_cache().put(new_entry(1))
    os.truncate(file_of(entry, share), 100)
    with pytest.raises(EntryDamaged):
        open_cache().load(entry.id)


def test_a_file_in_the_place_of_another_is_damaged(open_cache, share):
    cache = open_cache()
    one, other = cache.put(new_entry(1)), cache.put(new_entry(2))
    file_of(one, share).write_bytes(file_of(other, share).read_bytes())
    with pytest.raises(EntryDamaged):
        open_cache().load(one.id)


@pytest.mark.parametrize(
    "change",
    ["record = replace(record, 'red', 'blue')", "digest = repeat('0', 64)", "space = repeat('0', 64)", "request = 'x'"],
)
def test_a_damaged_row_is_never_served(open_cache, db, tenant, change):
    cache = open_cache()
    entry = cache.put(new_entry(1))
    db.execute(f"UPDATE chorus.entries SET {change} WHERE tenant = %s", (tenant,))
    assert cache.search(random_vector(1), EMBEDDER, SPACE) == []
    assert cache.get(entry.id) is None
    with pytest.raises(EntryMissing):
        cache.load(entry.id)
    assert cache.entries() == []


def test_a_damaged_vector_is_never_scored(cache, db, tenant):
    cache.put(new_entry(1))
    other = "[" + ",".join(map(str, random_vector(2).tolist())) + "]"
    db.execute("UPDATE chorus.vectors SET vector = %s WHERE tenant = %s", (other, tenant))
    assert cache.search(random_vector(2), EMBEDDER, SPACE) == []
    assert cache.count() == 0


def test_a_lost_file_is_missing_and_its_row_goes(open_cache, share):
    entry = open_cache().put(new_entry(1))
    file_of(entry, share).unlink()
    reader = open_cache()
    with pytest.raises(EntryMissing, match="is gone"):
        reader.load(entry.id)
    assert reader.stats().entries == reader.stats().bytes == 0


def test_a_share_that_is_not_mounted_costs_no_entry(open_cache, share):
    cache, reader = open_cache(), open_cache()
    entry = cache.put(new_entry(1))
    assert reader.get(entry.id) == entry
    mounted = share.rename(share.with_name("elsewhere"))
    share.mkdir()  # the empty mount point
    for one in (reader, open_cache()):
        with pytest.raises(CacheUnavailable, match="is not where the files"):
            one.load(entry.id)
    share.rmdir()
    mounted.rename(share)
    assert_is_entry(1, reader.load(entry.id))


def test_a_location_of_another_database_is_refused(open_cache, share, postgres, tenant):
    entry = open_cache().put(new_entry(1))
    postgres.execute(f"CREATE DATABASE db_{tenant}")
    try:
        other = open_cache(url=postgres.url(f"db_{tenant}"))
        for _ in range(2):
            with pytest.raises(CacheUnavailable, match="is not where the files"):
                other.put(new_entry(2))
        other.close()
    finally:
        postgres.execute(f"DROP DATABASE db_{tenant} WITH (FORCE)")
    assert set(stored_files(share)) == {entry.id}


def test_a_bucket_that_is_not_there_is_a_message(open_cache, s3_environment):
    cache = open_cache(blobs="s3://no-such-bucket/at-all")
    with pytest.raises(CacheUnavailable, match="s3://no-such-bucket"):
        cache.put(new_entry(1))


def test_a_share_lost_in_the_middle_is_a_message(open_cache, share):
    cache = open_cache()
    cache.version()
    mounted = share.rename(share.with_name("elsewhere"))
    share.write_text("in the way")
    with pytest.raises(CacheUnavailable):
        cache.put(new_entry(1))
    share.unlink()
    mounted.rename(share)
    assert cache.stats().bytes == 0


def test_what_is_forgotten_is_in_no_file_and_no_row(open_cache, share, tmp_path, db):
    cache, other = open_cache(), open_cache()
    entry = cache.put(new_entry(1, prompt="the lighthouse keeper's secret"))
    other.load(entry.id)
    tiers = [cache._tier.root, other._tier.root]
    places = [share, *tiers]
    assert all(any(b"lighthouse" in path.read_bytes() for path in place.rglob("*.*")) for place in places)
    cache.forget(entry.id)
    other.sweep()  # runs by itself every minute
    assert not any(b"lighthouse" in p.read_bytes() for place in places for p in place.rglob("*") if p.is_file())
    for table in ("entries", "vectors", "garbage", "reservations"):
        assert "lighthouse" not in str(db.execute(f"SELECT * FROM chorus.{table}").fetchall())


def test_a_file_that_could_not_be_deleted_counts_until_it_is(open_cache, share, monkeypatch):
    cache = open_cache(max_bytes=12_000)
    entry = cache.put(new_entry(1))

    def fail(ids):
        raise CacheUnavailable("store", "it is away", "")

    with monkeypatch.context() as patch:
        patch.setattr(cache._objects, "remove", fail)
        with pytest.raises(CacheUnavailable):
            cache.forget(entry.id)
        assert cache.get(entry.id) is None
        cache.put(new_entry(2))  # beside the file that is still there
        with pytest.raises(CacheUnavailable):
            cache.put(new_entry(3))  # the second of the limit's two
    assert sum(stored_files(share).values()) <= 12_000
    cache.sweep()
    assert set(stored_files(share)) == {one.id for one in cache.entries()}
    cache.put(new_entry(4))


def test_the_limit_holds_while_another_worker_is_deleting(open_cache, share, monkeypatch):
    """What it evicted counts until it is gone; who needs the room helps to delete it."""
    limit = 2_000_000
    slow, quick = open_cache(max_bytes=limit), open_cache()
    large = slow.put(new_entry(1, kilobytes=1750))
    assert quick.count() == 1  # its first use also tidies up
    deleting, go_on = threading.Event(), threading.Event()
    remove = slow._objects.remove

    def stalled(ids):
        deleting.set()
        go_on.wait(30)
        remove(ids)

    with monkeypatch.context() as patch:
        patch.setattr(slow._objects, "remove", stalled)
        thread = threading.Thread(target=slow.put, args=(new_entry(2, kilobytes=300),))
        thread.start()
        assert deleting.wait(30)
        most = 0
        for number in range(3, 8):
            quick.put(new_entry(number, kilobytes=300))
            most = max(most, sum(stored_files(share).values()))
        assert large.id not in stored_files(share)
        go_on.set()
        thread.join()
    assert most <= limit
    assert sum(stored_files(share).values()) == slow.stats().bytes <= limit
    assert slow.find_request("request-2") is not None


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_copy_that_is_no_file_is_fetched_again_and_keeps_nobody_waiting(open_cache, share):
    cache = open_cache()
    entry = cache.put(new_entry(1))
    (copy,) = cache._tier.root.rglob("*.safetensors")
    copy.unlink()
    os.mkfifo(copy)
    thread = threading.Thread(target=cache.load, args=(entry.id,), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert_is_entry(1, cache.load(entry.id))
    assert copy.is_file()


def test_leftovers_of_dead_writers_are_swept(open_cache, share, monkeypatch, db, tenant):
    cache = open_cache()
    kept = cache.put(new_entry(1))
    folder = share / tenant / "11"
    folder.mkdir()
    old, young, partial = (folder / name for name in (f"{'1' * 32}.safetensors", f"11{'2' * 30}.safetensors", "x#1"))
    for path in (old, young, partial):
        path.write_bytes(b"unfinished")
    day_ago = time.time() - 86_400
    for path in (old, partial, file_of(kept, share)):
        os.utime(path, (day_ago, day_ago))
    cache.sweep()
    assert old.exists()  # not every minute
    db.execute("UPDATE chorus.tenants SET swept = 0 WHERE tenant = %s", (tenant,))
    cache.sweep()
    assert (old.exists(), partial.exists(), young.exists()) == (False, False, True)
    assert_is_entry(1, open_cache().load(kept.id))


def test_the_upkeep_runs_by_itself(open_cache, monkeypatch):
    monkeypatch.setattr("chorus.cache.shared.cache.UPKEEP", 0.05)
    cache, other = open_cache(), open_cache(upkeep=True)
    entry = cache.put(new_entry(1))
    other.load(entry.id)
    assert other._tier.ids() == [entry.id]
    cache.forget(entry.id)
    deadline = time.monotonic() + 20
    while other._tier.ids() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert other._tier.ids() == []


# -- copies


def test_a_copy_saves_the_way_to_the_store(open_cache, share):
    entry = open_cache().put(new_entry(1))
    reader = open_cache()
    assert_is_entry(1, reader.load(entry.id))
    file_of(entry, share).unlink()
    assert_is_entry(1, reader.load(entry.id))
    assert list(reader.load(entry.id, ["final"])) == ["final"]


def test_a_damaged_copy_is_fetched_again(open_cache):
    cache = open_cache()
    entry = cache.put(new_entry(1))
    (copy,) = cache._tier.root.rglob("*.safetensors")
    for at in (0, 20, -1):
        flip(copy, at)
        assert_is_entry(1, cache.load(entry.id))
    assert_is_entry(1, cache.load(entry.id))
    assert cache.count() == 1


def test_a_tier_that_cannot_be_written_is_done_without(open_cache, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = open_cache(tier=tmp_path / "file" / "tier")
    entry = cache.put(new_entry(1))
    assert_is_entry(1, cache.load(entry.id))


def test_the_tier_keeps_its_limit_and_the_latest_read(tmp_path):
    tier = LocalTier(tmp_path / "tier", 350)
    ids = [f"{n:032x}" for n in range(5)]
    for entry_id in ids[:3]:
        tier.write(entry_id, b"x" * 100)
    past = time.time() - 60
    for path in tier.root.rglob("*.safetensors"):
        os.utime(path, (past, past))
    assert tier.read(ids[0]) == b"x" * 100
    tier.write(ids[3], b"y" * 200)
    assert set(tier.ids()) == {ids[0], ids[3]}
    tier.write(ids[4], b"z" * 400)  # larger than all of it
    assert tier.read(ids[4]) is None
    assert set(tier.ids()) == {ids[0], ids[3]}
    assert not list(tier.root.rglob("*.partial"))
