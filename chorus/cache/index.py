"""Nearest-neighbour search over a cache's sources, following the catalog."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from .errors import VectorLengthMismatch
from .transaction import HISTORY, Transaction
from .vectors import TIE_TOLERANCE, Vectors, no_vectors, score

_TIES = 8  # candidates beside the k wanted, for equal scores


class VectorIndex:
    """The sources of a cache by embedder, brought up to date with each transaction. Not thread-safe."""

    def __init__(self):
        self._families: dict[str, _Family] = {}

    def nearest(
        self,
        transaction: Transaction,
        query: np.ndarray,
        embedder: str,
        space: str,
        k: int,
        exclude: Collection[int] = (),
        *,
        elsewhere: bool = False,
    ) -> list[tuple[int, float]]:
        """The k best (seq, cosine) of this embedder in the space with this key, by score, then the newest.

        query: [D] float32 of unit norm. exclude: numbers that are passed over. elsewhere: in all spaces but this one.
        Raises VectorLengthMismatch.
        """
        # Removed first, so that a family whose update fails half-way is not kept.
        family = self._families.pop(embedder, None) or _Family(embedder)
        family.follow(transaction)
        self._families[embedder] = family
        return family.nearest(query, space, k, exclude, elsewhere)

    def clear(self) -> None:
        """Forget all vectors, when the catalog they followed was replaced."""
        self._families.clear()


class _Family:
    """The sources of one embedder. Row i: the number `seqs[i]`, the space, and whether it is still in the catalog."""

    def __init__(self, embedder: str):
        self._embedder = embedder
        self._vectors: Vectors | None = None  # None while there is no source
        self._seqs = np.empty(0, np.int64)
        self._spaces = np.empty(0, np.int64)  # by their numbers in `_keys`
        self._alive = np.empty(0, bool)
        self._keys: dict[str, int] = {}
        self._seen = 0  # the catalog's version

    def follow(self, transaction: Transaction) -> None:
        """Bring the vectors up to date with `transaction`. Reads the catalog's version, and what changed."""
        version = transaction.version()
        if self._seen == version:
            return
        known = version - HISTORY <= self._seen < version
        dropped = transaction.dropped_after(self._seen) if known else None
        if dropped is None:  # start over
            self._alive[:], self._seen = False, -1
        else:
            self._alive &= ~np.isin(self._seqs, dropped)
        self._compact()
        length = 0 if self._vectors is None else self._vectors.length
        for seqs, keys, vectors in transaction.sources(self._embedder, self._seen, length):
            if self._vectors is None:
                self._vectors = no_vectors(vectors.shape[1])
            before = np.append(self._seqs[-1:] if len(self._seqs) else -1, seqs[:-1])
            new = seqs > np.maximum.accumulate(before)  # a damaged index of the catalog could bring a row twice
            self._vectors.add(vectors[new])
            spaces = np.array([self._keys.setdefault(key, len(self._keys)) for key in keys], np.int64)
            self._seqs = np.append(self._seqs, seqs[new])
            self._spaces = np.append(self._spaces, spaces[new])
            self._alive = np.append(self._alive, np.ones(int(new.sum()), bool))
        self._seen = version

    def nearest(
        self, query: np.ndarray, space: str, k: int, exclude: Collection[int], elsewhere: bool
    ) -> list[tuple[int, float]]:
        """As `VectorIndex.nearest`, scored in float64."""
        if self._vectors is None:
            return []
        if self._vectors.length != query.size:
            raise VectorLengthMismatch(self._embedder, query.size, self._vectors.length)
        inside = self._spaces == self._keys.get(space, -1)
        wanted = self._alive & (~inside if elsewhere else inside)
        if exclude:
            wanted &= ~np.isin(self._seqs, list(exclude))
        count, ask = int(wanted.sum()), k + _TIES
        while k > 0 and count:
            rows, rough = self._vectors.best(query, wanted, min(ask, count))
            scores = score(self._vectors.at(rows), query)
            ranked = sorted(zip(self._seqs[rows].tolist(), scores.tolist(), strict=True), key=lambda m: (-m[1], -m[0]))
            # Rows after the last candidate can tie with the k-th best only if the last candidate nearly does.
            if len(rows) < ask or rough[-1] < ranked[k - 1][1] - TIE_TOLERANCE:
                return ranked[:k]
            ask *= 4
        return []

    def _compact(self) -> None:
        """Remove the vectors of deleted rows, once there are many."""
        alive = self._alive
        dead = len(alive) - int(alive.sum())
        if self._vectors is None or (dead < len(alive) and dead <= max(256, len(alive) // 8)):
            return
        self._vectors.keep(alive)
        self._seqs, self._spaces, self._alive = self._seqs[alive], self._spaces[alive], alive[alive]
        if not len(self._alive):
            self._vectors, self._keys = None, {}
