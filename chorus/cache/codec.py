"""Stores tensors in few bytes: transform coding for latents, bytes in planes for those that must not change, 8-bit
levels for words and maps, WebP for previews.

A coding is a text that says how one tensor is stored:

    raw          as it is
    planes       floats of any shape, exactly: the first bytes of all values, then the second ones, and so on
    dct/STEP     [..., C, T, H, W] floats: orthonormal DCT-II along T, H and W, levels of STEP channel spreads
    rows         [R, ...] floats: 8-bit levels, one scale a row
    webp         [F, H, W, 3] uint8: an animated WebP, lossy

A tensor that a coding does not fit (another type or rank, NaN, infinity, a row of words with one value far above the
others) is stored raw: see `fitting`. What is decoded
has the shape and type of what was encoded. docs/format.md has the bytes.

The spread of a channel is its standard deviation over T, H and W, but no less than `LEAST_SPREAD` of its largest
magnitude. The transform is orthonormal, so the root mean square error of a channel is at most STEP/2 spreads
(about STEP/√12 as a rule). A value of `rows` is off by at most 1/254 of the largest magnitude of its row. Rounding to
the tensor's type comes on top.
"""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import zstandard

RAW, PLANES = "raw", "planes"
LEAST_STEP, MOST_STEP = 0.01, 4.0  # in channel spreads
LEAST_SPREAD = 1e-3  # of a channel's largest magnitude, so that levels fit in 32 bits
LEAST_UNIT = 1e-30  # levels of less than this are not told from zero
MAX_VALUES = 2**26  # of a coded tensor: six times a 1080p latent of 5 seconds; beyond is a bomb
MAX_AXIS = 1024  # of a transform, which makes a matrix of that size squared
MAX_PLACES = 2**23  # of a transform, T·H·W, which are sorted
MAX_MAGNITUDE = {torch.float16: 65504.0, torch.bfloat16: 1e12, torch.float32: 1e12}  # sums of squares stay finite
WEBP_SIDE = 16383  # pixels, WebP's own limit
WEBP_FRAME_MS = 100  # every frame is shown so long, which also tells frames that WebP has merged
WEBP_QUALITY = 70
WEBP_METHOD = 3  # of 0, fast, to 6, small
MOST_PEAK = 40.0  # of a row of `rows`, over its mean magnitude
LEVEL = 1  # of zstandard: the levels look like noise, in which higher ones find matches that cost more than they save

_DCT = re.compile(r"dct/([0-9]+(?:\.[0-9]+)?)")
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*MAX_MAGNITUDE, torch.uint8)}
_AT_ONCE = 2**24  # values that are transformed at once, so that a large tensor takes little more than its own room
_SMALL, _MIDDLE = 7, 127  # largest levels in four and in eight bits


class CodingDamaged(Exception):
    """Coded bytes that this codec did not write; the text says what is wrong."""


def dct(step: float) -> str:
    """The coding of a latent in levels of `step` channel spreads."""
    return f"dct/{min(MOST_STEP, max(LEAST_STEP, step)):.4g}"


def check(coding: str) -> None:
    """ValueError unless `coding` is one."""
    if coding not in (RAW, PLANES, "rows", "webp"):
        _step(coding)


def _step(coding: str) -> float:
    found = _DCT.fullmatch(coding)
    if not found or not LEAST_STEP <= float(found[1]) <= MOST_STEP:
        raise ValueError(
            f"coding {coding[:80]!r}: expected raw, planes, rows, webp, or dct/STEP with STEP from {LEAST_STEP} "
            f"to {MOST_STEP}"
        )
    return float(found[1])


def fitting(tensor: torch.Tensor, coding: str) -> str:
    """`coding` where it fits the tensor, else "raw". ValueError when it is no coding.

    Of a meta tensor, which has no values, only shape and type are asked.
    """
    check(coding)
    if coding == RAW or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return RAW
    if not _fits(tensor.shape, tensor.dtype, coding):
        return RAW
    if tensor.is_meta:
        return coding
    if tensor.is_floating_point() and not float(tensor.abs().max()) <= MAX_MAGNITUDE[tensor.dtype]:  # NaN, too
        return RAW
    if coding == "rows" and _has_peaks(tensor):
        return RAW
    return coding


def _has_peaks(tensor: torch.Tensor) -> bool:
    """Whether a row has a value so far above the others that eight bits would hold little else."""
    rows = tensor.detach().reshape(len(tensor), -1).float().abs()
    return bool((rows.amax(dim=1) > MOST_PEAK * rows.mean(dim=1)).any())


def _fits(shape: tuple[int, ...], dtype: torch.dtype, coding: str) -> bool:
    if not 0 < math.prod(shape) <= MAX_VALUES:
        return False
    if coding == "webp":
        return dtype == torch.uint8 and len(shape) == 4 and shape[3] == 3 and max(shape[1:3]) <= WEBP_SIDE
    if coding in ("rows", PLANES):
        return dtype in MAX_MAGNITUDE and len(shape) >= 1
    places = shape[-3:]
    transformed = len(shape) >= 4 and max(places) <= MAX_AXIS and math.prod(places) <= MAX_PLACES
    return dtype in MAX_MAGNITUDE and transformed


@dataclass(frozen=True)
class Coded:
    """What the bytes of a coded tensor are, and what the tensor was. Every value of it is checked.

    CodingDamaged when no tensor of this shape and type is coded so.
    """

    coding: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self):
        try:
            check(self.coding)
            sizes_known = all(type(size) is int and size > 0 for size in self.shape)
            if not sizes_known or len(self.shape) > 8 or not _fits(self.shape, _DTYPES[self.dtype], self.coding):
                shape = str(list(self.shape[:9]))[:100]
                raise ValueError(f"no {self.dtype[:20]} tensor of shape {shape} is coded as {self.coding!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise CodingDamaged(str(error)) from error

    @classmethod
    def of(cls, tensor: torch.Tensor, coding: str) -> Coded:
        return cls(coding, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @classmethod
    def from_json(cls, fields: Any) -> Coded:
        """From the object that `to_json` gives, read from a file. CodingDamaged."""
        if not isinstance(fields, Mapping) or set(fields) != {"coding", "dtype", "shape"}:
            raise CodingDamaged(f"{repr(fields)[:100]} does not say how a tensor is coded")
        coding, dtype, shape = fields["coding"], fields["dtype"], fields["shape"]
        if not isinstance(coding, str) or not isinstance(dtype, str) or not isinstance(shape, list):
            raise CodingDamaged(f"{repr(fields)[:100]} does not say how a tensor is coded")
        return cls(coding, dtype, tuple(shape))

    def to_json(self) -> dict[str, Any]:
        return {"coding": self.coding, "dtype": self.dtype, "shape": list(self.shape)}


def encode(tensor: torch.Tensor, coding: str) -> bytes:
    """The bytes of a tensor under a coding that fits it, not raw. From any device, which also does the transform."""
    tensor = tensor.detach()
    if coding == "webp":
        return _encode_webp(tensor.cpu().numpy())
    if coding == PLANES:
        return _compressed(_planes(tensor))
    if coding == "rows":
        return _compressed(*_row_parts(tensor))
    return _compressed(*_dct_parts(tensor, _step(coding)))


def decode(content: bytes | memoryview, coded: Coded, device: torch.device | str = "cpu") -> torch.Tensor:
    """The tensor that `encode` was given, as near as its coding is, on `device`; the same bytes give the same tensor.

    Nothing is allocated that the declared shape does not explain. CodingDamaged.
    """
    dtype = _DTYPES[coded.dtype]
    if coded.coding == "webp":
        return torch.from_numpy(_decode_webp(content, coded.shape)).to(device)
    if coded.coding == "rows":
        return _from_rows(content, coded.shape, device).to(dtype)
    if coded.coding == PLANES:
        return _from_planes(content, coded.shape, dtype).to(device)
    largest = torch.finfo(dtype).max
    return _from_dct(content, coded.shape, _step(coded.coding), device).clamp_(-largest, largest).to(dtype)


# -- bytes


def _compressed(*parts: np.ndarray) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(part.tobytes() for part in parts))


def _decompressed(content: bytes | memoryview, least: int, most: int) -> np.ndarray:
    """The one zstandard frame in `content`, of `least` to `most` bytes by its own account: uint8 [n]."""
    try:
        size = zstandard.frame_content_size(content)
        if not least <= size <= most:
            raise CodingDamaged(f"it unpacks to {size} bytes; its shape allows {least} to {most}")
        plain = zstandard.ZstdDecompressor(max_window_size=2**27).decompress(content, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodingDamaged(f"zstandard: {error}") from error
    return np.frombuffer(plain, np.uint8)


def _floats(part: np.ndarray) -> np.ndarray:
    """Scales from their bytes, [n] float32: finite and not negative."""
    scales = part.view("<f4")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise CodingDamaged("a scale is negative or not finite")
    return scales.astype(np.float32)  # a copy, in this machine's byte order


# -- bytes in planes


def _planes(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of each value, the lowest first: [size of a value, number of values] uint8.

    Signs and exponents of neighbours are alike, so that their plane packs well; mantissas of floats do not pack.
    """
    values = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().reshape(-1, tensor.element_size())
    return np.ascontiguousarray((values if sys.byteorder == "little" else values[:, ::-1]).T)


def _from_planes(content: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = dtype.itemsize * math.prod(shape)
    values = _decompressed(content, size, size).reshape(dtype.itemsize, -1).T
    ordered = (values if sys.byteorder == "little" else values[:, ::-1]).copy()
    return torch.from_numpy(ordered).view(dtype).reshape(shape)


# -- eight bits a row


def _row_parts(tensor: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(scales [R] float32, levels [R, M] int8)."""
    rows = tensor.reshape(len(tensor), -1).float()
    scales = rows.abs().amax(dim=1) / 127
    levels = (rows / torch.where(scales > 0, scales, 1.0)[:, None]).round().clamp(-127, 127)
    return scales.cpu().numpy().astype("<f4"), levels.to(torch.int8).cpu().numpy()


def _from_rows(content: bytes | memoryview, shape: tuple[int, ...], device: torch.device | str) -> torch.Tensor:
    size = 4 * shape[0] + math.prod(shape)
    plain = _decompressed(content, size, size)
    scales = torch.from_numpy(_floats(plain[: 4 * shape[0]])).to(device)
    levels = torch.from_numpy(plain[4 * shape[0] :].view(np.int8).copy()).to(device)
    return (levels.reshape(shape[0], -1).float() * scales[:, None]).reshape(shape)


# -- transform coding


@lru_cache(maxsize=16)
def _basis(n: int, device: torch.device) -> torch.Tensor:
    """The orthonormal DCT-II of length n, [frequency, place] float32 (Ahmed, Natarajan and Rao, 1974)."""
    frequency, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * place + 1) * frequency / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.float().to(device)


@lru_cache(maxsize=4)
def _order(t: int, h: int, w: int) -> torch.Tensor:
    """Places of the coefficients [T·H·W] by rising frequency, each axis in units of its length: zeros come last."""
    t_square, h_square, w_square = ((torch.arange(n, dtype=torch.float64) / n).square() for n in (t, h, w))
    return (t_square[:, None, None] + h_square[:, None] + w_square).flatten().argsort(stable=True)


def _transform(x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """The DCT of [N, T, H, W] float32 along T, H and W, or its inverse."""
    n, t, h, w = x.shape
    for_t, for_h, for_w = (_basis(size, x.device).T if inverse else _basis(size, x.device) for size in (t, h, w))
    x = for_h @ (x @ for_w.T)
    return (for_t @ x.reshape(n, t, h * w)).reshape(n, t, h, w)


def _dct_parts(tensor: torch.Tensor, step: float) -> list[np.ndarray]:
    """Spreads [N] float32, then the levels in the widths that they need; N channels of all batch items."""
    t, h, w = tensor.shape[-3:]
    x = tensor.reshape(-1, t, h, w).float()
    frequencies = _transform(x).reshape(len(x), -1)
    deviation = torch.linalg.vector_norm(frequencies[:, 1:], dim=1) / math.sqrt(t * h * w)  # by Parseval
    spreads = torch.maximum(deviation, LEAST_SPREAD * x.abs().amax(dim=(1, 2, 3)))
    levels = (frequencies / _units(spreads, step)[:, None]).round()
    levels = levels.T.index_select(0, _order(t, h, w).to(x.device)).flatten()
    return [spreads.cpu().numpy().astype("<f4"), *_widths(levels)]


def _units(spreads: torch.Tensor, step: float) -> torch.Tensor:
    units = step * spreads
    return torch.where(units > LEAST_UNIT, units, 1.0)


def _widths(levels: torch.Tensor) -> list[np.ndarray]:
    """Whole numbers [n] as half bytes; those that do not fit in int8 for each half byte 0; those beyond in int32."""
    beyond = levels.abs() > _SMALL
    middle = levels[beyond]
    halves = (levels.masked_fill_(beyond, -_SMALL - 1) + (_SMALL + 1)).to(torch.uint8)
    halves = torch.nn.functional.pad(halves, (0, len(halves) % 2), value=_SMALL + 1)
    pairs = halves[0::2] | (halves[1::2] << 4)
    large = middle.abs() > _MIDDLE
    rest = middle[large].to(torch.int32).cpu().numpy().astype("<i4")
    return [pairs.cpu().numpy(), middle.masked_fill_(large, -_MIDDLE - 1).to(torch.int8).cpu().numpy(), rest]


def _from_widths(plain: np.ndarray, n: int, device: torch.device | str) -> torch.Tensor:
    """The n whole numbers that `_widths` wrote: [n] float32 on `device`."""
    end = (n + 1) // 2
    halves = np.empty(2 * end, np.uint8)
    np.bitwise_and(plain[:end], 15, out=halves[0::2])
    np.right_shift(plain[:end], 4, out=halves[1::2])
    beyond = np.flatnonzero(halves[:n] == 0)
    middle = plain[end : end + len(beyond)].view(np.int8)
    large = np.flatnonzero(middle == -_MIDDLE - 1)
    rest = plain[end + len(beyond) :]
    if len(middle) != len(beyond) or len(rest) != 4 * len(large):
        raise CodingDamaged(f"{len(plain) - end} bytes for {len(beyond)} levels beyond four bits")
    levels = torch.from_numpy(halves[:n]).to(device).float() - (_SMALL + 1)
    values = middle.astype(np.float32)
    values[large] = rest.view("<i4")
    levels[torch.from_numpy(beyond).to(device)] = torch.from_numpy(values).to(device)
    return levels


def _from_dct(
    content: bytes | memoryview, shape: tuple[int, ...], step: float, device: torch.device | str
) -> torch.Tensor:
    t, h, w = shape[-3:]
    channels, values = math.prod(shape[:-3]), math.prod(shape)
    least = 4 * channels + (values + 1) // 2
    plain = _decompressed(content, least, least + 5 * values)
    units = _units(torch.from_numpy(_floats(plain[: 4 * channels])), step).to(device)
    levels = _from_widths(plain[4 * channels :], values, device).reshape(t * h * w, channels)
    places = _order(t, h, w).argsort().to(device)
    group = max(1, _AT_ONCE // (t * h * w))
    out = torch.empty((channels, t, h, w), device=device)
    for some in (slice(first, first + group) for first in range(0, channels, group)):
        frequencies = levels[:, some].index_select(0, places).T * units[some, None]
        out[some] = _transform(frequencies.reshape(-1, t, h, w), inverse=True)
    return out.reshape(shape)


# -- WebP


def _encode_webp(frames: np.ndarray) -> bytes:
    """Frames [F, H, W, 3] uint8 as an animated WebP that runs for ever."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in np.ascontiguousarray(frames)]
    out = io.BytesIO()
    images[0].save(
        out,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=WEBP_FRAME_MS,
        loop=0,
        quality=WEBP_QUALITY,
        method=WEBP_METHOD,
    )
    return out.getvalue()


def _decode_webp(content: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """The frames, each as often as its duration says, since WebP merges equal ones."""
    from PIL import Image

    if not is_webp(content, shape):
        raise CodingDamaged(f"it is no WebP of {shape[2]} × {shape[1]} pixels")
    frames: list[np.ndarray] = []
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            count = getattr(image, "n_frames", 1)
            if count > shape[0]:
                raise CodingDamaged(f"it has {count} frames instead of {shape[0]}")
            for number in range(count):
                image.seek(number)
                image.load()
                times = shape[0] if count == 1 else round(image.info["duration"] / WEBP_FRAME_MS)
                if not 0 < times <= shape[0] - len(frames):
                    raise CodingDamaged(f"frame {number} is shown {times} times")
                frames += [np.asarray(image.convert("RGB"))] * times
    except (OSError, ValueError, KeyError, EOFError, SyntaxError) as error:
        raise CodingDamaged(f"WebP: {error}") from error
    if len(frames) != shape[0]:
        raise CodingDamaged(f"it shows {len(frames)} frames instead of {shape[0]}")
    return np.stack(frames)


def is_webp(content: bytes | memoryview, shape: tuple[int, ...]) -> bool:
    """Whether the bytes begin as a WebP does that shows frames of `shape`, [F, H, W, 3]."""
    return _webp_size(bytes(content[:30])) == (shape[2], shape[1])


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) that the first chunk of a WebP declares, before any decoder makes room for it."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8 ":  # one frame
        width, height = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None
