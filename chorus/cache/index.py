"""Exact nearest-neighbour search in memory, following the catalog."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection

import numpy as np

from .transaction import HISTORY, Transaction

log = logging.getLogger(__name__)

# Two float32 inner products of equal vectors may differ by their order of summation; whatever is this close
# to the k-th score is scored again in float64 before the order is decided.
TIE_TOLERANCE = 1e-5


@functools.cache
def _faiss():
    try:
        import faiss
    except ImportError:
        log.warning("faiss is not installed: the cache searches with numpy (exact, slower for many entries)")
        return None
    return faiss


class VectorPool:
    """The vectors of one (space, embedder), searched exactly by inner product.

    The matrix belongs to the pool and FAISS searches it in place: adding appends, removing moves the last row
    into the gap, and neither copies the rest. Not thread-safe.
    """

    def __init__(self):
        self._matrix = np.empty((0, 0), np.float32)  # [capacity, D]
        self._seqs: list[int] = []  # row → seq
        self._rows: dict[int, int] = {}  # seq → row

    def __len__(self) -> int:
        return len(self._seqs)

    @property
    def vector_length(self) -> int | None:
        """D, None while the pool is empty."""
        return self._matrix.shape[1] if self._seqs else None

    def add(self, seq: int, vector: np.ndarray) -> None:
        """Add `vector` ([D] float32) under the number `seq`."""
        row = len(self._seqs)
        if row == 0:
            self._matrix = np.empty((64, vector.size), np.float32)
        elif row == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
        self._matrix[row] = vector
        self._seqs.append(seq)
        self._rows[seq] = row

    def remove(self, seq: int) -> None:
        """Remove `seq`; nothing happens when it is not there."""
        row = self._rows.pop(seq, None)
        if row is None:
            return
        last = self._seqs.pop()
        if last != seq:
            self._matrix[row] = self._matrix[len(self._seqs)]
            self._seqs[row] = last
            self._rows[last] = row

    def nearest(self, query: np.ndarray, k: int, exclude: Collection[int] = ()) -> list[tuple[int, float]]:
        """The k best (seq, cosine) outside `exclude`, by score, then the newest (the higher seq).

        query: [D] float32 of unit norm, with the pool's D.
        """
        if len(exclude) >= len(self) or k < 1:
            return []
        rows = self._candidates(query, min(len(self), k + len(exclude)))
        rows = [row for row in rows if self._seqs[row] not in exclude]
        scores = (self._matrix[rows].astype(np.float64) * query.astype(np.float64)).sum(axis=1).clip(-1.0, 1.0)
        found = [(self._seqs[row], float(score)) for row, score in zip(rows, scores, strict=True)]
        return sorted(found, key=lambda match: (-match[1], -match[0]))[:k]

    def _candidates(self, query: np.ndarray, k: int) -> list[int]:
        """Rows of the k best and of all that tie with the k-th, in no order."""
        matrix = self._matrix[: len(self)]
        faiss = _faiss()
        if faiss is None:
            scores = matrix @ query
            kth = np.partition(scores, len(scores) - k)[len(scores) - k]
            return np.flatnonzero(scores >= kth - TIE_TOLERANCE).tolist()
        ask = min(len(self), k + 8)
        while True:
            scores, rows = faiss.knn(query[None], matrix, ask, metric=faiss.METRIC_INNER_PRODUCT)
            if ask == len(self) or scores[0, -1] < scores[0, k - 1] - TIE_TOLERANCE:
                return rows[0][scores[0] >= scores[0, k - 1] - TIE_TOLERANCE].tolist()
            ask = min(len(self), 4 * ask)


class VectorIndex:
    """The pools of a cache, each as new as the transaction that last followed it. Not thread-safe."""

    def __init__(self):
        self._pools: dict[tuple[str, str | None], tuple[VectorPool, int]] = {}

    def follow(self, transaction: Transaction, embedder: str, space: str | None) -> VectorPool:
        """The pool of `embedder` in the space with this key (None: in all spaces), as of `transaction`.

        Costs one look at the catalog's version, plus what changed since: new sources are read, dropped ones
        removed.
        """
        version = transaction.version()
        # Taken out, so that a pool whose catching up fails half-way is not kept.
        pool, seen = self._pools.pop((embedder, space), (VectorPool(), 0))
        if seen != version:
            known = version - HISTORY <= seen < version
            dropped = transaction.dropped_after(seen) if known else None
            if dropped is None:
                pool, seen = VectorPool(), 0
            for seq in dropped or ():
                pool.remove(seq)
            for row in transaction.sources_after(seen, embedder, space):
                pool.add(row.seq, row.vector)
        self._pools[embedder, space] = pool, version
        return pool

    def clear(self) -> None:
        """Forget all pools, when the catalog they followed was replaced."""
        self._pools.clear()
