"""Which entries to list: `Query` as SQL over the catalog's table `listing`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from .entry import Entry, Query

# Field of Query → (condition, the value bound to it). What people type is always a parameter, never SQL.
_CONDITIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "words": ("instr(words, :words)", lambda words: folded(words)),
    "weights": ("substr(weights, 1, length(:weights)) = :weights", lambda weights: storable(weights)),
    "shape": ("shape = :shape", lambda shape: written_shape(shape)),
    "source": ("is_source = :source", int),
    "pinned": ("pinned = :pinned", int),
    "parent": ("parent = :parent", lambda parent: storable(parent)),
    "created_before": ("created < :created_before", float),
    "created_after": ("created > :created_after", float),
    "unused_since": ("used < :unused_since", float),
}

# Sort of Query → ORDER BY.
_ORDERS = {
    "newest": "seq DESC",
    "oldest": "seq",
    **{column: f"{column} DESC, seq DESC" for column in ("used", "hits", "saved", "bytes")},
}


def conditions(query: Query) -> tuple[str, dict[str, Any]]:
    """The query's WHERE over `listing`, and its parameters by name."""
    asked = {name: value for name in _CONDITIONS if (value := getattr(query, name)) not in (None, "")}
    where = " AND ".join(_CONDITIONS[name][0] for name in asked) or "1"
    return where, {name: _CONDITIONS[name][1](value) for name, value in asked.items()}


def order(query: Query) -> str:
    """The query's ORDER BY, over `listing` and over the shared catalog's entries."""
    return _ORDERS[query.sort]


def listed(entry: Entry) -> dict[str, Any]:
    """What `listing` keeps of an entry's record, by column."""
    return {
        "created": entry.created,
        "seconds": entry.seconds,
        "weights": storable(entry.space.weights),
        "latent_format": storable(entry.space.latent_format),
        "shape": written_shape(entry.space.shape),
        "parent": None if entry.parent is None else storable(entry.parent),
        "words": folded(entry.prompt),
    }


def folded(text: str) -> str:
    """`text` as prompts are searched: without case, and with one form for each accented letter."""
    return storable(unicodedata.normalize("NFC", text.casefold()))


def storable(text: str) -> str:
    """`text` without the lone surrogates that UTF-8 cannot say, and without NUL, where SQLite ends a text."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")


def written_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
