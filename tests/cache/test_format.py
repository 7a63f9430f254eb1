"""The file of an entry: what earlier versions wrote is read for ever, and nothing that was not written is."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from chorus.cache import CacheUnavailable, EntryDamaged, EntryMissing
from chorus.cache.codec import Coded
from chorus.cache.entry import canonical_json
from chorus.cache.format import PREFIX, BlobDamaged, BlobNewer, EntryFile, header_length, pack, read_header
from chorus.cache.record import read_record, write_record

from .sample import SPACE, new_entry, tensors, unit

ENTRIES = Path(__file__).with_name("entries")
VERSIONS = {"1": "1" * 32, "2": "2" * 32, "3": "3" * 32, "4": "4" * 32}  # format version → id of its committed entry
CODING = {
    "final": "dct/0.05",
    "checkpoint/0.750000": "dct/0.3",
    "tokens": "rows",
    "attention": "rows",
    "preview": "webp",
}


def ramp(*shape: int) -> torch.Tensor:
    """Values that fp16 and fp32 hold exactly, each of which follows from its place."""
    return ((torch.arange(int(np.prod(shape))) * 37 % 257 - 128) / 64).reshape(shape)


def committed_entry(version: str):
    """What was stored in the committed file of a version."""
    kept = {
        "final": ramp(1, 4, 3, 6, 6),
        "checkpoint/0.750000": ramp(1, 4, 3, 6, 6).flip(0).half() * 2,
        "tokens": ramp(5, 8).half(),
        "attention": ramp(5, 2, 3, 3).abs().half(),
        "preview": (torch.arange(2 * 8 * 8 * 3) * 5 % 256).to(torch.uint8).reshape(2, 8, 8, 3),
    }
    coding = {} if version == "1" else dict(CODING)
    if version >= "3":
        kept["estimate/1.000000"], coding["estimate/1.000000"] = ramp(1, 4, 3, 6, 6).flip(3), "dct/0.25"
    if version >= "4":
        kept["estimate/0.750000"], coding["estimate/0.750000"] = ramp(1, 4, 3, 3, 3).flip(3), "dct/0.25"
        coding["final"] = "planes"
    return new_entry(
        0,
        space=replace(SPACE, shape=(1, 4, 3, 6, 6)),
        request=f"request-of-version-{version}",
        prompt="a red ball rolls left",
        embedder="conditioning:8",
        vector=unit([0.6, 0.8, 0, 0, 0, 0, 0, 0]),
        sigmas=(1.0, 0.75, 0.5, 0.0),
        settings={"sampler": "euler", "cfg": 5.0, "seed": 7, "noise_drawn": False},
        tensors=kept,
        coding=coding,
    )


def committed_file(version: str) -> bytes:
    return (ENTRIES / f"version-{version}.safetensors").read_bytes()


def head_of(content: bytes) -> bytes:
    return content[: PREFIX.size + header_length(content)]


@pytest.fixture(params=sorted(VERSIONS))
def version(request) -> str:
    return request.param


def assert_is_committed(version: str, tensors: dict[str, torch.Tensor]) -> None:
    """Bit by bit for version 1; as near as the codings promise for version 2, and as when it was committed."""
    expected = committed_entry(version).tensors
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        if version == "1":
            assert torch.equal(tensors[name], tensor), name
    if version != "1":
        stored = json.loads((ENTRIES / f"version-{version}.json").read_text(encoding="utf-8"))
        for name, values in stored.items():
            assert tensors[name].double().flatten().tolist() == pytest.approx(values, abs=2e-3), name
        for name, step in (("final", 0.05 if version < "4" else 0.0), ("checkpoint/0.750000", 0.3)):
            error = (tensors[name].float() - expected[name].float()).square().mean().sqrt()
            assert error <= step / 2 * expected[name].float().std() * 1.05


def test_an_entry_of_every_version_is_read(version):
    content = committed_file(version)
    assert len(content) < 20_000
    header = read_header(head_of(content), len(content), VERSIONS[version])
    entry = read_record(header.record, size=header.size)
    new = committed_entry(version)
    assert (entry.space, entry.request, entry.prompt) == (new.space, new.request, new.prompt)
    assert (entry.embedder, entry.sigmas, entry.settings) == (new.embedder, new.sigmas, new.settings)
    assert entry.created == 1_700_000_000.0
    assert entry.tensor_names == tuple(sorted(new.tensors))
    assert np.array_equal(header.vector, new.vector)
    assert entry.coding == new.coding
    assert entry.shapes == ({n: tuple(t.shape) for n, t in new.tensors.items()} if version != "1" else {})
    file = EntryFile(content, header.digest)
    assert file.names == sorted(new.tensors)
    assert_is_committed(version, file.tensors())


def test_a_cache_with_entries_of_every_version_is_rebuilt_and_serves_them(open_cache, root):
    for version, entry_id in VERSIONS.items():
        folder = root / "blobs" / entry_id[:2]
        folder.mkdir(parents=True)
        shutil.copy(ENTRIES / f"version-{version}.safetensors", folder / f"{entry_id}.safetensors")
    cache = open_cache()
    assert {entry.id for entry in cache.entries()} == set(VERSIONS.values())
    for version, entry_id in VERSIONS.items():
        assert_is_committed(version, cache.load(entry_id))
        assert cache.preview(entry_id)[8:12] == b"WEBP"
    assert list((root / "quarantine").iterdir()) == []


def test_todays_code_writes_what_was_committed_for_this_version():
    """Byte by byte, except where another release of zstandard or libwebp packs the same values otherwise."""
    new = committed_entry("4")
    packed = pack(write_record(VERSIONS["4"], 1_700_000_000.0, new), new.vector, new.tensors, new.coding)
    written, committed = (json.loads(head_of(c)[PREFIX.size :]) for c in (packed.to_bytes(), committed_file("4")))
    assert written["__metadata__"].keys() == committed["__metadata__"].keys()
    for key in ("chorus_format", "record", "coded", "vector"):
        assert written["__metadata__"][key] == committed["__metadata__"][key]
    assert_is_committed("4", EntryFile(packed.to_bytes(), packed.digest).tensors())


# -- through the cache


def test_coded_tensors_come_back_by_name_and_on_the_device_asked_for(cache):
    entry = cache.put(committed_entry("2"))
    assert cache.get(entry.id).coding == CODING
    assert_is_committed("2", cache.load(entry.id))
    (tokens,) = cache.load(entry.id, ["tokens"], device="cpu").values()
    assert tokens.device.type == "cpu"
    placed = cache.load(entry.id, ["final", "tokens"], device="meta")
    assert {name: tensor.device.type for name, tensor in placed.items()} == {"final": "meta", "tokens": "meta"}


def test_only_the_tensors_asked_for_are_decoded(cache, monkeypatch):
    from chorus.cache import codec

    entry = cache.put(committed_entry("2"))
    decoded, decode = [], codec.decode
    monkeypatch.setattr(codec, "decode", lambda *given: decoded.append(given[1].coding) or decode(*given))
    cache.load(entry.id, ["checkpoint/0.750000"])
    assert decoded == ["dct/0.3"]
    cache.preview(entry.id)
    assert decoded == ["dct/0.3"]


def test_what_is_loaded_belongs_to_the_caller(cache):
    entry = cache.put(committed_entry("2"))
    for tensor in cache.load(entry.id).values():
        tensor.zero_()
    assert_is_committed("2", cache.load(entry.id))


def test_a_coding_that_does_not_fit_its_tensor_is_left_out(cache):
    peaked = torch.nn.functional.pad(torch.ones(3, 400), (1, 0), value=200.0)
    entry = cache.put(new_entry(1, tensors={**tensors(1), "tokens": peaked}, coding={"tokens": "rows"}))
    assert entry.coding == {}
    assert torch.equal(cache.load(entry.id)["tokens"], peaked)


@pytest.mark.parametrize(
    ("coding", "message"), [({"finale": "rows"}, "coding for finale"), ({"final": "zip"}, "coding 'zip'")]
)
def test_a_coding_of_nothing_or_of_no_kind_is_refused(coding, message):
    with pytest.raises(ValueError, match=message):
        new_entry(1, coding=coding)


def test_the_preview_is_an_animation_or_missing(cache):
    entry = cache.put(committed_entry("2"))
    with Image.open(io.BytesIO(cache.preview(entry.id))) as image:
        assert (image.format, image.size, image.n_frames) == ("WEBP", (8, 8), 2)
    bare = cache.put(new_entry(1))
    with pytest.raises(EntryMissing, match="no tensor preview"):
        cache.preview(bare.id)


# -- damage, and files that someone made


@pytest.mark.parametrize("step", [1, 2])
def test_damage_at_any_byte_is_found(version, step):
    content = committed_file(version)
    digest = read_header(head_of(content), len(content), VERSIONS[version]).digest
    for position in range(step % 2, len(content), 2):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(BlobDamaged):
            EntryFile(bytes(flipped), digest)
    for length in range(0, len(content), 97):
        with pytest.raises(BlobDamaged):
            EntryFile(content[:length], digest)


def forged(version: str = "2", drop: tuple[str, ...] = (), **changes) -> tuple[bytes, str]:
    """The committed file with other metadata, all checksums made to fit, and its digest: what a stranger could send."""
    content = committed_file(version)
    head = head_of(content)
    header = json.loads(head[PREFIX.size :])
    metadata = header["__metadata__"] | changes
    metadata = {key: text for key, text in metadata.items() if key not in (*drop, "header_sha256")}
    header["__metadata__"] = metadata
    metadata["header_sha256"] = hashlib.sha256(canonical_json(header).encode()).hexdigest()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    made = PREFIX.pack(len(text)) + text
    return made + content[len(head) :], hashlib.sha256(made).hexdigest()


def described(**changes) -> str:
    """The committed description of how tensors are coded, some of it replaced or (None) left out."""
    known = json.loads(json.loads(head_of(committed_file("2"))[PREFIX.size :])["__metadata__"]["coded"])
    return canonical_json({name: how for name, how in (known | changes).items() if how is not None})


@pytest.mark.parametrize(
    "coded",
    [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        described(nothing={"coding": "rows", "dtype": "float16", "shape": [5, 8]}),
        described(tokens={"coding": "rows", "dtype": "float16", "shape": [5, 9]}),
        described(tokens={"coding": "rows", "dtype": "float16", "shape": [2**14, 2**14]}),
        described(tokens={"coding": "rows", "dtype": "float16", "shape": [2**40, 8]}),
        described(tokens={"coding": "dct/0.1", "dtype": "float16", "shape": [1, 1, 5, 8]}),
        described(final={"coding": "rows", "dtype": "float32", "shape": [4, 108]}),
        described(preview={"coding": "webp", "dtype": "uint8", "shape": [2, 8, 9, 3]}),
        described(preview={"coding": "webp", "dtype": "uint8", "shape": [9000, 8, 8, 3]}),
        described(preview={"coding": "rows", "dtype": "float16", "shape": [9, 9]}),
    ],
)
def test_a_forged_description_is_refused(coded):
    content, digest = forged(coded=coded)
    with pytest.raises(BlobDamaged):
        EntryFile(content, digest).tensors()


def test_a_forged_header_without_its_parts_is_refused():
    for part in ("record", "vector", "chorus_format"):
        content, _ = forged(drop=(part,))
        with pytest.raises(BlobDamaged):
            read_header(head_of(content), len(content), VERSIONS["2"])
    content, digest = forged(drop=("body_sha256",))
    with pytest.raises(BlobDamaged):
        EntryFile(content, digest)
    for version in ("0", "two", ""):
        content, digest = forged(chorus_format=version)
        with pytest.raises(BlobDamaged):
            EntryFile(content, digest)


def test_another_entrys_file_is_not_taken_for_this_one():
    content = committed_file("2")
    with pytest.raises(BlobDamaged, match="another entry's"):
        read_header(head_of(content), len(content), "3" * 32)
    with pytest.raises(BlobDamaged, match="bytes of tensors instead of"):
        read_header(head_of(content), len(content) + 1, VERSIONS["2"])


def test_a_file_that_is_no_safetensors_is_refused():
    plain = save({"final": torch.zeros(3)})
    with pytest.raises(BlobDamaged):
        EntryFile(plain, hashlib.sha256(head_of(plain)).hexdigest())


def test_a_newer_version_is_neither_served_nor_thrown_away(open_cache, root):
    content, digest = forged(chorus_format="5")
    with pytest.raises(BlobNewer, match="newer than this Chorus"):
        EntryFile(content, digest)
    folder = root / "blobs" / "22"
    folder.mkdir(parents=True)
    path = folder / f"{VERSIONS['2']}.safetensors"
    path.write_bytes(content)
    cache = open_cache()
    assert cache.rebuild() == 0
    assert path.read_bytes() == content


def test_an_entry_that_a_newer_chorus_stored_is_unavailable_not_damaged(cache, root, monkeypatch):
    monkeypatch.setattr("chorus.cache.format.FORMAT_VERSION", "5")
    entry = cache.put(new_entry(1))
    monkeypatch.undo()
    with pytest.raises(CacheUnavailable, match="Update Chorus"):
        cache.load(entry.id)
    assert cache.get(entry.id) == entry


def test_coded_bytes_that_do_not_decode_are_quarantined(cache, root, monkeypatch):
    """As after a fault of the memory while they were written, so that every checksum agrees."""
    monkeypatch.setattr("chorus.cache.codec.encode", lambda tensor, coding: b"not zstandard")
    entry = cache.put(new_entry(1, tensors={"final": torch.ones(SPACE.shape)}, coding={"final": "dct/0.1"}))
    monkeypatch.undo()
    with pytest.raises(EntryDamaged, match="cannot be decoded"):
        cache.load(entry.id)
    assert cache.get(entry.id) is None
    assert len(list((root / "quarantine").iterdir())) == 1


# -- without Chorus


def test_the_programs_in_the_documentation_read_the_committed_entries(checkout, version, tmp_path):
    text = (checkout / "docs" / "format.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    out = tmp_path / "read.safetensors"
    program += f"\nfrom safetensors.torch import save_file\nsave_file(tensors, {str(out)!r})\n"
    file = ENTRIES / f"version-{version}.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "a red ball rolls left" in done.stdout
    tensors = load(out.read_bytes())
    if version != "1":
        tensors["preview"] = torch.from_numpy(np.stack(list(frames_of(tensors["preview"].numpy().tobytes()))))
    assert_is_committed(version, tensors)


def frames_of(webp: bytes):
    with Image.open(io.BytesIO(webp)) as image:
        for number in range(image.n_frames):
            image.seek(number)
            yield np.asarray(image.convert("RGB"))


def test_descriptions_round_trip():
    for name, coding in CODING.items():
        described = Coded.of(committed_entry("2").tensors[name], coding)
        assert Coded.from_json(json.loads(canonical_json(described.to_json()))) == described
