"""The file of an entry, to bytes and from bytes: safetensors, with checksums over every byte. See docs/format.md.

A file's header carries the SHA-256 of its tensor bytes, and whoever keeps the file also keeps the SHA-256 of its
head (length prefix and header); together they cover every byte. The header also carries the entry's record, its
vector and its own checksum, so that a lost catalog can be rebuilt from the headers alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .entry import canonical_json

if TYPE_CHECKING:
    import torch

    from .codec import Coded

FORMAT_VERSION = "2"
READ_VERSIONS = ("1", "2")
MAX_HEADER = 100 * 2**20  # safetensors' own limit, in bytes
PREFIX = struct.Struct("<Q")


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
    ValueError names the tensor that safetensors cannot store (sparse, quantized, not a tensor).
    """
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
    head = PREFIX.pack(len(text)) + text
    return Packed(record, head, body, hashlib.sha256(head).hexdigest())


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
        record = metadata["record"]
        if json.loads(record)["id"] != entry_id:
            raise BlobDamaged("it is a copy of another entry's file")
        vector = np.frombuffer(base64.b64decode(metadata["vector"]), "<f4")
        body = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BlobDamaged(f"its header cannot be read ({error})") from error
    if size != len(head) + body:
        raise BlobDamaged(f"it has {size} bytes instead of {len(head) + body}")
    return Header(record, vector, hashlib.sha256(head).hexdigest(), size)


def _require_known(metadata: Mapping[str, str]) -> None:
    version = metadata["chorus_format"]
    if version in READ_VERSIONS:
        return
    if version.isdecimal() and int(version) > int(FORMAT_VERSION):
        raise BlobNewer(f"its format version {version} is newer than this Chorus")
    raise BlobDamaged(f"its format version {version!r} is unknown")


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
            self._metadata = json.loads(content[PREFIX.size : end])["__metadata__"]
            if hashlib.sha256(view[end:]).hexdigest() != self._metadata["body_sha256"]:
                raise BlobDamaged("its tensors do not have the checksum in its header")
            _require_known(self._metadata)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BlobDamaged(f"its header cannot be read ({error})") from error
        self.content = content

    @cached_property
    def _stored(self) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.content)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise BlobDamaged(f"it is no safetensors file ({error})") from error

    @cached_property
    def _coded(self) -> dict[str, Coded]:
        """How tensors are coded; those it does not name are raw. Files of version 1 have only raw ones."""
        if "coded" not in self._metadata:
            return {}
        from .codec import Coded, CodingDamaged

        try:
            coded = {name: Coded.from_json(how) for name, how in json.loads(self._metadata["coded"]).items()}
        except (CodingDamaged, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise BlobDamaged(f"it does not say how its tensors are coded ({error})") from error
        for name in coded:
            payload = self._stored.get(name)
            if payload is None or payload.ndim != 1 or str(payload.dtype) != "torch.uint8":
                raise BlobDamaged(f"its tensor {name!r} is not the bytes of a coded one")
        return coded

    @property
    def coding(self) -> dict[str, str]:
        """How tensors are coded, by name; the others are raw. BlobDamaged."""
        return {name: how.coding for name, how in self._coded.items()}

    @property
    def names(self) -> list[str]:
        return sorted(self._stored)

    def tensors(self, names: Iterable[str] | None = None, device: str | torch.device = "cpu") -> dict:
        """Tensors by name (all, or `names`), decoded on `device`; the caller owns them. BlobDamaged; KeyError."""
        return {name: self._tensor(name, device) for name in (self.names if names is None else names)}

    def _tensor(self, name: str, device: str | torch.device) -> torch.Tensor:
        if name not in self._coded:
            return self._stored[name].to(device)
        from .codec import CodingDamaged, decode

        try:
            return decode(self._stored[name].numpy().data, self._coded[name], device)
        except CodingDamaged as error:
            raise BlobDamaged(f"its tensor {name!r} cannot be decoded: {error}") from error

    def webp(self, name: str) -> bytes:
        """The frames [F, H, W, 3] stored under `name` as an animated WebP: as it lies there, or made now of raw ones.

        BlobDamaged; KeyError; ValueError when that tensor is no frames.
        """
        if name in self._coded and self._coded[name].coding == "webp":
            return self._stored[name].numpy().tobytes()
        from . import codec

        frames = self._tensor(name, "cpu")
        if codec.fitting(frames, "webp") == codec.RAW:
            raise ValueError(f"tensor {name!r} of shape {list(frames.shape)} is no frames")
        return codec.encode(frames, "webp")
