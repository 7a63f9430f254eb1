"""What is coded comes back within the bounds that the codec states, and nothing else is unpacked."""

from __future__ import annotations

import io
import math
from contextlib import suppress

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chorus.cache import codec
from chorus.cache.codec import Coded, CodingDamaged, decode, encode, fitting

STEPS = (0.01, 0.05, 0.3, 1.0, 4.0)
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the largest magnitude
SUBNORMAL = 2.0**-25  # half a step of the smallest fp16 numbers

latent_shapes = st.lists(st.integers(1, 9), min_size=4, max_size=6).map(tuple)
dtypes = st.sampled_from(list(ROUNDING))


def drawn(shape, dtype, kind, seed) -> torch.Tensor:
    """Values of a kind: noise, smooth, constant, with a far mean, or nearly nothing."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "smooth":
            values = values.cumsum(-1).cumsum(0)
        case "constant":
            values = torch.full(shape, 3.25)
        case "far mean":
            values = 100 + 0.01 * values
        case "outlier":
            values.flatten()[seed % values.numel()] = 5000.0
        case "tiny":
            values *= 1e-6
        case "zero":
            values *= 0
    return values.to(dtype)


kinds = st.sampled_from(["noise", "smooth", "constant", "far mean", "outlier", "tiny", "zero"])


def coded_and_back(tensor: torch.Tensor, coding: str) -> torch.Tensor:
    assert fitting(tensor, coding) == coding
    return decode(encode(tensor, coding), Coded.of(tensor, coding))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple), dtypes, kinds, st.integers(0, 999))
def test_planes_give_back_every_bit(shape, dtype, kind, seed):
    tensor = drawn(shape, dtype, kind, seed)
    tensor.flatten()[0] = -0.0
    bits = tensor.contiguous().view(torch.uint8)
    assert torch.equal(coded_and_back(tensor, "planes").view(torch.uint8), bits)
    turned = tensor.movedim(-1, 0)  # not contiguous
    assert torch.equal(coded_and_back(turned, "planes"), turned)


def test_planes_of_a_latent_take_less_room():
    latent = drawn((1, 16, 5, 24, 24), torch.float32, "noise", 1)
    assert len(encode(latent, "planes")) < 0.87 * 4 * latent.numel()


def test_planes_of_another_size_are_damage():
    content = encode(torch.ones(3, 5), "planes")
    with pytest.raises(CodingDamaged, match="its shape allows 64 to 64"):
        decode(content, Coded("planes", "float32", (4, 4)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(latent_shapes, dtypes, kinds, st.sampled_from(STEPS), st.integers(0, 999))
def test_latents_come_back_within_half_a_step(shape, dtype, kind, step, seed):
    tensor = drawn(shape, dtype, kind, seed)
    back = coded_and_back(tensor, codec.dct(step))
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    channels, found = (x.double().reshape(-1, math.prod(shape[-3:])) for x in (tensor, back))
    largest = channels.abs().amax(1)
    spread = torch.maximum(channels.std(1, correction=0), codec.LEAST_SPREAD * largest)
    error = (channels - found).square().mean(1).sqrt()
    bound = step / 2 * spread + ROUNDING[dtype] * torch.maximum(largest, found.abs().amax(1)) + SUBNORMAL
    assert (error <= bound).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple), dtypes, kinds, st.integers(0, 999))
def test_rows_come_back_within_half_a_level(shape, dtype, kind, seed):
    tensor = drawn(shape, dtype, kind, seed)
    if fitting(tensor, "rows") == "raw":
        assert kind == "outlier"
        return
    back = coded_and_back(tensor, "rows")
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
    rows, found = tensor.double().reshape(shape[0], -1), back.double().reshape(shape[0], -1)
    largest = rows.abs().amax(1, keepdim=True)
    assert ((rows - found).abs() <= largest * (1 / 254 + ROUNDING[dtype]) + SUBNORMAL).all()


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (6, 33, 20, 3), (24, 1, 1, 3)])
def test_previews_come_back_as_many_frames_of_the_same_size_and_look(shape):
    f, h, w, _ = shape
    y, x, t = np.ogrid[0:h, 0:w, 0:f]
    ramp = np.stack([y * 200 / h + 0 * x + 0 * t, x * 200 / w + 0 * y + 0 * t, t * 200 / f + 0 * x + 0 * y])
    frames = torch.from_numpy(ramp).permute(3, 1, 2, 0).to(torch.uint8).contiguous()
    back = coded_and_back(frames, "webp")
    assert (back.shape, back.dtype) == (frames.shape, torch.uint8)
    assert (back.int() - frames.int()).abs().float().mean() < 6


@pytest.mark.parametrize("equal", [[0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 1, 1], [0]])
def test_frames_that_webp_merges_are_told_apart_again(equal):
    two = torch.tensor([30, 220], dtype=torch.uint8)[:, None, None, None].expand(2, 16, 16, 3)
    frames = two[equal]
    back = coded_and_back(frames, "webp")
    assert back.shape == frames.shape
    assert [int(frame.float().mean() > 128) for frame in back] == equal


def test_the_same_bytes_decode_to_the_same_tensor():
    tensor = drawn((1, 16, 5, 12, 20), torch.float32, "smooth", 1)
    content = encode(tensor, "dct/0.1")
    assert content == encode(tensor.clone(), "dct/0.1")
    described = Coded.of(tensor, "dct/0.1")
    assert torch.equal(decode(content, described), decode(content, described))


def test_coarser_steps_take_fewer_bytes_and_all_fewer_than_half_precision():
    tensor = drawn((1, 16, 8, 24, 24), torch.float32, "noise", 1)
    sizes = [len(encode(tensor, codec.dct(step))) for step in (0.02, 0.05, 0.2, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 2 * tensor.numel()


@pytest.mark.parametrize(
    ("tensor", "coding"),
    [
        (torch.full((1, 4, 2, 3, 3), math.nan), "dct/0.1"),
        (torch.full((1, 4, 2, 3, 3), math.inf), "dct/0.1"),
        (torch.full((4, 3), -math.inf, dtype=torch.float16), "rows"),
        (torch.full((1, 4, 2, 3, 3), 1e20), "dct/0.1"),
        (torch.zeros(2, 3, 3), "dct/0.1"),
        (torch.zeros(1, 4, 0, 3, 3), "dct/0.1"),
        (torch.zeros(1, 4, 2, 3, 3, dtype=torch.float64), "dct/0.1"),
        (torch.zeros(1, 4, 2, 3, 3, dtype=torch.int32), "dct/0.1"),
        (torch.zeros((), dtype=torch.float32), "rows"),
        (torch.zeros(0, 5), "rows"),
        (torch.nn.functional.pad(torch.ones(3, 400), (1, 0), value=200.0), "rows"),
        (torch.zeros(2, 3, dtype=torch.complex64), "rows"),
        (torch.zeros(2, 8, 8, 3), "webp"),
        (torch.zeros(2, 8, 8, 4, dtype=torch.uint8), "webp"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), "webp"),
        (torch.zeros(1, 1, codec.WEBP_SIDE + 1, 3, dtype=torch.uint8), "webp"),
        (torch.eye(3).to_sparse(), "rows"),
    ],
)
def test_what_a_coding_does_not_fit_stays_raw(tensor, coding):
    assert fitting(tensor, coding) == "raw"


@pytest.mark.parametrize("coding", ["", "dct", "dct/", "dct/0", "dct/9", "dct/nan", "dct/1e-1", "dct/0.1 ", "zip"])
def test_an_unknown_coding_is_refused_by_name(coding):
    with pytest.raises(ValueError, match="expected raw, planes, rows, webp, or dct/STEP"):
        fitting(torch.zeros(2, 2, 2, 2), coding)


# -- bytes that this codec did not write

DCT = Coded("dct/0.1", "float32", (1, 2, 2, 4, 4))
ROWS = Coded("rows", "float16", (4, 16))
WEBP = Coded("webp", "uint8", (3, 16, 16, 3))


def good(coded: Coded) -> bytes:
    if coded.coding == "webp":
        return encode(torch.arange(3 * 16 * 16 * 3).reshape(3, 16, 16, 3).to(torch.uint8), "webp")
    return encode(drawn(coded.shape, getattr(torch, coded.dtype), "outlier", 7), coded.coding)


def frame(size: int, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(bytes(size))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a frame",
        frame(64),  # fewer bytes than the shape has
        frame(2**24),  # more than its levels could take
        frame(40),  # levels of which all are beyond four bits, without them
        frame(40, write_content_size=False),
        frame(40) + b"more",
        good(DCT)[:-1],
        zstandard.compress(b"\xff" * 8 + b"\x88" * 32),  # scales that are not finite
    ],
)
def test_hostile_bytes_of_a_latent_are_refused(content):
    with pytest.raises(CodingDamaged):
        decode(content, DCT)


@pytest.mark.parametrize(
    "content", [b"", frame(79), frame(81), frame(2**28), zstandard.compress(b"\xff" * 80), good(ROWS)[:9]]
)
def test_hostile_bytes_of_rows_are_refused(content):
    with pytest.raises(CodingDamaged):
        decode(content, ROWS)


def test_a_bomb_is_refused_before_its_bytes_are_made(monkeypatch):
    bomb = frame(2**28)
    assert len(bomb) < 2**16

    def unpacked(**options):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(zstandard, "ZstdDecompressor", unpacked)
    for coded in (DCT, ROWS):
        with pytest.raises(CodingDamaged, match="unpacks to 268435456 bytes"):
            decode(bomb, coded)


def webp(frames: int, side: int, **options) -> bytes:
    images = [Image.new("RGB", (side, side), (40 * n % 256, 0, 0)) for n in range(frames)]
    out = io.BytesIO()
    fields = {"duration": codec.WEBP_FRAME_MS, **options}
    images[0].save(out, "WEBP", save_all=True, append_images=images[1:], **fields)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RIFF\0\0\0\0WEBPVP8X" + bytes(14),
        webp(3, 17),
        webp(4, 16),
        webp(2, 16),
        webp(3, 16, duration=10_000),
        webp(3, 16, duration=1),
        good(WEBP)[:-20],
        good(WEBP)[:40],
    ],
)
def test_hostile_previews_are_refused(content):
    with pytest.raises(CodingDamaged):
        decode(content, WEBP)


def test_a_preview_that_declares_another_canvas_never_meets_the_decoder(monkeypatch):
    def opened(*arguments, **options):
        raise AssertionError("the decoder was asked")

    head = bytearray(good(WEBP))
    head[24:30] = b"\xfe\x3f\0\xfe\x3f\0"  # 16383 × 16383 pixels
    monkeypatch.setattr(Image, "open", opened)
    with pytest.raises(CodingDamaged, match="16 × 16"):
        decode(bytes(head), WEBP)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([DCT, ROWS, WEBP]), st.data())
def test_flipped_bytes_are_refused_or_decode_to_the_declared_shape(coded, data):
    """Checksums come first; where someone made them fit, no other error and no other shape may come of it."""
    content = bytearray(good(coded))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CodingDamaged):
        assert tuple(decode(bytes(content), coded).shape) == coded.shape


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {},
        {"coding": "rows", "dtype": "float16"},
        {"coding": "rows", "dtype": "float16", "shape": [2, 2], "more": 1},
        {"coding": "raw", "dtype": "float16", "shape": [2, 2]},
        {"coding": "dct/0.1", "dtype": "float64", "shape": [1, 1, 1, 1]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [2, 2]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [1, 1, 1, 0]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [1, 1, 1, -4]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [1, 1, 1, True]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [1, 1, 1, 2.0]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [2**15, 2**15, 1, 1]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [10**400, 1, 1, 1]},
        {"coding": "dct/0.1", "dtype": "float32", "shape": [1] * 9},
        {"coding": "dct/0.1", "dtype": "float32", "shape": "1111"},
        {"coding": ["rows"], "dtype": "float32", "shape": [1]},
        {"coding": "webp", "dtype": "uint8", "shape": [1, 2, 2, 4]},
    ],
)
def test_descriptions_that_no_tensor_has_are_refused(fields):
    with pytest.raises(CodingDamaged):
        Coded.from_json(fields)
