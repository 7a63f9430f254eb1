"""An entry's file from a stranger: believed only after all of it was checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .entry import Entry, NewEntry
from .format import PREFIX, BlobDamaged, BlobNewer, EntryFile, Packed, header_length, read_header
from .record import read_record, write_record

if TYPE_CHECKING:
    import torch


def unpack(entry_id: str, content: bytes) -> tuple[NewEntry, Packed]:
    """The entry in a file that should be that of `entry_id`, and the file itself, to be kept as it is.

    Checked are both checksums, the record, the vector, that every tensor can be decoded, has the shape that the record
    says and holds finite numbers only, and that the record is what this version would write. ValueError says what is
    wrong. What cannot be checked is whether a latent shows what its prompt says.
    """
    try:
        end = PREFIX.size + header_length(content)
        header = read_header(content[:end], len(content), entry_id)
        file = EntryFile(content, header.digest)
        entry = read_record(header.record, size=header.size)
        if file.names != sorted(entry.tensor_names):
            raise ValueError("it has other tensors than its record says")
        if file.coding != dict(entry.coding):
            raise ValueError("its tensors are coded otherwise than its record says")
        tensors = {name: _checked(file, name, entry) for name in file.names}
    except (BlobDamaged, BlobNewer, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"it is no sound entry: {error}") from error
    if not isinstance(entry.settings, dict) or not isinstance(entry.prompt, str):
        raise ValueError("its settings are no object, or its prompt is no text")
    if not (isinstance(entry.created, int | float) and math.isfinite(entry.created) and entry.created >= 0):
        raise ValueError(f"created {entry.created!r} is no time")
    new = NewEntry(
        space=entry.space,
        request=entry.request,
        prompt=entry.prompt,
        embedder=entry.embedder,
        vector=header.vector,
        sigmas=entry.sigmas,
        settings=entry.settings,
        seconds=entry.seconds,
        is_source=entry.is_source,
        parent=entry.parent,
        tensors=tensors,
        coding=entry.coding,
    )
    # Version 1 wrote neither shapes nor coding.
    if entry.shapes and write_record(entry_id, entry.created, new) != header.record:
        raise ValueError("its record is not written as this version writes records")
    return new, Packed(header.record, content[:end], memoryview(content)[end:], header.digest)


def _checked(file: EntryFile, name: str, entry: Entry) -> torch.Tensor:
    """A tensor's shape and type, without the numbers, of which one tensor's at a time are in memory."""
    import torch

    tensor = file.tensors([name])[name]
    if name in entry.shapes and tuple(tensor.shape) != tuple(entry.shapes[name]):
        raise ValueError(f"tensor {name!r} has another shape than its record says")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"tensor {name!r} holds numbers that are not finite")
    return torch.empty_like(tensor, device="meta")
