"""Entries and figures of a cache as JSON, and a page's query as `Query`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ...cache import EVERYTHING, SORTS, Cache, Entry, EntryMissing, Query

MOST_ENTRIES = 500  # a page
GROWTH_DAYS = 7  # over which the cache's growth is measured
_DAY = 86400.0
_MOST_CHILDREN = 24


def _words(text: str) -> str:
    if len(text) > 1000:
        raise ValueError("longer than 1000 characters")
    return text


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _time(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("expected Unix time in seconds")
    return value


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split("x"))
    if len(sizes) > 8 or any(size < 1 or size > 2**31 for size in sizes):
        raise ValueError("expected sizes such as 1x16x21x60x104")
    return sizes


def _sort(text: str) -> str:
    if text not in SORTS:
        raise ValueError(f"expected one of {', '.join(SORTS)}")
    return text


_READERS: dict[str, Callable[[str], Any]] = {
    "words": _words,
    "weights": _words,
    "shape": _shape,
    "source": _flag,
    "pinned": _flag,
    "parent": _words,
    "created_before": _time,
    "created_after": _time,
    "unused_since": _time,
    "sort": _sort,
}


def query_of(parameters: Mapping[str, str]) -> Query:
    """The query of a request's parameters. ValueError names a bad one."""
    asked: dict[str, Any] = {}
    for name, read in _READERS.items():
        if name in parameters:
            try:
                asked[name] = read(parameters[name])
            except ValueError as error:
                raise ValueError(f"{name}={parameters[name][:80]!r}: {error}") from error
    return Query(**asked)


def query_from(parameters: Any) -> Query:
    """The query of a JSON object with the same parameters. ValueError names a bad or unknown one."""
    if not isinstance(parameters, dict):
        raise ValueError(f"query: expected an object with parameters of the list, not {str(parameters)[:80]!r}")
    if unknown := sorted(set(parameters) - set(_READERS)):
        raise ValueError(f"query: there is no parameter {unknown[0][:80]!r}; there are {', '.join(_READERS)}")
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
    return query_of(texts)


def number_of(parameters: Mapping[str, str], name: str, usual: int, most: int) -> int:
    """A whole number from 0 to `most` among a request's parameters. ValueError for another."""
    text = parameters.get(name, str(usual))
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise ValueError(f"{name}={text[:80]!r}: expected a whole number from 0 to {most}")
    return value


def page(cache: Cache, query: Query, limit: int, offset: int) -> dict[str, Any]:
    """Part of the entries that answer a query, and how many do."""
    return {"total": cache.count(query), "entries": [short(e) for e in cache.entries(limit, offset, query)]}


def short(entry: Entry) -> dict[str, Any]:
    """What a tile shows of an entry."""
    space = entry.space
    return {
        "id": entry.id,
        "prompt": entry.prompt,
        "created": entry.created,
        "used": entry.used,
        "hits": entry.hits,
        "saved": entry.saved,
        "bytes": entry.bytes,
        "pinned": entry.pinned,
        "source": entry.is_source,
        "parent": entry.parent,
        "seconds": entry.seconds,
        "steps": max(0, len(entry.sigmas) - 1),
        "sampler": entry.settings.get("sampler"),
        "weights": space.weights,
        "latent_format": space.latent_format,
        "shape": list(space.shape),
        "size": frame_size(space.latent_format, space.shape),
        "preview": "preview" in entry.tensor_names,
        "workflow": "workflow" in entry.tensor_names,
    }


def full(cache: Cache, entry_id: str) -> dict[str, Any]:
    """Everything about an entry but its tensors. Raises EntryMissing."""
    entry = cache.get(entry_id)
    if entry is None:
        raise EntryMissing(entry_id)
    parent = cache.get(entry.parent) if entry.parent else None
    made = Query(parent=entry.id)
    return short(entry) | {
        "embedder": entry.embedder,
        "sigmas": list(entry.sigmas),
        "patches": entry.space.patches,
        "task": entry.space.task.split(":", 1)[0],
        "settings": entry.settings,
        "tensors": list(entry.tensor_names),
        "made_from": short(parent) if parent else None,
        "made": page(cache, made, _MOST_CHILDREN, 0),
    }


def figures(cache: Cache) -> dict[str, Any]:
    """Used space, limit and growth in bytes, hits, seconds saved, models, days."""
    stats = cache.stats()
    lately = cache.count(Query(created_after=time.time() - GROWTH_DAYS * _DAY))
    mean = stats.bytes / stats.entries if stats.entries else 0.0
    return {
        "version": cache.version(),
        "entries": stats.entries,
        "bytes": stats.bytes,
        "limit": stats.max_bytes,
        "pinned_bytes": stats.pinned_bytes,
        "growth": lately * mean / GROWTH_DAYS,
        "hits": stats.hits,
        "saved": stats.seconds_saved,
        "models": [
            {
                "weights": model.weights,
                "latent_format": model.latent_format,
                "entries": model.entries,
                "bytes": model.bytes,
                "hits": model.hits,
                "saved": model.seconds_saved,
            }
            for model in stats.models
        ],
        "days": [{"day": day, "hits": hits, "saved": saved} for day, hits, saved in stats.days],
        "shapes": _shapes(cache),
    }


def _shapes(cache: Cache) -> list[dict[str, Any]]:
    """The shapes among the newest entries, each once."""
    spaces = {e.space.shape: e.space for e in cache.entries(200, 0, EVERYTHING)}
    return [{"shape": list(s.shape), "size": frame_size(s.latent_format, s.shape)} for s in spaces.values()]


def frame_size(latent_format: str, shape: tuple[int, ...]) -> list[int] | None:
    """[width, height, frames] of the decoded video; None for a latent that is no video."""
    if len(shape) != 5:
        return None
    spatial, temporal = _ratios(latent_format)
    return [shape[4] * spatial, shape[3] * spatial, (shape[2] - 1) * temporal + 1]


@lru_cache(256)
def _ratios(latent_format: str) -> tuple[int, int]:
    """How many pixels and frames one latent cell stands for."""
    import comfy.latent_formats

    usual = comfy.latent_formats.LatentFormat
    kind = getattr(comfy.latent_formats, latent_format, usual)
    if not (isinstance(kind, type) and issubclass(kind, usual)):  # the name is a stranger's: "torch" is one, too
        kind = usual
    return kind.spacial_downscale_ratio, kind.temporal_downscale_ratio
