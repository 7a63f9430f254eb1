"""Entry files and bundles that Chorus would not write, with every checksum made to fit: what a stranger could send."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from chorus.cache import NewEntry
from chorus.cache.bundle import MANIFEST
from chorus.cache.entry import canonical_json
from chorus.cache.record import write_record

STRANGER = "ab" * 16
_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64"}
_TYPES |= {torch.float64: "F64", torch.bool: "BOOL"}

Change = Callable[[dict[str, Any]], object]


def nothing(_: object) -> None:
    pass


def entry_file(
    new: NewEntry,
    *,
    entry_id: str = STRANGER,
    tensors: Mapping[str, torch.Tensor | bytes] | None = None,
    coded: Mapping[str, dict] | None = None,
    record: Change | str = nothing,
    header: Change = nothing,
    metadata: Change = nothing,
    vector: np.ndarray | None = None,
) -> bytes:
    """The file of `new`, or of something near it.

    tensors: what is stored instead, bytes as uint8 [n]; coded: what the header says of how they are coded, by name;
    record, header, metadata: change these objects before their checksums are taken. A text is the record as it is.
    """
    stored = new.tensors if tensors is None else tensors
    fields = json.loads(write_record(entry_id, 1.0, new))
    if coded is not None:
        fields["coding"] = {name: how["coding"] for name, how in coded.items()}
    if tensors is not None:
        of_coded = {name: how["shape"] for name, how in (coded or {}).items()}
        shapes = {n: [len(t)] if isinstance(t, bytes) else list(t.shape) for n, t in tensors.items()}
        fields |= {"tensor_names": sorted(tensors), "shapes": shapes | of_coded}
    if not isinstance(record, str):
        record(fields)
    described: dict[str, Any] = {}
    body = b""
    for name, tensor in stored.items():
        content = tensor if isinstance(tensor, bytes) else _bytes(tensor)
        dtype, shape = ("U8", [len(content)]) if isinstance(tensor, bytes) else (_TYPES[tensor.dtype], tensor.shape)
        place = [len(body), len(body) + len(content)]
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": place}
        body += content
    of_file: dict[str, Any] = {
        "chorus_format": "2",
        "record": record if isinstance(record, str) else _json(fields),
        "coded": _json(coded or {}),
        "vector": base64.b64encode((new.vector if vector is None else vector).astype("<f4").tobytes()).decode(),
        "body_sha256": hashlib.sha256(body).hexdigest(),
    }
    header(described)
    metadata(of_file)
    whole = {**described, "__metadata__": of_file}
    of_file["header_sha256"] = hashlib.sha256(canonical_json(whole).encode()).hexdigest()
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _json(value: Any) -> str:
    """Canonical JSON that may also hold NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def bundle(path: Path, files: Mapping[str, bytes]) -> Path:
    """A bundle of these files by id, with a manifest that fits them."""
    listed = [
        {"id": entry_id, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "prompt": ""}
        for entry_id, content in files.items()
    ]
    with zipfile.ZipFile(path, "w") as zipped:
        for entry_id, content in files.items():
            zipped.writestr(f"entries/{entry_id}.safetensors", content)
        zipped.writestr(MANIFEST, json.dumps({"chorus_bundle": 1, "entries": listed}))
    return path


def dct_of_zeros(shape: tuple[int, ...]) -> tuple[bytes, dict]:
    """A coded latent of zeros, as few bytes as zstandard makes of it, and what the header says of it."""
    channels, values = int(np.prod(shape[:-3])), int(np.prod(shape))
    pack = zstandard.ZstdCompressor().compressobj(size=4 * channels + (values + 1) // 2)
    pieces = [pack.compress(np.ones(channels, "<f4").tobytes())]
    left, piece = (values + 1) // 2, b"\x88" * 2**20
    while left:
        pieces.append(pack.compress(piece[: min(left, len(piece))]))
        left -= min(left, len(piece))
    pieces.append(pack.flush())
    return b"".join(pieces), {"coding": "dct/0.1", "dtype": "float32", "shape": list(shape)}
