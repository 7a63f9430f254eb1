"""An entry's file as bytes: the same bytes as in a local cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..blobs import _PREFIX, BlobDamaged, _header_length, pack
from ..entry import NewEntry

if TYPE_CHECKING:
    import torch


def packed_file(record: str, new: NewEntry) -> tuple[str, bytes, str]:
    """(record, the file's bytes, digest of its header), to be stored. ValueError as `blobs.pack` raises it."""
    packed = pack(record, new.vector, new.tensors)
    return packed.record, b"".join((packed.head, packed.body)), packed.digest


def unpacked(content: bytes, digest: str, names: Iterable[str] | None) -> dict[str, torch.Tensor]:
    """The tensors (all, or `names`) of a file whose every byte was verified. BlobDamaged when one is wrong.

    digest: SHA-256 of the header, from the catalog.
    """
    from safetensors.torch import load

    view = memoryview(content)
    length = _header_length(view)
    if hashlib.sha256(view[: _PREFIX.size + length]).hexdigest() != digest:
        raise BlobDamaged("its header does not have the checksum in the catalog")
    metadata = json.loads(content[_PREFIX.size : _PREFIX.size + length])["__metadata__"]
    if hashlib.sha256(view[_PREFIX.size + length :]).hexdigest() != metadata["body_sha256"]:
        raise BlobDamaged("its tensors do not have the checksum in its header")
    tensors = load(content)
    return tensors if names is None else {name: tensors[name] for name in names}
