"""The file of an entry, to bytes and from bytes: safetensors, with checksums over every byte. See docs/format.md.

A file's header carries the SHA-256 of its tensor bytes, and whoever keeps the file also keeps the SHA-256 of its
head (length prefix and header); together they cover every byte. The header also carries the entry's record, its
vector and its own checksum, so that a lost catalog can be rebuilt from the headers alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .entry import Entry, canonical_json, unit_vector
from .record import read_record
from .rules import Layout, check_expansion, check_layout, check_values

if TYPE_CHECKING:
    import torch

    from .codec import Coded

FORMAT_VERSION = "4"
READ_VERSIONS = ("1", "2", "3", "4")
MAX_HEADER = 16 * 2**20  # bytes; ordinary ones have some 20,000
PREFIX = struct.Struct("<Q")

# safetensors' types that an entry may have → torch's name, size in bytes.
_TYPES = {"F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "U8": ("uint8", 1)}
_PIECE = 2**20  # values of a raw tensor that are checked at once
# What reading a header of any content may raise.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


class BlobDamaged(Exception):
    """A file's bytes are not what was written; the text says what disagrees."""


class BlobNewer(Exception):
    """A file is whole, but of a format version that this Chorus does not know."""


@dataclass(frozen=True)
class Packed:
    """An entry as it will be stored: `head` (length prefix and header), then `body` (tensor bytes).

    digest: SHA-256 of `head`, to be kept elsewhere, as the catalog does.
    """

    record: str
    head: bytes
    body: memoryview
    digest: str

    @property
    def size(self) -> int:
        return len(self.head) + len(self.body)

    def to_bytes(self) -> bytes:
        """The whole file."""
        return self.head + self.body


@dataclass(frozen=True)
class Header:
    """What a file says about itself. vector: [D] float32. digest: SHA-256 of its head. size: in bytes."""

    record: str
    vector: np.ndarray
    digest: str
    size: int


def pack(
    record: str, vector: np.ndarray, tensors: Mapping[str, torch.Tensor], coding: Mapping[str, str] | None = None
) -> Packed:
    """The file for `tensors`, with the entry's `record` (canonical JSON) and `vector` in its header.

    coding: how tensors are coded, by name (see codec.py); those it does not name, or does not fit, are stored raw.
    ValueError for what would not be read again, which breaks a rule of rules.py, or that safetensors cannot store.
    """
    _check(read_record(record, size=0), tensors)
    stored, coded = _encoded(tensors, coding or {})
    plain = _safetensors_bytes(stored)
    (length,) = PREFIX.unpack_from(plain)
    body = memoryview(plain)[PREFIX.size + length :]
    header = json.loads(plain[PREFIX.size : PREFIX.size + length])
    metadata = {
        "chorus_format": FORMAT_VERSION,
        "record": record,
        "coded": canonical_json({name: how.to_json() for name, how in coded.items()}),
        "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"),
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }
    header["__metadata__"] = metadata
    metadata["header_sha256"] = _header_checksum(header)
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # safetensors wants the tensor bytes aligned
    if len(text) > MAX_HEADER:
        raise ValueError(f"an entry's header has {len(text):,} bytes, more than {MAX_HEADER:,}")
    head = PREFIX.pack(len(text)) + text
    check_expansion(_values(coded), len(head) + len(body))
    return Packed(record, head, body, hashlib.sha256(head).hexdigest())


def _check(entry: Entry, tensors: Mapping[str, torch.Tensor]) -> None:
    """ValueError unless these are the tensors that `entry` speaks of, and sound ones."""
    try:
        types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        check_layout(entry, {name: Layout(types[name], tuple(tensor.shape)) for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            check_values(name, tensor.detach())
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"a tensor of {', '.join(map(repr, tensors))} cannot be stored: {error}") from error


def _values(coded: Mapping[str, Coded]) -> int:
    """How many values are decoded, but for the preview, whose size has a limit of its own."""
    return sum(math.prod(how.shape) for how in coded.values() if how.coding != "webp")


def _encoded(
    tensors: Mapping[str, torch.Tensor], coding: Mapping[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, Coded]]:
    """What is stored under each name, and how those are coded that are not raw."""
    if not coding:
        return dict(tensors), {}
    import torch

    from . import codec

    stored, coded = dict(tensors), {}
    for name, asked in coding.items():
        if (fitting := codec.fitting(tensors[name], asked)) != codec.RAW:
            stored[name] = torch.frombuffer(bytearray(codec.encode(tensors[name], fitting)), dtype=torch.uint8)
            coded[name] = codec.Coded.of(tensors[name], fitting)
    return stored, coded


def _safetensors_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """`tensors` in the safetensors format, from any device, strides or shared storage."""
    from safetensors.torch import save

    plain, storages = {}, set()
    for name, tensor in tensors.items():
        try:
            tensor = tensor.detach().cpu().contiguous()
            storage = tensor.untyped_storage().data_ptr()
            plain[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses sharing
            storages.add(storage)
        except (AttributeError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"tensor {name!r} ({type(tensor).__name__}) cannot be stored: {error}") from error
    try:
        return save(plain)
    except KeyError as error:
        raise ValueError(f"tensors of type {error} cannot be stored: convert them first") from error


def _header_checksum(header: dict) -> str:
    metadata = {key: text for key, text in header["__metadata__"].items() if key != "header_sha256"}
    return hashlib.sha256(canonical_json({**header, "__metadata__": metadata}).encode()).hexdigest()


def header_length(content: memoryview | bytes) -> int:
    """Length of the header behind the prefix, in bytes, as the prefix claims. BlobDamaged when it cannot be."""
    if len(content) < PREFIX.size:
        raise BlobDamaged(f"it has only {len(content)} bytes")
    (length,) = PREFIX.unpack_from(content)
    if length > MAX_HEADER:
        raise BlobDamaged(f"its header claims {length} bytes")
    return length


def read_header(head: bytes, size: int, entry_id: str) -> Header:
    """The header of an entry's file, from its head alone, by its own checksum. The tensors' bytes are not looked at.

    head: the prefix and as many bytes as it claims; size: of the whole file, in bytes; entry_id: whose file it
    should be. Raises BlobDamaged; BlobNewer.
    """
    try:
        header = json.loads(head[PREFIX.size :])
        metadata = header["__metadata__"]
        if metadata["header_sha256"] != _header_checksum(header):
            raise BlobDamaged("its header does not have its own checksum")
        _require_known(metadata)
        if json.loads(metadata["record"])["id"] != entry_id:
            raise BlobDamaged("it is a copy of another entry's file")
        vector = unit_vector(np.frombuffer(base64.b64decode(metadata["vector"], validate=True), "<f4"))
        _Described.by(header, size - len(head), size)
    except _UNREADABLE as error:
        raise BlobDamaged(f"its header cannot be read ({error})") from error
    return Header(metadata["record"], vector, hashlib.sha256(head).hexdigest(), size)


def _require_known(metadata: Mapping[str, str]) -> None:
    version = metadata["chorus_format"]
    if version in READ_VERSIONS:
        return
    if version.isdecimal() and int(version) > int(FORMAT_VERSION):
        raise BlobNewer(f"its format version {version} is newer than this Chorus")
    raise BlobDamaged(f"its format version {version!r} is unknown")


@dataclass(frozen=True)
class _Part:
    """A tensor as it is stored: its type, its shape, and its bytes [first, last) from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def of(cls, name: str, described: Mapping) -> _Part:
        dtype, size = _TYPES[described["dtype"]]
        first, last = described["data_offsets"]
        shape = tuple(described["shape"])
        numbers = (first, last, *shape)
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise ValueError(f"tensor {name!r} has no shape or no place")
        if last - first != size * math.prod(shape):
            raise ValueError(f"tensor {name!r} has other than the bytes of its shape")
        return cls(dtype, shape, first, last)


@dataclass(frozen=True)
class _Described:
    """What a header says, checked as far as that goes without the tensors' bytes.

    coded: those of the tensors that are not raw. Files of version 1 have only raw ones.
    """

    entry: Entry
    parts: Mapping[str, _Part]
    coded: Mapping[str, Coded]

    @classmethod
    def by(cls, header: Mapping, body: int, size: int) -> _Described:
        """body, size: bytes behind the header, and of the whole file. Raises what is in _UNREADABLE."""
        metadata = header["__metadata__"]
        entry = read_record(metadata["record"], size=size)
        parts = {name: _Part.of(name, header[name]) for name in header if name != "__metadata__"}
        end = 0
        for part in sorted(parts.values(), key=lambda part: (part.first, part.last)):
            if part.first != end:
                raise ValueError("its tensors do not lie one after the other")
            end = part.last
        if end != body:
            raise ValueError(f"it has {body} bytes of tensors instead of {end}")
        coded = _read_coded(metadata["coded"], parts) if "coded" in metadata else {}
        if {name: how.coding for name, how in coded.items()} != entry.coding:
            raise ValueError("its tensors are coded otherwise than its record says")
        stored = {name: Layout(part.dtype, part.shape) for name, part in parts.items()}
        check_layout(entry, stored | {name: Layout(how.dtype, how.shape) for name, how in coded.items()})
        check_expansion(_values(coded), size)
        return cls(entry, parts, coded)


def _read_coded(text: str, parts: Mapping[str, _Part]) -> dict[str, Coded]:
    from .codec import Coded, CodingDamaged

    try:
        coded = {name: Coded.from_json(how) for name, how in json.loads(text).items()}
    except CodingDamaged as error:
        raise ValueError(f"it does not say how its tensors are coded ({error})") from error
    for name in coded:
        if parts[name].dtype != "uint8" or len(parts[name].shape) != 1:
            raise ValueError(f"its tensor {name!r} is not the bytes of a coded one")
    return coded


class EntryFile:
    """An entry's file in memory, of which every byte was verified. Tensors are decoded when they are asked for.

    content: the whole file; digest: SHA-256 of its head, from whoever keeps it. Raises BlobDamaged; BlobNewer.
    Where only the file is at hand (a bundle), `read_header` tells the digest, once the header's own checksum agrees.
    """

    def __init__(self, content: bytes, digest: str):
        view = memoryview(content)
        end = PREFIX.size + header_length(view)
        if hashlib.sha256(view[:end]).hexdigest() != digest:
            raise BlobDamaged("its header does not have the checksum in the catalog")
        try:
            header = json.loads(content[PREFIX.size : end])
            metadata = header["__metadata__"]
            if hashlib.sha256(view[end:]).hexdigest() != metadata["body_sha256"]:
                raise BlobDamaged("its tensors do not have the checksum in its header")
            _require_known(metadata)
            self._described = _Described.by(header, len(content) - end, len(content))
        except _UNREADABLE as error:
            raise BlobDamaged(f"its header cannot be read ({error})") from error
        self.content = content
        self._body = view[end:]

    @property
    def entry(self) -> Entry:
        """What the file's own record says."""
        return self._described.entry

    @property
    def names(self) -> list[str]:
        return sorted(self._described.parts)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Types and shapes of the tensors, decoded."""
        coded, parts = self._described.coded, self._described.parts
        found = {name: coded.get(name, part) for name, part in parts.items()}
        return {name: Layout(one.dtype, one.shape) for name, one in found.items()}

    def tensors(self, names: Iterable[str] | None = None, device: str | torch.device = "cpu") -> dict:
        """Tensors by name (all, or `names`), decoded on `device`; the caller owns them. BlobDamaged; KeyError."""
        return {name: self._tensor(name, device) for name in (self.names if names is None else names)}

    def check(self) -> None:
        """BlobDamaged unless every tensor can be decoded to sound values. One is in memory at a time, or a piece."""
        for name, part in self._described.parts.items():
            if name in self._described.coded or name == "workflow":
                self._tensor(name, "cpu")
                continue
            size = _PIECE * (part.last - part.first) // max(1, math.prod(part.shape))
            for first in range(part.first, part.last, max(1, size)):
                self._require_sound(name, self._raw(part, first, min(part.last, first + size)))

    def webp(self, name: str) -> bytes:
        """The frames [F, H, W, 3] stored under `name` as an animated WebP: as it lies there, or made now of raw ones.

        BlobDamaged; KeyError; ValueError when that tensor is no frames.
        """
        from . import codec

        how, part = self._described.coded.get(name), self._described.parts[name]
        if how is not None and how.coding == "webp":
            stored = bytes(self._body[part.first : part.last])
            if not codec.is_webp(stored, how.shape):
                raise BlobDamaged(f"its tensor {name!r} is no picture of its size")
            return stored
        frames = self._tensor(name, "cpu")
        if codec.fitting(frames, "webp") == codec.RAW:
            raise ValueError(f"tensor {name!r} of shape {list(frames.shape)} is no frames")
        return codec.encode(frames, "webp")

    def _tensor(self, name: str, device: str | torch.device) -> torch.Tensor:
        part = self._described.parts[name]
        if name not in self._described.coded:
            tensor = self._raw(part, part.first, part.last).reshape(part.shape)
            self._require_sound(name, tensor)
            return tensor.to(device)
        from .codec import CodingDamaged, decode

        try:
            tensor = decode(self._body[part.first : part.last], self._described.coded[name], device)
        except CodingDamaged as error:
            raise BlobDamaged(f"its tensor {name!r} cannot be decoded: {error}") from error
        self._require_sound(name, tensor)
        return tensor

    def _raw(self, part: _Part, first: int, last: int) -> torch.Tensor:
        """The values in these bytes of the body, [n], in memory of their own."""
        import torch

        dtype = getattr(torch, part.dtype)
        if first == last:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self._body[first:last]), dtype=dtype)

    @staticmethod
    def _require_sound(name: str, tensor: torch.Tensor) -> None:
        try:
            check_values(name, tensor)
        except ValueError as error:
            raise BlobDamaged(str(error)) from error
