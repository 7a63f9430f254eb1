"""Bundles: what is exported comes back bit by bit, and nothing that a stranger puts into one does harm."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import tracemalloc
import zipfile
from dataclasses import replace

import pytest
import torch

from chorus.cache import EntryMissing, LocalCache, WriteBehind
from chorus.cache.bundle import MANIFEST, BundleRefused, read_bundle, write_bundle
from chorus.cache.record import write_record

from . import forge
from .forge import STRANGER
from .sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector, tensors

DEEP = json.loads('{"a":' * 200 + "1" + "}" * 200)


def quiet(*_):
    pass


@pytest.fixture
def bundle(cache, tmp_path):
    entries = [cache.put(new_entry(number)) for number in range(3)]
    path = tmp_path / "three.chorus"
    write_bundle(cache, [entry.id for entry in entries], path, quiet)
    return path


@pytest.fixture
def other(tmp_path):
    cache = LocalCache(tmp_path / "other")
    yield cache
    cache.close()


def rewritten(path, target, change, deflated=False):
    """A copy of a bundle whose members, {name: bytes}, went through `change`."""
    with zipfile.ZipFile(path) as bundle:
        members = {name: bundle.read(name) for name in bundle.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return target


def one_entry(target, content, entry_id=STRANGER, **claims):
    """A bundle of one entry's file, with a manifest that fits it but for `claims`."""
    digest = hashlib.sha256(content).hexdigest()
    listed = {"id": entry_id, "bytes": len(content), "sha256": digest, "prompt": "", **claims}
    with zipfile.ZipFile(target, "w") as bundle:
        bundle.writestr(f"entries/{entry_id}.safetensors", content)
        bundle.writestr(MANIFEST, json.dumps({"chorus_bundle": 1, "entries": [listed]}))
    return target


def made(number=1, prompt=None, **forged):
    """The file of an entry of a stranger's making."""
    return forge.entry_file(new_entry(number, **({} if prompt is None else {"prompt": prompt})), **forged)


def files(root):
    return {path for folder in ("blobs", "partial") for path in (root / folder).rglob("*") if path.is_file()}


def test_what_is_exported_is_imported_bit_by_bit_with_its_id(cache, other, bundle):
    seen = []
    imported = read_bundle(other, bundle, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert {e.id for e in imported.taken} == {e.id for e in cache.entries()} == {e.id for e in other.entries()}
    for entry in cache.entries():
        assert other.file(entry.id) == cache.file(entry.id)
        assert_is_entry(entry.settings["number"], other.load(entry.id))
    (match,) = other.search(random_vector(1), EMBEDDER, SPACE, k=1)
    assert match.entry.settings["number"] == 1


def test_compressed_entries_go_along_as_they_are(cache, other, tmp_path):
    latent = tensors(1)["final"]
    kept = {"final": latent, "tokens": latent[0, 0, 0], "preview": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}
    coding = {"final": "dct/0.1", "tokens": "rows", "preview": "webp"}
    entry = cache.put(new_entry(1, tensors=kept, coding=coding))
    assert entry.coding == coding
    write_bundle(cache, [entry.id], tmp_path / "coded.chorus", quiet)
    imported = read_bundle(other, tmp_path / "coded.chorus", quiet)
    assert imported.refused == ()
    (taken,) = imported.taken
    assert other.file(taken.id) == cache.file(entry.id)
    assert torch.equal(other.load(taken.id)["final"], cache.load(entry.id)["final"])


def test_what_is_there_already_stays_as_it_is(cache, bundle):
    before = cache.entries()
    imported = read_bundle(cache, bundle, quiet)
    assert (len(imported.taken), len(imported.present), imported.refused) == (0, 3, ())
    assert cache.entries() == before


def lose(root, entry):
    (root / "blobs" / entry.id[:2] / f"{entry.id}.safetensors").unlink()


def test_an_export_that_fails_leaves_no_file(cache, tmp_path, root):
    entry = cache.put(new_entry(1))
    lose(root, entry)
    with pytest.raises(EntryMissing, match="gone"):
        write_bundle(cache, [entry.id], tmp_path / "none.chorus", quiet)
    with pytest.raises(ValueError, match="0 entries to export"):
        write_bundle(cache, [], tmp_path / "none.chorus", quiet)
    sound = cache.put(new_entry(2))
    with pytest.raises(ZeroDivisionError):
        write_bundle(cache, [sound.id], tmp_path / "none.chorus", lambda done: 1 // 0)
    assert not list(tmp_path.glob("none.chorus*"))


def test_an_entry_that_is_gone_or_damaged_is_left_out_and_named(cache, other, tmp_path, root):
    kept, lost, damaged = (cache.put(new_entry(number)) for number in range(3))
    lose(root, lost)
    (file,) = root.rglob(f"{damaged.id}.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    ids = [lost.id, kept.id, damaged.id, kept.id, STRANGER]
    written = write_bundle(cache, ids, tmp_path / "one.chorus", quiet)
    assert written.bytes == (tmp_path / "one.chorus").stat().st_size
    assert [entry_id for entry_id, _ in written.left_out] == [lost.id, damaged.id, STRANGER]
    assert [why for _, why in written.left_out][2] == "it was evicted or forgotten"
    assert [entry.id for entry in read_bundle(other, tmp_path / "one.chorus", quiet).taken] == [kept.id]


def test_a_bundle_goes_through_caches_that_write_behind(tmp_path):
    faults = []
    behind = [WriteBehind(LocalCache(tmp_path / name), tmp_path / name, lambda *f: faults.append(f)) for name in "ab"]
    here, there = behind
    try:
        entry = here.put(new_entry(1))
        write_bundle(here, [entry.id], tmp_path / "one.chorus", quiet)
        (taken,) = read_bundle(there, tmp_path / "one.chorus", quiet).taken
        assert there.file(taken.id) == here.file(entry.id)
        assert faults == []
    finally:
        for cache in behind:
            cache.close()


def test_a_bundle_that_can_never_fit_is_refused_before_anything_is_evicted(bundle, tmp_path):
    size = (bundle.stat().st_size - 2000) // 3
    small = LocalCache(tmp_path / "small", max_bytes=2 * size)
    own = small.put(new_entry(9))
    with pytest.raises(BundleRefused, match=r"take [\d,]+ bytes, and .* raise the cache's limit") as refusal:
        read_bundle(small, bundle, quiet)
    assert refusal.value.code == "cache_full"
    assert [entry.id for entry in small.entries()] == [own.id]
    small.close()
    few = LocalCache(tmp_path / "few", max_entries=2)
    with pytest.raises(BundleRefused, match="keeps at most 2"):
        read_bundle(few, bundle, quiet)
    few.close()


def test_entries_that_make_room_for_a_bundle_are_counted(bundle, tmp_path):
    small = LocalCache(tmp_path / "small", max_entries=4, eviction="lru")
    for number in (7, 8, 9):
        last = small.put(new_entry(number))
    imported = read_bundle(small, bundle, quiet)
    assert (len(imported.taken), imported.evicted) == (3, 2)
    assert {entry.id for entry in small.entries()} == {last.id, *(entry.id for entry in imported.taken)}
    small.close()


def test_when_the_cache_fails_half_way_the_rest_is_refused_with_the_reason(bundle, tmp_path):
    into = LocalCache(tmp_path / "into")
    imported = read_bundle(into, bundle, lambda done, of: into.close())
    assert len(imported.taken) == 1
    assert ["it was closed" in why for _, why in imported.refused] == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"../../evil.py": b"x"}), "something else than entries"),
        (lambda m: m.update({"/etc/evil": b"x"}), "something else than entries"),
        (lambda m: m.update({"entries\\..\\evil.safetensors": b"x"}), "something else than entries"),
        (lambda m: m.update({"entries/code.pkl": b"x"}), "something else than entries"),
        (lambda m: m.update({f"entries/{STRANGER}.safetensors": b"x"}), "lists other entries"),
        (lambda m: m.pop(MANIFEST) and None, "no manifest"),
        (lambda m: m.update({MANIFEST: b"[]"}), "is not one"),
        (lambda m: m.update({MANIFEST: b'{"chorus_bundle": 2, "entries": []}'}), "version 2"),
        (lambda m: m.update({MANIFEST: b"[" * 100_000}), "is not one"),
        (lambda m: m.update({MANIFEST: b"\xff\xfe"}), "is not one"),
    ],
)
def test_a_bundle_with_anything_strange_in_it_is_refused_whole(other, bundle, tmp_path, change, message):
    strange = rewritten(bundle, tmp_path / "strange.chorus", change)
    with pytest.raises(BundleRefused, match=message):
        read_bundle(other, strange, quiet)
    assert other.count() == 0
    assert files(other.root) == set()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip file" * 100])
def test_what_is_no_zip_file_is_refused(other, tmp_path, content):
    path = tmp_path / "no.zip"
    path.write_bytes(content)
    with pytest.raises(BundleRefused, match="zip file"):
        read_bundle(other, path, quiet)


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(other, tmp_path):
    bomb = tmp_path / "bomb.chorus"
    listed = {"id": STRANGER, "bytes": 1000, "sha256": "0" * 64, "prompt": ""}
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(f"entries/{STRANGER}.safetensors", bytes(200 * 2**20))
        bundle.writestr(MANIFEST, json.dumps({"chorus_bundle": 1, "entries": [listed]}), zipfile.ZIP_STORED)
    assert bomb.stat().st_size < 2**20
    imported = read_bundle(other, bomb, quiet)
    ((_, why),) = imported.refused
    assert "compressed" in why


def test_members_that_share_their_bytes_are_refused(other, tmp_path):
    """A small file that would be read as often as it has members."""
    path = one_entry(tmp_path / "one.chorus", made())
    with zipfile.ZipFile(path, "a") as bundle:
        (entry,) = [member for member in bundle.infolist() if member.filename != MANIFEST]
        for number in range(3):
            again = copy.copy(entry)
            again.filename = f"entries/{number:032x}.safetensors"
            bundle.filelist.append(again)
            bundle.NameToInfo[again.filename] = again
        bundle._didModify = True
    with pytest.raises(BundleRefused, match="overlap"):
        read_bundle(other, path, quiet)


@pytest.mark.parametrize("size", [-1, 0, 10**15])
def test_an_absurd_size_is_refused(other, tmp_path, size):
    path = one_entry(tmp_path / "size.chorus", made(), bytes=size)
    assert "the cache holds" in read_bundle(other, path, quiet).refused[0][1]


def with_field(name, value):
    return lambda record: record.update({name: value})


def not_finite():
    return {**tensors(1), "final": torch.full(SPACE.shape, float("nan"))}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: made(tensors=not_finite()), "from nan to nan"),
        (lambda: made(header=lambda header: header.pop("checkpoint/0.937500")), "one after the other|bytes of tensors"),
        (lambda: made(record=with_field("tensor_names", ["final", "tokens"])), "the tensors are"),
        (lambda: made(vector=2 * random_vector(1)), "norm"),
        (lambda: made(vector=float("nan") * random_vector(1)), "norm"),
        (lambda: made(record=with_field("id", "cd" * 16)), "another entry"),
        (lambda: made(record=with_field("created", "yesterday")), "yesterday"),
        (lambda: made(record=with_field("created", -5.0)), "created -5.0"),
        (lambda: made(record=with_field("settings", [1])), "object"),
        (lambda: made(record=with_field("space", {"weights": "x"})), "no sound entry"),
        (lambda: made(record=with_field("sigmas", "abc")), "expected numbers"),
        (lambda: made(record=with_field("seconds", -1.0)), "seconds"),
        (lambda: made(record=with_field("pinned", True)), "no sound entry"),
        (lambda: made(record=with_field("more", 1)), "no sound entry"),
        (lambda: made(record='{"id":"' + STRANGER + '"'), "no sound entry"),
        (lambda: made(record=write_record(STRANGER, 1.0, new_entry(1)).replace('"cfg":5.0', '"cfg": 5.0')), "written"),
        (lambda: made(record=with_field("settings", {"number": 1})), "its settings lack noise_drawn, noise, carried"),
        (lambda: b"\x00" * 8, "no sound entry"),
        (lambda: b"\xff" * 64, "claims"),
    ],
)
def test_an_entry_of_a_strangers_making_is_refused_alone(other, tmp_path, content, message):
    imported = read_bundle(other, one_entry(tmp_path / "one.chorus", content()), quiet)
    assert imported.taken == ()
    ((entry_id, why),) = imported.refused
    assert entry_id == STRANGER
    assert re.search(message, why), why
    assert other.count() == 0
    assert files(other.root) == set()


def test_a_sound_entry_of_a_strangers_making_is_taken(other, tmp_path):
    imported = read_bundle(other, one_entry(tmp_path / "one.chorus", made()), quiet)
    assert [e.id for e in imported.taken] == [STRANGER]
    assert_is_entry(1, other.load(STRANGER))


def test_one_bad_entry_never_ends_the_import_of_the_others(other, tmp_path, monkeypatch):
    """Neither what is known to go wrong nor what nobody thought of."""
    odd = [with_field("parent", {}), with_field("seconds", 1.7e308), with_field("settings", {"deep": DEEP})]
    made_of = {f"{number:032x}": new_entry(number) for number in range(8)}
    files = {entry_id: forge.entry_file(new, entry_id=entry_id) for entry_id, new in made_of.items()}
    for entry_id, record in zip(list(files)[1:4], odd, strict=True):
        files[entry_id] = forge.entry_file(made_of[entry_id], entry_id=entry_id, record=record)
    unlucky, adopt = list(files)[5], other.adopt

    def adopted(entry_id, content):
        if entry_id == unlucky:
            raise ZeroDivisionError("nobody thought of this")
        return adopt(entry_id, content)

    monkeypatch.setattr(other, "adopt", adopted)
    imported = read_bundle(other, forge.bundle(tmp_path / "mixed.chorus", files), quiet)
    assert [entry_id for entry_id, _ in imported.refused] == [*list(files)[1:4], unlucky]
    assert {entry.id for entry in imported.taken} == files.keys() - {entry_id for entry_id, _ in imported.refused}
    assert other.count() == 4


def test_an_import_has_an_entry_once_in_memory(other, tmp_path):
    """Copies are counted: of each byte of the file there is one, and of each tensor a piece."""
    shape = (1, 16, 64, 64, 128)  # 34 MB
    new = new_entry(1, space=replace(SPACE, shape=shape), tensors={"final": torch.ones(shape)})
    path = forge.bundle(tmp_path / "large.chorus", {STRANGER: forge.entry_file(new)})
    size = path.stat().st_size
    del new
    tracemalloc.start()
    try:
        imported = read_bundle(other, path, quiet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert imported.refused == ()
    assert peak < 1.25 * size + 5 * 2**20


def test_a_compressed_manifest_is_not_unpacked(other, bundle, tmp_path):
    path = rewritten(bundle, tmp_path / "packed.chorus", lambda m: m.update({MANIFEST: b"[]," * 2**20}), deflated=True)
    assert path.stat().st_size < 2**17
    with pytest.raises(BundleRefused, match="is compressed"):
        read_bundle(other, path, quiet)


def test_a_prompt_that_is_sql_is_only_a_prompt(other, tmp_path):
    prompt = "'; DROP TABLE entries; --"
    read_bundle(other, one_entry(tmp_path / "one.chorus", made(prompt=prompt)), quiet)
    assert other.get(STRANGER).prompt == prompt
    other.put(new_entry(2))
    assert other.count() == 2


def test_a_bundle_with_flipped_bytes_brings_what_it_was_or_nothing(cache, bundle, tmp_path):
    chance = random.Random(3)
    content = bundle.read_bytes()
    sound = {entry.id: entry.settings["number"] for entry in cache.entries()}
    taken = 0
    for trial in range(150):
        broken = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        path = tmp_path / "broken.chorus"
        path.write_bytes(broken if trial % 3 else broken[: chance.randrange(len(broken))])
        into = LocalCache(tmp_path / f"into-{trial}")
        try:
            read_bundle(into, path, quiet)
        except BundleRefused:
            assert into.count() == 0
        for entry in into.entries():
            assert_is_entry(sound[entry.id], into.load(entry.id))
            taken += 1
        into.close()
    assert taken > 0
