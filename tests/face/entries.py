"""Entries to look at, made without sampling."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chorus.cache import LocalCache, NewEntry, Space
from chorus.cache.record import write_record

SPACE = Space("weights-a", "", "Wan21", (1, 16, 4, 12, 12), "t2v", "flow")
COLOURS = ("red", "yellow", "blue", "green", "white")
FRAMES, SIDE = 6, 48


def vector(number: int) -> np.ndarray:
    values = np.random.default_rng(number).standard_normal(32).astype(np.float32)
    return values / np.linalg.norm(values)


def new_entry(number: int, *, parent: str | None = None, **changes: Any) -> NewEntry:
    """Entry `number`: its prompt names a colour and its number, its preview is of that brightness."""
    preview = torch.full((FRAMES, SIDE, SIDE, 3), 40 * (number % 6) + 20, dtype=torch.uint8)
    fields: dict[str, Any] = {
        "space": SPACE,
        "request": f"request-{number}",
        "prompt": f"A {COLOURS[number % len(COLOURS)]} ball rolls left, take {number}",
        "embedder": "conditioning:test",
        "vector": vector(number),
        "sigmas": (1.0, 0.75, 0.5, 0.25, 0.0),
        "settings": {"sampler": "euler", "seed": number, "plan": "-", "carried": "", "noise": "", "noise_drawn": False},
        "seconds": 12.5,
        "is_source": parent is None,
        "parent": parent,
        "tensors": {"final": torch.zeros(changes.get("space", SPACE).shape).half(), "preview": preview},
    }
    return NewEntry(**{**fields, **changes})


def fill(folder: Path, count: int, **changes: Any) -> list[str]:
    """Put entries 0 … count−1 into the cache in `folder`; returns their ids."""
    cache = LocalCache(folder)
    try:
        return [cache.put(new_entry(number, **changes)).id for number in range(count)]
    finally:
        cache.close()


@contextmanager
def unreadable(folder: Path, entry_id: str) -> Iterator[None]:
    """An entry's file cannot be read now, and is neither gone nor damaged."""
    (file,) = folder.rglob(f"{entry_id}.safetensors")
    aside = file.with_suffix(".aside")
    file.rename(aside)
    file.symlink_to(file.name)  # to itself
    try:
        yield
    finally:
        file.unlink()
        aside.rename(file)


def fill_catalog(folder: Path, count: int) -> None:
    """`count` rows at once, without files: enough to list, and quick."""
    cache = LocalCache(folder)
    try:
        now = time.time()
        with cache._catalog.writing() as transaction:
            for number in range(count):
                new = new_entry(number, tensors={"final": torch.zeros(SPACE.shape)})
                record = write_record(uuid.uuid4().hex, now - count + number, new)
                transaction.insert(record, new.vector, "0" * 64, 1000 + number)
    finally:
        cache.close()


def pack_graph(graph: dict[str, Any]) -> torch.Tensor:
    """A graph as the store node keeps it."""
    import zlib

    return torch.from_numpy(np.frombuffer(zlib.compress(json.dumps({"workflow": graph}).encode()), np.uint8).copy())
