"""Entries by what people type: by meaning where an embedder is at hand, else by the words they share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .entry import Entry, Match, Space
from .interface import Cache

if TYPE_CHECKING:
    from ..prompt.vector import PromptVector

# In no space there is: so "elsewhere" is everywhere.
_NOWHERE = Space("", "", "", (), "", "")


def everywhere(cache: Cache, wanted: PromptVector, k: int) -> list[Match]:
    """The k sources nearest to a vector, in all spaces; only those of its embedder can be compared."""
    return cache.search_elsewhere(wanted.vector, wanted.embedder, _NOWHERE, k)


def by_meaning(cache: Cache, text: str, k: int) -> tuple[list[Match], str]:
    """The k sources nearest to `text` by open_clip, and "", or none and why there are none."""
    from ..prompt.open_clip_text import OpenClipEmbedder

    reason = OpenClipEmbedder.available()
    if reason is not None:
        return [], reason
    wanted = OpenClipEmbedder()(text)
    found = everywhere(cache, wanted, k)
    return found, "" if found else f"no entry was embedded with {wanted.embedder}"


def by_text(entries: Sequence[Entry], text: str, k: int) -> list[Match]:
    """The k entries that share most of the words of `text`, the share as the score; of equals the first."""
    asked = _words(text)
    shares = [(len(asked & _words(entry.prompt)) / max(1, len(asked)), entry) for entry in entries]
    best = sorted((match for match in shares if match[0] > 0), key=lambda match: -match[0])
    return [Match(entry, share) for share, entry in best[:k]]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
