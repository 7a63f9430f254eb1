"""Vectors of prompts for search: WordLlama's, whose weights come inside its package. No model to fetch, no graph.

They find what people type among what they once wrote. Reuse compares prompts by the vectors of `embedding`, which know
what the model made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


def installed() -> bool:
    """Whether the package is installed; loads nothing."""
    return find_spec("wordllama") is not None


def embed_sentences(texts: Sequence[str]) -> np.ndarray:
    """[N, 256] float32 of unit norm, of any texts. RuntimeError says in one line why it cannot be."""
    if not installed():
        raise RuntimeError("pip install wordllama")
    try:
        model = _model()
    except Exception as error:  # a broken or older package may raise anything
        raise RuntimeError(f"wordllama: {type(error).__name__}: {error}".splitlines()[0]) from error
    vectors = np.nan_to_num(model.embed(list(texts)))  # a text without a word has no mean
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@cache
def _model() -> Any:
    import wordllama

    # The package looks for its own tokenizer in a folder of another name; as its cache, its folder serves.
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
