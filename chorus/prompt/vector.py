"""A prompt as one vector whose cosine with another prompt's is their match score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PromptVector:
    """A prompt in the vector space of one embedder. Scores of different embedders must not be compared.

    embedder: what made the vector, part of the cache key: "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "clip:<digest>", "conditioning:<width>"
    vector: [D] float32, unit norm; all zeros for an encoding without tokens, which matches nothing
    """

    embedder: str
    vector: np.ndarray

    @classmethod
    def of(cls, embedder: str, vector: np.ndarray) -> PromptVector:
        """A vector of any length but zero, brought to unit norm."""
        vector = np.asarray(vector, np.float64)
        return cls(embedder, (vector / max(np.linalg.norm(vector), 1e-12)).astype(np.float32))
