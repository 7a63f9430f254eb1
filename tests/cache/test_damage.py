"""What a cache promises when its files do not hold what was written: at worst a miss, with a message."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from chorus.cache import CacheError, CacheUnavailable, EntryDamaged, EntryMissing, LocalCache

from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector

FAR_APART = replace(SPACE, weights="weights-b")


def blob(root, entry):
    return root / "blobs" / entry.id[:2] / f"{entry.id}.safetensors"


def catalog(root):
    (path,) = root.glob("catalog-*.sqlite")
    return path


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def edit(root, *statements):
    db = sqlite3.connect(catalog(root))
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def assert_quarantined(cache, root, entry):
    assert cache.get(entry.id) is None
    assert cache.find_request(entry.request) is None
    assert cache.search(random_vector(entry.settings["number"]), EMBEDDER, SPACE) == []
    assert not blob(root, entry).exists()
    assert (root / "quarantine" / blob(root, entry).name).exists()
    with pytest.raises(EntryMissing):
        cache.load(entry.id)


@pytest.mark.parametrize("part", ["length", "header", "tensors", "last byte"])
def test_a_flipped_bit_in_a_file_is_never_loaded(cache, root, part):
    entry = cache.put(new_entry(1))
    size = entry.bytes
    flip(blob(root, entry), {"length": 1, "header": 100, "tensors": size // 2, "last byte": size - 1}[part])
    assert cache.search(random_vector(1), EMBEDDER, SPACE) != []
    with pytest.raises(EntryDamaged, match=entry.id):
        cache.load(entry.id, ["final"])
    assert_quarantined(cache, root, entry)


@pytest.mark.parametrize("length", [0, 5, 500, -1])
def test_a_truncated_file_is_never_loaded(cache, root, length):
    entry = cache.put(new_entry(1))
    path = blob(root, entry)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(EntryDamaged):
        cache.load(entry.id)
    assert_quarantined(cache, root, entry)


def test_another_entrys_file_is_not_taken_for_this_one(cache, root):
    entry, other = cache.put(new_entry(1)), cache.put(new_entry(2))
    shutil.copy(blob(root, other), blob(root, entry))
    with pytest.raises(EntryDamaged):
        cache.load(entry.id)
    assert_is_entry(2, cache.load(other.id))


def test_an_entry_without_its_file_is_missing_and_leaves_the_catalog(cache, root):
    entry = cache.put(new_entry(1))
    blob(root, entry).unlink()
    with pytest.raises(EntryMissing, match=r"\.safetensors is gone"):
        cache.load(entry.id)
    assert cache.stats().entries == 0
    assert cache.search(random_vector(1), EMBEDDER, SPACE) == []


@pytest.mark.parametrize(
    "change",
    [
        "record = replace(record, 'red ball', 'red bell')",
        "vector = zeroblob(length(vector))",
        "digest = replace(digest, substr(digest, 1, 1), 'x')",
        "is_source = 3",
        "bytes = bytes + 1",
        "checksum = ''",
        "hits = 'many'",
        "used = 9e999, hits = 9e999",
        "saved = 'much'",
    ],
)
def test_a_changed_row_is_quarantined_and_the_others_served(open_cache, root, change):
    cache = open_cache()
    entry, other = cache.put(new_entry(1)), cache.put(new_entry(2))
    cache.close()
    table = "listing" if change.startswith(("hits", "used", "saved")) else "entries"
    edit(root, f"UPDATE {table} SET {change} WHERE id = '{entry.id}'")

    cache = open_cache()
    assert cache.get(entry.id) is None
    assert [match.entry for match in cache.search(random_vector(1), EMBEDDER, SPACE)] == [other]
    assert cache.entries() == [other]
    assert_is_entry(2, cache.load(other.id))
    assert (root / "quarantine" / blob(root, entry).name).exists()


def test_quarantined_entries_make_room_first(open_cache, root):
    size = open_cache().put(new_entry(1)).bytes
    cache = open_cache(max_bytes=int(2.5 * size))
    old = cache.entries()[0]
    bad = cache.put(new_entry(2))
    flip(blob(root, bad), size // 2)
    with pytest.raises(EntryDamaged):
        cache.load(bad.id)
    assert cache.stats().bytes == old.bytes + bad.bytes
    new = cache.put(new_entry(3))
    assert {entry.id for entry in cache.entries()} == {old.id, new.id}
    assert list((root / "quarantine").iterdir()) == []


def test_a_row_that_claims_an_absurd_size_does_not_stop_the_cache(open_cache, root):
    cache = open_cache(max_bytes=100_000)
    good, bad = cache.put(new_entry(1)), cache.put(new_entry(2))
    edit(root, f"UPDATE listing SET bytes = {2**62} WHERE id = '{bad.id}'")
    new = cache.put(new_entry(3))
    assert {entry.id for entry in cache.entries()} == {good.id, new.id}


@pytest.mark.parametrize("damage", ["garbage", "deleted", "emptied", "other tables", "totals", "usage", "eviction"])
def test_a_lost_catalog_is_rebuilt_from_the_files(open_cache, root, damage):
    cache = open_cache()
    made = [cache.put(new_entry(n)) for n in range(3)]
    flip(blob(root, made[1]), 200)  # an entry whose own header cannot be trusted is left out
    cache.close()
    path = catalog(root)
    match damage:
        case "garbage":
            path.write_bytes(random.Random(0).randbytes(50_000))
        case "deleted":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "other tables":
            edit(root, "DROP INDEX requests")
        case table:
            edit(root, f"DELETE FROM {table}")

    cache = open_cache()
    assert cache.entries() == [made[2], made[0]]
    assert_is_entry(2, cache.load(made[2].id))
    assert cache.search(random_vector(0), EMBEDDER, SPACE)[0].entry == made[0]
    assert (root / "quarantine" / f"{made[1].id}.safetensors").exists()
    if damage not in ("deleted", "emptied"):
        assert (root / "quarantine" / path.name).exists()
        assert not path.exists()


def test_a_catalog_damaged_while_open_is_replaced_for_all_who_have_it_open(cache, open_cache, root):
    made = [cache.put(new_entry(n)) for n in range(30)]
    other = open_cache()
    cache._catalog.shrink_journal()  # so that the main file is what is read
    path = catalog(root)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + random.Random(0).randbytes(len(content) - 4096))
    with pytest.raises(CacheUnavailable, match=r"damaged.*rebuilt"):
        other.entries()
    assert other.entries() == made[::-1]
    assert cache.entries() == made[::-1]
    assert other.search(random_vector(5), EMBEDDER, SPACE)[0].entry == made[5]
    entry = other.put(new_entry(99))
    assert cache.find_request("request-99") == entry


def test_damage_that_sqlite_cannot_even_put_into_words_is_damage(open_cache, root):
    cache = open_cache()
    entry = cache.put(new_entry(1))
    cache.close()
    content = catalog(root).read_bytes()
    catalog(root).write_bytes(content.replace(b"CREATE TABLE tombstones", b"CREATE TABLE t\xc5mbstones"))
    assert open_cache().entries() == [entry]


def test_a_rebuild_keeps_the_order_and_can_be_asked_for(cache):
    made = [cache.put(new_entry(n, request="same")) for n in range(3)]
    version = cache.version()
    assert cache.rebuild() == 3
    assert cache.version() > version
    assert cache.find_request("same") == made[2]


def test_a_rebuilt_catalog_remembers_pins_and_hits(cache, open_cache, root):
    made = [cache.put(new_entry(n)) for n in range(3)]
    cache.pin(made[1].id)
    cache.record_hit(made[0].id, 4.0)
    before = cache.stats()
    entries = cache.entries()
    assert cache.rebuild() == 3
    assert cache.entries() == entries
    assert cache.stats() == before
    cache.close()
    edit(root, "DROP INDEX requests")
    again = open_cache()
    assert again.entries() == entries
    assert again.stats() == before
    assert catalog(root).name == "catalog-3.sqlite"


def test_what_a_damaged_catalog_still_tells_is_remembered(open_cache, root):
    cache = open_cache()
    made = [cache.put(new_entry(n)) for n in range(3)]
    for entry in made:
        cache.pin(entry.id)
        cache.record_hit(entry.id, 1.0)
    cache.close()
    edit(root, f"UPDATE listing SET hits = 'many' WHERE id = '{made[1].id}'", "DROP TABLE days")
    cache = open_cache()
    assert [(entry.hits, entry.pinned) for entry in cache.entries()] == [(1, True), (0, False), (1, True)]
    assert (cache.stats().hits, cache.stats().days) == (3, ())


@pytest.mark.parametrize(
    ("pragma", "message"),
    [("user_version = 99", "newer Chorus"), ("application_id = 7", "another program")],
)
def test_a_catalog_of_someone_else_is_refused_and_not_touched(open_cache, root, pragma, message):
    open_cache().close()
    edit(root, f"PRAGMA {pragma}")
    before = catalog(root).read_bytes()
    with pytest.raises(CacheUnavailable, match=message):
        open_cache()
    assert catalog(root).read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheUnavailable, match="folder"):
        LocalCache(tmp_path / "file" / "cache")


def test_a_locked_catalog_is_unavailable_in_time_and_still_read(open_cache, root):
    cache = open_cache(timeout=0.3)
    entry = cache.put(new_entry(1))
    holder = sqlite3.connect(catalog(root), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for write in (lambda: cache.put(new_entry(2)), lambda: cache.record_hit(entry.id, 1.0)):
        start = time.monotonic()
        with pytest.raises(CacheUnavailable, match=r"locked for more than 0\.3 s"):
            write()
        assert time.monotonic() - start < 5
    assert cache.search(random_vector(1), EMBEDDER, SPACE)[0].entry == entry
    reader = open_cache(timeout=0.3)
    assert_is_entry(1, reader.load(entry.id))
    holder.execute("ROLLBACK")
    holder.close()
    cache.put(new_entry(2))


def test_flipped_bits_anywhere_in_the_catalog_serve_nothing_wrong(tmp_path):
    """Whatever comes back is an entry as it was put, from the space asked for, or a CacheError."""
    original = tmp_path / "original"
    cache = LocalCache(original)
    made = [cache.put(new_entry(n, kilobytes=1, space=(SPACE, FAR_APART)[n % 2])) for n in range(8)]
    cache.close()
    size = catalog(original).stat().st_size
    dice = random.Random(1)
    served = 0
    for turn in range(30):
        root = tmp_path / f"flipped-{turn}"
        shutil.copytree(original, root)
        for _ in range(dice.choice((1, 1, 20))):
            flip(catalog(root), dice.randrange(size), dice.randrange(8))
        served += served_right(root, made)
        shutil.rmtree(root)
    assert served > 30 * len(made) / 2  # most flips hit what does not matter


def served_right(root, made) -> int:
    """How many of `made` the cache in `root` still finds and loads; all that it gives is checked."""
    served = set()

    def check(entry):
        number = entry.settings["number"]
        assert replace(entry, used=0.0, hits=0) == replace(made[number], used=0.0, hits=0)
        assert_is_entry(number, cache.load(entry.id), kilobytes=1)
        served.add(number)

    try:
        cache = LocalCache(root)
    except CacheUnavailable:
        return 0
    for number, entry in enumerate(made):
        with suppress(CacheError):
            matches = cache.search(random_vector(number), EMBEDDER, entry.space, k=9)
            assert all(match.entry.space == entry.space for match in matches)
            for match in matches:
                check(match.entry)
        with suppress(CacheError):
            matches = cache.search_elsewhere(random_vector(number), EMBEDDER, entry.space)
            assert all(match.entry.space != entry.space for match in matches)
        with suppress(CacheError):
            found = cache.find_request(entry.request)
            assert found is None or found.id == entry.id
        with suppress(CacheError):
            found = cache.get(entry.id)
            assert found is None or found.id == entry.id
    with suppress(CacheError):
        cache.put(new_entry(100, kilobytes=1))
    cache.close()
    return len(served)
