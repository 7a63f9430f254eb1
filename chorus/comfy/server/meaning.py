"""Entries by what their prompts mean."""

from __future__ import annotations

from typing import Any

from ...cache import Cache, every
from ...cache.words import by_meaning
from ...messages import say
from .answers import Problem
from .listing import short


def nearest(cache: Cache, text: str, limit: int) -> dict[str, Any]:
    """The entries nearest to `text`, the nearest first, each with its score."""
    try:
        found = by_meaning(every(cache), text, limit)
    except RuntimeError as error:
        raise Problem(409, "no_embedder", say("route.no_embedder", error=error)) from error
    return {"total": len(found), "entries": [short(m.entry) | {"score": m.score} for m in found]}
