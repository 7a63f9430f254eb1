"""The tensors of each entry: one checksummed safetensors file, written atomically.

    root/partial/<id>                           being written
    root/blobs/<2 hex>/<id>.safetensors         committed
    root/quarantine/<id>.safetensors            found damaged

A file's header carries the SHA-256 of its tensor bytes, and the catalog keeps the SHA-256 of the header;
together they cover every byte of the file. The header also carries the entry's record, its vector and its own
checksum, so a lost catalog can be rebuilt from the headers alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .entry import canonical_json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FORMAT_VERSION = "1"
MAX_HEADER = 100 * 2**20  # safetensors' own limit, in bytes
_PREFIX = struct.Struct("<Q")
_ID = re.compile(r"[0-9a-f]{32}")


class BlobDamaged(Exception):
    """A file's bytes are not what was written; the text says what disagrees."""


@dataclass(frozen=True)
class Packed:
    """An entry as it will lie on disk: `head` (length prefix and header), then `body` (tensor bytes)."""

    record: str
    head: bytes
    body: memoryview
    digest: str

    @property
    def size(self) -> int:
        return len(self.head) + len(self.body)


@dataclass(frozen=True)
class Header:
    """What a file says about itself. vector: [D] float32. digest: SHA-256 of its head. size: in bytes."""

    record: str
    vector: np.ndarray
    digest: str
    size: int


def pack(record: str, vector: np.ndarray, tensors: Mapping[str, torch.Tensor]) -> Packed:
    """The file for `tensors`, with the entry's `record` (canonical JSON) and `vector` in its header.

    ValueError names the tensor that safetensors cannot store (sparse, quantized, not a tensor).
    """
    plain = _safetensors_bytes(tensors)
    (length,) = _PREFIX.unpack_from(plain)
    body = memoryview(plain)[_PREFIX.size + length :]
    header = json.loads(plain[_PREFIX.size : _PREFIX.size + length])
    metadata = {
        "chorus_format": FORMAT_VERSION,
        "record": record,
        "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii"),
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }
    header["__metadata__"] = metadata
    metadata["header_sha256"] = _header_checksum(header)
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # safetensors wants the tensor bytes aligned
    head = _PREFIX.pack(len(text)) + text
    return Packed(record, head, body, hashlib.sha256(head).hexdigest())


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


class Blobs:
    """The files under one root. No state of its own: safe for any number of threads and processes.

    Methods raise OSError as the file system does; what fails a checksum is never served.
    """

    def __init__(self, root: Path):
        self._committed = root / "blobs"
        self._partial = root / "partial"
        self._quarantine = root / "quarantine"
        for folder in (self._committed, self._partial, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, entry_id: str) -> Path:
        """Where the committed file of an entry lies. ValueError for anything that is not an entry's id."""
        if not _ID.fullmatch(entry_id):
            raise ValueError(f"{entry_id!r} is not an entry id (32 lower-case hex digits)")
        return self._committed / entry_id[:2] / f"{entry_id}.safetensors"

    def write(self, entry_id: str, packed: Packed) -> None:
        """Commit a file: after this returns it survives a power cut; before, none of that name exists."""
        target = self.path(entry_id)
        partial = self._partial / entry_id
        target.parent.mkdir(parents=True, exist_ok=True)
        self._partial.mkdir(exist_ok=True)
        with partial.open("xb") as file:
            file.write(packed.head)
            file.write(packed.body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        _sync_folder(target.parent)

    def read(self, entry_id: str, digest: str, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors (all, or `names`) of a file whose every byte was verified; the caller owns them.

        digest: SHA-256 of the header, from the catalog. Raises BlobDamaged, FileNotFoundError, OSError.
        """
        from safetensors.torch import load

        content = self.path(entry_id).read_bytes()
        view = memoryview(content)
        length = _header_length(view)
        if hashlib.sha256(view[: _PREFIX.size + length]).hexdigest() != digest:
            raise BlobDamaged("its header does not have the checksum in the catalog")
        metadata = json.loads(content[_PREFIX.size : _PREFIX.size + length])["__metadata__"]
        if hashlib.sha256(view[_PREFIX.size + length :]).hexdigest() != metadata["body_sha256"]:
            raise BlobDamaged("its tensors do not have the checksum in its header")
        tensors = load(content)
        return tensors if names is None else {name: tensors[name] for name in names}

    def headers(self) -> Iterator[Header]:
        """The headers of all committed files, to rebuild a catalog; damaged files are quarantined."""
        for path in self._files(self._committed):
            try:
                yield _read_header(path)
            except FileNotFoundError:
                continue  # evicted by another process meanwhile
            except BlobDamaged as error:
                log.warning("Cache file %s is left out of the rebuilt catalog: %s", path, error)
                os.replace(path, self._quarantine / path.name)

    def quarantine(self, entry_id: str) -> None:
        """Move an entry's file out of the way. A file that is already gone is no error."""
        path = self.path(entry_id)
        with suppress(FileNotFoundError):
            os.replace(path, self._quarantine / path.name)

    def remove(self, entry_id: str) -> None:
        """Delete what there is of an entry, in whatever state."""
        path = self.path(entry_id)
        for place in (path, self._partial / entry_id, self._quarantine / path.name):
            place.unlink(missing_ok=True)

    def empty_quarantine(self) -> None:
        """Delete all damaged files, catalogs among them."""
        for path in self._files(self._quarantine):
            path.unlink(missing_ok=True)

    def ids_older_than(self, age: float) -> set[str]:
        """Ids of entries of which any file, in any state, was last written more than `age` seconds ago.

        Or so far in the future: by a clock that was set back since.
        """
        now = time.time()
        ids = set()
        for folder in (self._committed, self._partial, self._quarantine):
            for file in _scanned(folder):
                name = file.name.split(".", 1)[0]
                try:
                    if _ID.fullmatch(name) and abs(now - file.stat().st_mtime) > age:
                        ids.add(name)
                except FileNotFoundError:
                    continue
        return ids

    @staticmethod
    def _files(folder: Path) -> Iterator[Path]:
        return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _scanned(folder: Path | str) -> Iterator[os.DirEntry]:
    """All files below a folder: several times faster than pathlib, which counts where there are 100,000."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir():
                yield from _scanned(entry.path)
            else:
                yield entry


def _header_length(content: memoryview | bytes) -> int:
    if len(content) < _PREFIX.size:
        raise BlobDamaged(f"it has only {len(content)} bytes")
    (length,) = _PREFIX.unpack_from(content)
    if length > MAX_HEADER:
        raise BlobDamaged(f"its header claims {length} bytes")
    return length


def _read_header(path: Path) -> Header:
    with path.open("rb") as file:
        prefix = file.read(_PREFIX.size)
        length = _header_length(prefix)
        head = prefix + file.read(length)
        size = file.seek(0, os.SEEK_END)
    try:
        header = json.loads(head[_PREFIX.size :])
        metadata = header["__metadata__"]
        if metadata["header_sha256"] != _header_checksum(header):
            raise BlobDamaged("its header does not have its own checksum")
        if metadata["chorus_format"] != FORMAT_VERSION:
            raise BlobDamaged(f"its format version {metadata['chorus_format']!r} is unknown")
        record = metadata["record"]
        if json.loads(record)["id"] != path.stem:
            raise BlobDamaged("it is a copy of another entry's file")
        vector = np.frombuffer(base64.b64decode(metadata["vector"]), "<f4")
        body = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BlobDamaged(f"its header cannot be read ({error})") from error
    if size != len(head) + body:
        raise BlobDamaged(f"it has {size} bytes instead of {len(head) + body}")
    return Header(record, vector, hashlib.sha256(head).hexdigest(), size)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
