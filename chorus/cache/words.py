"""Finds entries by a text that people type: by its meaning, or by the words that they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from .entry import Entry, Match
from .query import storable  # no tokenizer reads lone surrogates

_MOST_KEPT = 50_000  # vectors of prompts, half a kilobyte each
_vectors: dict[str, np.ndarray] = {}


def by_meaning(entries: Iterable[Entry], text: str, k: int) -> list[Match]:
    """The k entries whose prompts come nearest to `text` in meaning; RuntimeError says why there is no telling.

    Vectors of prompts are kept for the next search.
    """
    from ..prompt.sentence import embed_sentences

    entries = list(entries)
    wanted = embed_sentences([storable(text)])[0]
    said = [storable(entry.prompt) for entry in entries]
    prompts = set(said)
    vectors = {prompt: vector for prompt, vector in _vectors.copy().items() if prompt in prompts}  # others search, too
    if new := sorted(prompts - vectors.keys()):
        made = dict(zip(new, embed_sentences(new).astype(np.float16), strict=True))
        vectors.update(made)
        if len(_vectors) + len(made) > _MOST_KEPT:
            _vectors.clear()
        _vectors.update(list(made.items())[:_MOST_KEPT])
    scores = [float(vectors[prompt] @ wanted) for prompt in said]
    best = sorted(range(len(entries)), key=lambda i: -scores[i])
    return [Match(entries[i], scores[i]) for i in best[:k]]


def by_text(entries: Sequence[Entry], text: str, k: int) -> list[Match]:
    """The k entries that share most of the words of `text`, the share as the score; of equals the first."""
    asked = _words(text)
    shares = [(len(asked & _words(entry.prompt)) / max(1, len(asked)), entry) for entry in entries]
    best = sorted((match for match in shares if match[0] > 0), key=lambda match: -match[0])
    return [Match(entry, share) for share, entry in best[:k]]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
