"""Entries by what their prompts mean, where an embedder is at hand without a graph."""

from __future__ import annotations

from typing import Any

from ...cache import Cache, Space
from ..embed import open_clip_embedder
from .answers import Problem
from .listing import short

# No request has it, so that every entry of the embedder lies elsewhere.
_NOWHERE = Space(weights="", patches="", latent_format="", shape=(), task="", prediction="")


def nearest(cache: Cache, text: str, limit: int) -> dict[str, Any]:
    """The entries nearest to `text`, the nearest first, each with its score. Only sources that open_clip embedded."""
    try:
        embedder = open_clip_embedder()
    except RuntimeError as error:
        raise Problem(409, "no_embedder", f"prompts cannot be compared by meaning: {error}") from error
    vector = embedder(text)
    found = cache.search_elsewhere(vector.vector, vector.embedder, _NOWHERE, limit)
    return {"total": len(found), "entries": [short(m.entry) | {"score": m.score} for m in found]}
