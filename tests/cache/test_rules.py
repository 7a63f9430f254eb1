"""Whatever an entry's file says: it is refused with a reason, or it loads to sound values, for little room and work."""

from __future__ import annotations

import copy
import io
import json
import math
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chorus.cache import CacheError, EntryDamaged, LocalCache
from chorus.cache.foreign import unpack
from chorus.cache.format import BlobDamaged, BlobNewer, EntryFile, read_header
from chorus.cache.record import read_record, write_record
from chorus.cache.rules import VALUES_FREE, VALUES_PER_BYTE

from . import forge
from .forge import STRANGER
from .sample import SPACE, new_entry, tensors

PREVIEW_VALUES = 64 * 512 * 512 * 3
DEEP = json.loads('{"a":' * 200 + "1" + "}" * 200)


def workflow(text: bytes = b'{"workflow":{"nodes":[]}}') -> bytes:
    return zlib.compress(text)


def whole() -> Any:
    """An entry with a tensor of every kind, each in its coding."""
    latents = torch.randn(2, *SPACE.shape, generator=torch.Generator().manual_seed(5))
    kept = {
        "final": latents[0],
        "checkpoint/0.937500": latents[1].to(torch.bfloat16),
        "tokens": latents[0].reshape(8, 16).half(),
        "attention": latents[1].reshape(8, 2, 2, 4).abs().half(),
        "preview": torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).reshape(2, 8, 8, 3),
        "workflow": torch.tensor(list(workflow()), dtype=torch.uint8),
    }
    coding = {"final": "dct/0.1", "checkpoint/0.937500": "dct/0.4", "tokens": "rows", "preview": "webp"}
    return new_entry(1, tensors=kept, coding=coding)


@pytest.fixture(scope="module")
def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """`whole` as it lies in its file: tensors, bytes for those that are coded, and what is said of these."""
    from chorus.cache import codec

    new = whole()
    coded = {n: codec.Coded.of(new.tensors[n], how).to_json() for n, how in new.coding.items()}
    return {n: codec.encode(t, new.coding[n]) if n in coded else t for n, t in new.tensors.items()}, coded


# -- what can be done to a file

ODD = st.sampled_from(
    [
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**400,
        0.5,
        -0.0,
        1e38,
        1.7e308,
        math.nan,
        math.inf,
        "",
        "a",
        "torch",
        "\x1b[2J\x07",
        "\ud800",
        "\x00",
        "a\nb",
        "x" * 300_000,
        [],
        [[]],
        {},
        {"a": 1},
        {"": None},
        DEEP,
        [0.5] * 20_000,
        "0" * 32,
        [1, 4, 2, 4, 4],
        [1, 4, 2, 4, -4],
        [1, 128],
        [2**31] * 3,
        [1] * 70,
        [4.0],
        ["a"],
        "dct/0.1",
        "rows",
    ]
)
TENSORS = st.sampled_from(
    [
        torch.ones(SPACE.shape),
        torch.ones(1, 4, 1, 4, 8),
        torch.ones(3),
        torch.ones(0),
        torch.tensor(1.0),
        b"",
        b"xxxx",
        torch.ones(SPACE.shape, dtype=torch.int64),
        torch.full(SPACE.shape, 1e38),
        torch.full(SPACE.shape, math.nan),
        torch.full(SPACE.shape, -math.inf).half(),
        torch.ones(SPACE.shape, dtype=torch.bool),
        torch.ones(8, 16) * 1e9,
        torch.ones(8, 2, 2, 4) * -1,
        torch.ones(9, 16),
        torch.rand(2, 8, 8, 3),
        torch.ones(SPACE.shape).double(),
        torch.zeros(1, 600, 2, 3, dtype=torch.uint8),
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
        workflow(b"[1]"),
        workflow(b"{"),
        workflow(b'{"workflow":NaN}'),
        workflow(b'{"workflow":' + b"[" * 10**5),
        workflow(b'{"workflow":{"a":' + b"[" * 1000 + b"]" * 1000 + b"}}"),
        workflow(bytes(2**26)),
        workflow()[:-3],
        workflow(b'{"workflow":{"a":1e999}}'),
        workflow() + b"more",
    ]
)
BEYOND = st.sampled_from([math.nan, math.inf, -math.inf, 1e38, -6e4]).map(lambda value: torch.full(SPACE.shape, value))
NAMES = ("final", "checkpoint/0.937500", "tokens", "attention", "preview", "workflow")
NEW_NAMES = ("checkpoint/0.500000", "checkpoint/nan", "checkpoint/-1", "checkpoint/9.000000", "checkpoint/0.000000")
NEW_NAMES += ("checkpoint", "", "\x1b[31m", "../../etc/passwd", "tokens ", "__metadata__x")
FIELDS = ("id", "created", "request", "prompt", "embedder", "sigmas", "settings", "seconds", "is_source", "parent")
FIELDS += ("tensor_names", "shapes", "coding", "space", "extra")
IN_SPACE = ("weights", "patches", "latent_format", "shape", "task", "prediction", "extra")
IN_SETTINGS = ("sampler", "noise", "carried", "noise_drawn", "seed", "stages", "report", "calls", "extra")
paths = st.one_of(
    st.sampled_from(FIELDS).map(lambda field: (field,)),
    st.sampled_from(IN_SPACE).map(lambda field: ("space", field)),
    st.sampled_from(IN_SETTINGS).map(lambda field: ("settings", field)),
    st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from([("shapes", name), ("coding", name)])),
)

What = dict[str, Any]  # the arguments of forge.entry_file, in the making
Mutation = Callable[[What], None]


def _set(target: Any, path: tuple[str, ...], value: Any) -> None:
    for step in path[:-1]:
        target = target.get(step) if isinstance(target, dict) else None
    if isinstance(target, dict):
        target[path[-1]] = copy.deepcopy(value)


def _drop(target: Any, path: tuple[str, ...]) -> None:
    for step in path[:-1]:
        target = target.get(step) if isinstance(target, dict) else None
    if isinstance(target, dict):
        target.pop(path[-1], None)


def later(part: str, change: Callable[[Any], object]) -> Mutation:
    return lambda what: what[part].append(change)


def stored_as(name: str, tensor: Any) -> Mutation:
    """A tensor is another, and is not coded any more."""

    def mutate(what: What) -> None:
        what["tensors"][name] = tensor
        what["coded"].pop(name, None)

    return mutate


def bytes_as(name: str, content: bytes) -> Mutation:
    """A tensor's bytes are others, and are still said to be coded."""
    return lambda what: what["tensors"].update({name: content})


mutations = st.one_of(
    st.tuples(paths, ODD).map(lambda one: later("record", partial(_set, path=one[0], value=one[1]))),
    paths.map(lambda path: later("record", partial(_drop, path=path))),
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["dtype", "shape", "data_offsets"]), ODD).map(
        lambda one: later("header", partial(_set, path=one[:2], value=one[2]))
    ),
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["coding", "dtype", "shape", "extra"]), ODD).map(
        lambda one: lambda what: _set(what["coded"], one[:2], one[2])
    ),
    st.tuples(st.sampled_from(NAMES + NEW_NAMES), TENSORS).map(lambda one: stored_as(*one)),
    st.tuples(st.sampled_from(NAMES[:2]), BEYOND).map(lambda one: stored_as(*one)),
    st.tuples(st.sampled_from(NAMES), st.binary(max_size=60)).map(lambda one: bytes_as(*one)),
    st.tuples(st.sampled_from(["vector", "chorus_format", "coded", "record"]), ODD).map(
        lambda one: later("metadata", partial(_set, path=one[:1], value=one[1]))
    ),
    st.sampled_from([(1, 4, 2, 4, 2000), (1, 1, 1, 1, 20000), (1, 16, 64, 256, 256), (1, 1, 2048, 2048, 1)]).map(
        lambda shape: lambda what: _bomb(what, shape)
    ),
)


def _bomb(what: What, shape: tuple[int, ...]) -> None:
    """A few bytes that claim to be a large latent, of a space of that shape."""
    what["tensors"]["final"], what["coded"]["final"] = forge.dct_of_zeros(shape)
    what["tensors"].pop("checkpoint/0.937500", None)
    what["coded"].pop("checkpoint/0.937500", None)
    what["record"].append(partial(_set, path=("space", "shape"), value=list(shape)))


def mutated(parts: tuple[dict, dict], some: list[Mutation]) -> bytes | None:
    """The file after these mutations; None where they do not make one."""
    what: What = {"tensors": dict(parts[0]), "coded": copy.deepcopy(parts[1]), "record": [], "header": []}
    what["metadata"] = []
    for mutate in some:
        mutate(what)
    shown: Any = {part: partial(_all, what[part]) for part in ("record", "header", "metadata")}
    with suppress(TypeError, KeyError, ValueError):  # JSON cannot say it
        return forge.entry_file(whole(), tensors=what["tensors"], coded=what["coded"], **shown)
    return None


def _all(changes: list, target: Any) -> None:
    for change in changes:
        change(target)


# -- what must hold of a file that is taken


def assert_sound(entry: Any, loaded: dict[str, torch.Tensor]) -> None:
    """By the words of docs/format.md, not by the rules under test."""
    json.dumps(vars(entry) | {"space": vars(entry.space)}, allow_nan=False, ensure_ascii=False).encode()
    assert 0 <= entry.seconds <= 7 * 86_400
    assert 0 <= entry.created <= 1e11
    assert isinstance(entry.prompt, str) and isinstance(entry.is_source, bool)
    assert entry.embedder.isprintable() and entry.request.isprintable() and entry.space.latent_format.isprintable()
    assert entry.parent is None or entry.parent.isprintable()
    assert len(entry.sigmas) >= 2 and entry.sigmas[0] > entry.sigmas[-1] >= 0 and math.isfinite(entry.sigmas[0])
    assert entry.parent is None or isinstance(entry.parent, str)
    assert sorted(loaded) == list(entry.tensor_names) and "final" in loaded
    for name, tensor in loaded.items():
        if name == "final" or name.startswith("checkpoint/"):
            assert tensor.shape == entry.space.shape
            assert tensor.dtype in (torch.float16, torch.bfloat16, torch.float32)
            assert float(tensor.float().abs().max()) <= 1e4
        elif name in ("tokens", "attention"):
            assert tensor.ndim == (2 if name == "tokens" else 4) and bool(tensor.isfinite().all())
        else:
            assert tensor.dtype == torch.uint8
    if "tokens" in loaded and "attention" in loaded:
        assert len(loaded["tokens"]) == len(loaded["attention"])
    for sigma in (float(n.split("/")[1]) for n in loaded if n.startswith("checkpoint/")):
        assert 0 < sigma <= entry.sigmas[0] + 1e-6


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(mutations, min_size=1, max_size=3))
def test_a_mutated_entry_is_refused_with_a_reason_or_is_sound(parts, some):
    content = mutated(parts, some)
    if content is None:
        return
    from chorus.cache import codec

    decoded, decode = [0], codec.decode

    def counted(payload, coded, device="cpu"):
        decoded[0] += math.prod(coded.shape) if coded.coding != "webp" else 0
        assert coded.coding != "webp" or math.prod(coded.shape) <= PREVIEW_VALUES
        return decode(payload, coded, device)

    codec.decode = counted
    try:
        new, packed = unpack(STRANGER, content)
    except ValueError as error:
        assert 0 < len(str(error)) < 600 and str(error).isprintable(), ascii(str(error))
        return
    finally:
        codec.decode = decode
        assert decoded[0] <= VALUES_FREE + VALUES_PER_BYTE * len(content)
    file = EntryFile(content, packed.digest)
    assert_sound(read_record(packed.record, size=packed.size), file.tensors())
    assert abs(float(np.linalg.norm(new.vector)) - 1) < 1e-2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(some=st.lists(mutations, min_size=1, max_size=2))
def test_a_mutated_file_on_the_disk_is_damage_or_sound_and_its_neighbour_stays(parts, some, tmp_path_factory):
    """As after a folder was edited or came from elsewhere: the catalog is made anew from what lies there."""
    content = mutated(parts, some)
    if content is None:
        return
    root = tmp_path_factory.mktemp("edited")
    for entry_id, file in ((STRANGER, content), ("cd" * 16, forge.entry_file(new_entry(2), entry_id="cd" * 16))):
        (root / "blobs" / entry_id[:2]).mkdir(parents=True)
        (root / "blobs" / entry_id[:2] / f"{entry_id}.safetensors").write_bytes(file)
    cache = LocalCache(root)
    try:
        for entry in cache.entries():
            try:
                loaded = cache.load(entry.id)
            except EntryDamaged:
                assert entry.id == STRANGER and cache.get(STRANGER) is None
                continue
            if all(ord(c) < 0xD800 for c in json.dumps(entry.settings, ensure_ascii=False) + entry.prompt):
                assert_sound(entry, loaded)
            with suppress(CacheError), Image.open(io.BytesIO(cache.preview(entry.id))) as picture:
                assert max(picture.size) <= 512
        assert cache.load("cd" * 16)["final"].shape == SPACE.shape
    finally:
        cache.close()


# -- one of each kind, by hand


def field(**changes: Any) -> dict[str, Any]:
    return {"record": lambda record: record.update(changes)}


def in_space(**changes: Any) -> dict[str, Any]:
    return {"record": lambda record: record["space"].update(changes)}


def in_settings(**changes: Any) -> dict[str, Any]:
    return {"record": lambda record: record["settings"].update(changes)}


def holding(**changed: Any) -> dict[str, Any]:
    return {"tensors": {**tensors(1), **changed}}


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (field(seconds=1.7e308), "seconds 1.7e[+]308"),
        (field(seconds=True), "seconds True"),
        (field(created=1e300), "created 1e[+]300"),
        (field(parent={}), "parent {}"),
        (field(parent="x" * 100_000), "parent 'xxx"),
        (field(is_source="no"), "is_source 'no'"),
        (field(sigmas=[0.0]), "1 sigmas"),
        (field(sigmas=[0.0, 1.0]), "falls"),
        (field(sigmas=[1e308, 0.0]), "sigma 1e[+]308"),
        (field(sigmas=[5.0, -3.0]), "sigma -3.0"),
        (field(sigmas=[0.5] * 10**6), "1000000 sigmas"),
        (field(prompt=[1]), "prompt"),
        (field(prompt="x" * 5 * 2**20), "characters"),
        (field(prompt="a \ud800 b"), "valid Unicode"),
        (in_settings(name="a \ud800 b"), "valid Unicode"),
        (field(request="\x1b[2J"), "request"),
        (field(tensor_names=["final"]), "the tensors are"),
        (in_settings(deep=DEEP), "within each other"),
        (in_settings(noise_drawn="no"), "noise_drawn 'no'"),
        (in_settings(sampler=["x"]), "sampler"),
        (in_settings(report=[1]), "report"),
        (in_settings(large=10**100), "2.64"),
        (in_settings(large=1e300), "2.64"),
        (in_settings(long="x" * 2**21), "characters"),
        (in_space(shape=[1, 2, "a", "b", "c"]), "space.shape"),
        (in_space(shape=[1.5, -2]), "space.shape"),
        (in_space(shape=[1] * 100_000), "space.shape"),
        (in_space(shape=[1, 4, 2, 4, True]), "space.shape"),
        (in_space(shape=[1, 4, 4, 4, 2]), "than its space"),
        (in_space(weights={"a": 1}), "space.weights"),
        (in_space(latent_format="\x1b[31mWan"), "space.latent_format"),
        (in_space(task=5), "space.task"),
        (holding(final=torch.ones(1, 4, 1, 4, 8)), "tensor final has another shape"),
        (holding(final=torch.ones(SPACE.shape, dtype=torch.int64)), "cannot be read"),
        (holding(final=torch.ones(SPACE.shape, dtype=torch.uint8)), "type uint8"),
        (holding(final=torch.full(SPACE.shape, math.inf)), "from inf to inf"),
        (holding(tokens=torch.full((4, 8), math.nan)), "tokens holds values from nan"),
        (holding(tokens=torch.ones(4)), "tokens has the shape"),
        (holding(attention=torch.ones(5, 2, 2, 2)), "5 maps of attention for 26 words"),
        (holding(attention=-torch.ones(26, 2, 2, 2)), "attention holds values from -1"),
        (holding(preview=torch.rand(2, 8, 8, 3)), "type float32"),
        (holding(preview=torch.zeros(200, 100, 100, 3, dtype=torch.uint8)), "preview has the shape"),
        (holding(preview=torch.zeros(1, 8, 8, 4, dtype=torch.uint8)), "preview has the shape"),
        (holding(workflow=b"xxxx"), "cannot be unpacked"),
        (holding(workflow=workflow(b"hello")), "not JSON"),
        (holding(workflow=workflow(b"[1]")), "no graph"),
        (holding(workflow=workflow(b'{"workflow":NaN}')), "not JSON"),
        (holding(workflow=workflow(b"[" * 10**5)), "not JSON"),
        (holding(workflow=workflow(b'{"workflow":"<img>"}')), "no graph"),
        (holding(workflow=workflow() + b"more"), "followed by"),
        (holding(workflow=workflow()[:-5]), "cut off"),
        (holding(workflow=workflow(b'{"workflow":{"a":"' + bytes(2**26) + b'"}}')), "unpacks to more than"),
        (holding(workflow=workflow(b'{"workflow":{"a":[' + b"{}," * 3 * 10**6 + b"1]}}")), "too many values"),
        (holding(ghost=torch.ones(3)), "no tensor of an entry is called 'ghost'"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_name(forged, message):
    with pytest.raises(ValueError, match=message):
        unpack(STRANGER, forge.entry_file(new_entry(1), **forged))


@pytest.mark.parametrize(
    "name", ["checkpoint/abc", "checkpoint/nan", "checkpoint/-1", "checkpoint/", "checkpoint/2.000000"]
)
def test_a_state_at_no_sigma_of_the_schedule_is_refused(name):
    kept = {**tensors(1), name: torch.ones(SPACE.shape)}
    with pytest.raises(ValueError, match="checkpoint"):
        unpack(STRANGER, forge.entry_file(new_entry(1), tensors=kept))


def moved(name: str, first: int, last: int) -> dict[str, Any]:
    return {"header": lambda header: header[name].update(data_offsets=[first, last])}


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        (moved("final", 0, 2**40), "other than the bytes of its shape"),
        (moved("final", 512, 0), "other than the bytes of its shape"),
        (moved("final", -512, 0), "no place"),
        (moved("final", 0.0, 512.0), "no place"),
        (moved("checkpoint/0.937500", 0, 256), "one after the other"),  # the bytes of another tensor
        (moved("tokens", 800, 800 + 3328), "one after the other"),  # bytes that are nobody's
        ({"header": lambda header: header["final"].update(shape=[2**32, 2**32])}, "no shape|other than the bytes"),
        ({"header": lambda header: header["final"].update(dtype="F64")}, "cannot be read"),
        ({"header": lambda header: header.pop("tokens")}, "bytes of tensors instead of"),
    ],
)
def test_a_tensor_that_lies_elsewhere_than_it_should_is_refused(forged, message):
    with pytest.raises(ValueError, match=message):
        unpack(STRANGER, forge.entry_file(new_entry(1), **forged))


def test_states_far_beyond_any_latent_are_refused():
    kept = {**tensors(1), "checkpoint/0.500000": torch.full(SPACE.shape, 1e38)}
    with pytest.raises(ValueError, match=r"values from 1e\+38"):
        unpack(STRANGER, forge.entry_file(new_entry(1), tensors=kept))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 4000), (1, 1, 6000, 1, 1), (1, 16, 64, 256, 256), (1, 4, 16, 1024, 1024)]
)
def test_a_tensor_that_takes_much_more_room_than_its_file_is_not_decoded(shape, monkeypatch):
    content, described = forge.dct_of_zeros(shape)
    new = replace(new_entry(1), space=replace(SPACE, shape=shape))
    file = forge.entry_file(new, tensors={"final": content}, coded={"final": described})
    assert len(file) < 40_000

    def decoded(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("chorus.cache.codec.decode", decoded)
    with pytest.raises(ValueError, match=r"is coded as|too many for a file"):
        unpack(STRANGER, file)


def test_a_latent_of_nothing_is_still_stored_and_read(cache):
    """A tensor that compresses well is no bomb as long as it is small."""
    shape = (1, 16, 5, 60, 104)
    new = new_entry(
        1, space=replace(SPACE, shape=shape), tensors={"final": torch.zeros(shape)}, coding={"final": "dct/0.1"}
    )
    assert torch.equal(cache.load(cache.put(new).id)["final"], torch.zeros(shape))


def test_what_would_not_be_read_again_is_not_stored(cache, root):
    for changes in (
        {"tensors": {**tensors(1), "final": torch.full(SPACE.shape, math.nan)}},
        {"tensors": {**tensors(1), "checkpoint/0.500000": torch.full(SPACE.shape, 1e38)}},
        {"tensors": {**tensors(1), "final": torch.ones(3)}},
        {"tensors": {"tokens": torch.ones(3, 4)}},
        {"seconds": 1e300},
        {"sigmas": (0.0, 1.0)},
        {"settings": {"deep": DEEP}},
        {"parent": {}},
    ):
        with pytest.raises(ValueError):
            cache.put(new_entry(1, **changes))
    assert cache.stats().bytes == 0
    assert not [path for path in (root / "blobs").rglob("*") if path.is_file()]


def test_a_row_that_breaks_a_rule_is_damage_though_its_checksum_agrees(cache, monkeypatch):
    """As a row of a catalog that somebody else wrote."""
    sound = cache.put(new_entry(1))
    with monkeypatch.context() as unchecked:
        unchecked.setattr("chorus.cache.record.check_entry", lambda entry: None)
        with cache._catalog.writing() as transaction:
            record = write_record(STRANGER, 1.0, new_entry(2, seconds=1e300))
            transaction.insert(record, new_entry(2).vector, "0" * 64, 1000)
        assert len(cache.entries()) == 2
    assert [entry.id for entry in cache.entries()] == [sound.id]
    assert cache.get(STRANGER) is None


def test_the_header_of_a_sound_file_says_what_the_file_does(parts):
    content = mutated(parts, [])
    assert content is not None
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    header = read_header(head, len(content), STRANGER)
    assert_sound(read_record(header.record, size=header.size), EntryFile(content, header.digest).tensors())
    for size in (len(content) - 1, len(content) + 1):
        with pytest.raises((BlobDamaged, BlobNewer)):
            read_header(head, size, STRANGER)
