"""Reads an entry's file from a stranger: nothing of it is used before all of it was checked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .entry import NewEntry
from .format import PREFIX, BlobDamaged, BlobNewer, EntryFile, Packed, header_length, read_header
from .record import write_record

if TYPE_CHECKING:
    import torch

    from .rules import Layout

# No run can start from a source without these. Chorus always writes them; a stranger's file may lack them.
_OF_SOURCES = ("noise_drawn", "noise", "carried")


def unpack(entry_id: str, content: bytes) -> tuple[NewEntry, Packed]:
    """The entry in a file that should be that of `entry_id`, and the file itself, to be kept as it is.

    Checked are both checksums, the record, the vector, all tensors by the rules of rules.py, and that the record is
    what this version would write. ValueError says what is wrong. What cannot be checked is whether a latent shows what
    its prompt says. Beside `content` there is at most one decoded tensor in memory at a time.
    """
    try:
        end = PREFIX.size + header_length(content)
        head = content[:end]
        header = read_header(head, len(content), entry_id)
        file = EntryFile(content, header.digest)
        file.check()
    except (BlobDamaged, BlobNewer, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"it is no sound entry: {error}") from error
    entry = file.entry
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
        tensors={name: _without_values(layout) for name, layout in file.layouts.items()},
        coding=entry.coding,
    )
    # Version 1 wrote neither shapes nor coding.
    if entry.shapes and write_record(entry_id, entry.created, new) != header.record:
        raise ValueError("its record is not written as this version writes records")
    if not _is_unicode(header.record):
        raise ValueError("its record holds text that is no valid Unicode")
    if missing := [name for name in _OF_SOURCES if entry.is_source and name not in entry.settings]:
        raise ValueError(f"it says that others may start from it, but its settings lack {', '.join(missing)}")
    return new, Packed(header.record, head, memoryview(content)[end:], header.digest)


def _is_unicode(record: str) -> bool:
    """Whether all text in a record is valid UTF-8. In a person's own prompts other text is allowed, too."""
    try:
        json.dumps(json.loads(record), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_values(layout: Layout) -> torch.Tensor:
    """A tensor of this type and shape that takes no memory."""
    import torch

    return torch.empty(layout.shape, dtype=getattr(torch, layout.dtype), device="meta")
