"""An entry as text: the canonical JSON that the catalog and the entry's own file both keep."""

from __future__ import annotations

import json
from dataclasses import asdict

from .entry import Entry, NewEntry, Space, canonical_json


def write_record(entry_id: str, created: float, new: NewEntry) -> str:
    """All of `new` that never changes, except the vector and the tensors' contents."""
    return canonical_json(
        {
            "id": entry_id,
            "created": created,
            "space": asdict(new.space),
            "request": new.request,
            "prompt": new.prompt,
            "embedder": new.embedder,
            "sigmas": new.sigmas,
            "settings": new.settings,
            "seconds": new.seconds,
            "is_source": bool(new.is_source),
            "parent": new.parent,
            "tensor_names": sorted(new.tensors),
        }
    )


def read_record(
    record: str, *, used: float | None = None, hits: int = 0, saved: float = 0.0, pinned: bool = False, size: int
) -> Entry:
    """The entry of a record; without `used`, as it was created. ValueError, KeyError or TypeError if bad."""
    fields = json.loads(record)
    fields["space"] = Space(**{**fields["space"], "shape": tuple(fields["space"]["shape"])})
    fields["sigmas"] = tuple(fields["sigmas"])
    fields["tensor_names"] = tuple(fields["tensor_names"])
    used = float(fields["created"] if used is None else used)
    return Entry(**fields, used=used, hits=int(hits), bytes=int(size), saved=float(saved), pinned=pinned)
