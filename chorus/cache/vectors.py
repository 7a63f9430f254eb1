"""Vectors in memory, compared one by one with a query: by FAISS, or by NumPy where FAISS cannot be used."""

from __future__ import annotations

import functools
import sys
from typing import Any, Protocol

import numpy as np

from ..log import logger

log = logger(__name__)

# Two float32 inner products of equal vectors may differ by their order of summation; whatever is this close
# to the k-th score is scored again in float64 before the order is decided.
TIE_TOLERANCE = 1e-5


def score(vectors: np.ndarray, query: np.ndarray):
    """Cosine in float64 of unit vectors [..., D] and a query [D], in [-1, 1]: [...]."""
    return (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=-1).clip(-1.0, 1.0)


class Vectors(Protocol):
    """Vectors [N, D] by row, in the order in which they were added. Not thread-safe."""

    length: int  # D

    def add(self, vectors: np.ndarray) -> None:
        """Append vectors [M, D] float32."""

    def keep(self, wanted: np.ndarray) -> None:
        """Remove the rows where `wanted` [N] bool is False; the others move up."""

    def best(self, query: np.ndarray, wanted: np.ndarray, ask: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the `wanted` rows [N] bool, the `ask` best, at most: rows and inner products with `query` [D], best first.

        Rows whose product is not a number are left out.
        """

    def at(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of these rows: [M, D] float32."""


class FaissVectors:
    """`Vectors` in a flat index of FAISS. A search looks at the wanted rows only, on one core, and copies none."""

    def __init__(self, length: int):
        self.length = length
        self._index = faiss_or_none().IndexFlatIP(length)

    def add(self, vectors: np.ndarray) -> None:
        """See `Vectors.add`."""
        self._index.add(np.ascontiguousarray(vectors))

    def keep(self, wanted: np.ndarray) -> None:
        """See `Vectors.keep`."""
        self._index.remove_ids(_selector(~wanted))

    def best(self, query: np.ndarray, wanted: np.ndarray, ask: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectors.best`."""
        parameters = faiss_or_none().SearchParameters(sel=_selector(wanted))
        (scores,), (rows,) = self._index.search(query[None], ask, params=parameters)
        found = (rows >= 0) & ~np.isnan(scores)
        return rows[found], scores[found]

    def at(self, rows: np.ndarray) -> np.ndarray:
        """See `Vectors.at`."""
        return self._index.reconstruct_batch(rows)


class ArrayVectors:
    """`Vectors` in an array of NumPy. A search multiplies all rows, wanted or not."""

    def __init__(self, length: int):
        self.length = length
        self._rows = np.empty((0, length), np.float32)  # [capacity, D]
        self._count = 0

    def add(self, vectors: np.ndarray) -> None:
        """See `Vectors.add`."""
        count = self._count + len(vectors)
        if count > len(self._rows):
            rows = np.empty((count * 5 // 4, self.length), np.float32)
            rows[: self._count] = self._rows[: self._count]
            self._rows = rows
        self._rows[self._count : count] = vectors
        self._count = count

    def keep(self, wanted: np.ndarray) -> None:
        """See `Vectors.keep`."""
        self._rows = self._rows[: self._count][wanted]
        self._count = len(self._rows)

    def best(self, query: np.ndarray, wanted: np.ndarray, ask: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectors.best`."""
        scores = self._rows[: self._count] @ query
        rows = np.flatnonzero(wanted & ~np.isnan(scores))
        if ask < len(rows):
            rows = rows[np.argpartition(scores[rows], -ask)[-ask:]]
        rows = rows[np.argsort(-scores[rows])]
        return rows, scores[rows]

    def at(self, rows: np.ndarray) -> np.ndarray:
        """See `Vectors.at`."""
        return self._rows[rows]


def no_vectors(length: int) -> Vectors:
    """An empty collection of vectors of `length` numbers each."""
    return ArrayVectors(length) if faiss_or_none() is None else FaissVectors(length)


@functools.cache
def faiss_or_none() -> Any:
    """The module faiss, loaded by the first search; None where it cannot be used, with a message the first time.

    On macOS faiss-cpu and PyTorch each bring an OpenMP library of their own, and the second one to start ends the
    process (faiss-wheels issue 73).
    """
    if sys.platform == "darwin":
        return None
    try:
        import faiss
    except ImportError:
        log.warning("faiss is not installed: the cache searches with NumPy, which takes longer with many entries")
        return None
    return faiss


def _selector(rows: np.ndarray) -> Any:
    return faiss_or_none().IDSelectorBitmap(np.packbits(rows, bitorder="little"))
