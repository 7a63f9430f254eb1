"""The vectors of one space in memory, searched exactly."""

from __future__ import annotations

import numpy as np

# Two float32 inner products of equal vectors may differ by their order of summation; whatever is this close
# to the k-th score is scored again in float64 before the order is decided.
TIE_TOLERANCE = 1e-5


def score(vectors: np.ndarray, query: np.ndarray):
    """Cosine in float64 of unit vectors [..., D] and a query [D], in [-1, 1]: [...]."""
    return (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=-1).clip(-1.0, 1.0)


class ExactPool:
    """Vectors by number (`seq`), searched by inner product, every one of them. Not thread-safe.

    Rows are only ever appended, in the order of their numbers, so that a thread may read the first n while others
    are added.
    """

    tolerance = TIE_TOLERANCE
    first_ask = 8  # candidates beside the k wanted, for ties

    def __init__(self):
        self._matrix = np.empty((0, 0), np.float32)  # [capacity, D]
        self._seqs = np.empty(0, np.int64)  # [capacity]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def seqs(self) -> np.ndarray:
        """The numbers, ascending: [N] int64."""
        return self._seqs[: self._count]

    @property
    def matrix(self) -> np.ndarray:
        """The vectors in the order of `seqs`: [N, D] float32."""
        return self._matrix[: self._count]

    @property
    def vector_length(self) -> int:
        """D, 0 before the first vector."""
        return self._matrix.shape[1]

    def reserve(self, count: int, length: int) -> None:
        """Make room for so many vectors [length] in all."""
        if count > len(self._seqs):
            matrix, seqs = np.empty((count, length), np.float32), np.empty(count, np.int64)
            if self._count:
                matrix[: self._count], seqs[: self._count] = self.matrix, self.seqs
            self._matrix, self._seqs = matrix, seqs

    def add(self, seqs: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors [M, D] under numbers [M], ascending and above those that are there."""
        count = self._count + len(seqs)
        if count > len(self._seqs):
            self.reserve(max(count, 2 * self._count if self._count < 10**5 else self._count * 5 // 4), vectors.shape[1])
        self._matrix[self._count : count], self._seqs[self._count : count] = vectors, seqs
        self._count = count

    def remove(self, seqs: np.ndarray) -> None:
        """Forget these numbers; those that are not there are passed over."""
        kept = ~np.isin(self.seqs, seqs)
        if not kept.all():
            self._matrix, self._seqs = self.matrix[kept], self.seqs[kept]
            self._count = len(self._seqs)

    def candidates(self, query: np.ndarray, ask: int) -> tuple[np.ndarray, np.ndarray]:
        """The `ask` best rows and their scores, best first: [ask] numbers, [ask] float32."""
        scores = self.matrix @ query
        rows = np.argpartition(scores, -ask)[-ask:] if ask < len(scores) else np.arange(len(scores))
        rows = rows[np.argsort(-scores[rows])]
        return self.seqs[rows], scores[rows]

    def ceiling(self, query: np.ndarray) -> float:
        """What no score here exceeds, but for rounding."""
        return float((self.matrix @ query).max(initial=-np.inf))

    def vectors(self, seqs: np.ndarray) -> np.ndarray:
        """The vectors of numbers that are there: [M, D] float32."""
        return self._matrix[np.searchsorted(self.seqs, seqs)]
