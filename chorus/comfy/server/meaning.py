"""Entries by what their prompts mean, where an embedder is at hand without a graph."""

from __future__ import annotations

from typing import Any

from ...cache import Cache
from ...cache.words import everywhere
from ...messages import say
from ..embed import open_clip_embedder
from .answers import Problem
from .listing import short


def nearest(cache: Cache, text: str, limit: int) -> dict[str, Any]:
    """The entries nearest to `text`, the nearest first, each with its score. Only sources that open_clip embedded."""
    try:
        embedder = open_clip_embedder()
    except RuntimeError as error:
        raise Problem(409, "no_embedder", say("route.no_embedder", error=error)) from error
    found = everywhere(cache, embedder(text), limit)
    return {"total": len(found), "entries": [short(m.entry) | {"score": m.score} for m in found]}
