"""An entry as text: the canonical JSON that the catalog and the entry's own file both keep."""

from __future__ import annotations

import json
from dataclasses import asdict

from .entry import Entry, NewEntry, Space, canonical_json
from .rules import MOST_RECORD, check_entry


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
            "shapes": {name: list(tensor.shape) for name, tensor in new.tensors.items()},
            "coding": dict(new.coding),
        }
    )


def read_record(
    record: str, *, used: float | None = None, hits: int = 0, saved: float = 0.0, pinned: bool = False, size: int
) -> Entry:
    """The entry of a record; without `used`, as it was created. ValueError for a record that breaks a rule (rules.py).

    Records of format version 1 have neither shapes nor coding.
    """
    if len(record) > MOST_RECORD:
        raise ValueError(f"its record has more than {MOST_RECORD:,} characters")
    try:
        fields = json.loads(record)
        fields["space"] = Space(**{**fields["space"], "shape": tuple(fields["space"]["shape"])})
        fields["sigmas"] = tuple(fields["sigmas"])
        fields["tensor_names"] = tuple(fields["tensor_names"])
        fields["shapes"] = {name: tuple(shape) for name, shape in fields.get("shapes", {}).items()}
        used = float(fields["created"] if used is None else used)
        entry = Entry(**fields, used=used, hits=int(hits), bytes=int(size), saved=float(saved), pinned=pinned)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its record is none ({type(error).__name__}: {str(error)[:100]})") from error
    check_entry(entry)
    return entry
