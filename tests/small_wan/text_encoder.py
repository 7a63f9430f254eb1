"""A deterministic text encoder: fixed random vectors a word, mixed with the neighbouring words as a real one would.

No weights and no file: the vectors are drawn from a generator seeded by the word itself.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import torch

DIM = 256
LENGTH = 32  # tokens, zero padded as UMT5's are

# How much of each neighbour's (rotated) vector a token carries: context binds "red" to "circle".
_CONTEXT = {-2: 0.3, -1: 0.6, 1: 0.6, 2: 0.3}
_POSITION = 0.25


def words(text: str) -> list[str]:
    """The tokens of a prompt: lower-case words, at most LENGTH."""
    return re.findall(r"[a-z0-9]+", text.lower())[:LENGTH]


@lru_cache(maxsize=4096)
def _vector(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(DIM, generator=generator)


@lru_cache(maxsize=8)
def _shuffle(offset: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + offset)
    return torch.randperm(DIM, generator=generator)


def encode(text: str) -> torch.Tensor:
    """Prompt → [1, LENGTH, DIM], rows of unit variance, zero beyond the last word; empty text is all zeros."""
    tokens = words(text)
    out = torch.zeros(1, LENGTH, DIM)
    for i, word in enumerate(tokens):
        row = _vector(word) + _POSITION * _vector(f"#{i}")
        for offset, weight in _CONTEXT.items():
            if 0 <= i + offset < len(tokens):
                row = row + weight * _vector(tokens[i + offset])[_shuffle(offset)]
        out[0, i] = row / row.std()
    return out
