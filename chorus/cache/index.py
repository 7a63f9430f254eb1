"""Nearest-neighbour search over a cache's sources, following the catalog: exact while small, approximate when large."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..log import logger
from .approximate import ApproximatePool, faiss_or_none, load_snapshot, train
from .errors import VectorLengthMismatch
from .pool import TIE_TOLERANCE, ExactPool, score
from .transaction import HISTORY, Transaction

log = logger(__name__)

APPROXIMATE_FROM = 20_000  # sources of a space from which exact search takes longer than a look-up may
PROBES = 24  # lists that an approximate search reads
RETRAIN_AT = 4  # times as many vectors as it was trained with make an index out of shape
_READ = 500  # vectors asked from the catalog at once
_WITNESSES = 64  # of the newest entries, by which a snapshot is known to be of this catalog

Pool = ExactPool | ApproximatePool


class VectorIndex:
    """The sources of a cache by embedder and space, as new as the transaction that is asked. Not thread-safe.

    folder: where snapshots of large spaces lie.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._families: dict[str, _Family] = {}

    def nearest(
        self,
        transaction: Transaction,
        query: np.ndarray,
        embedder: str,
        space: str,
        k: int,
        exclude: Collection[int] = (),
    ) -> list[tuple[int, float]]:
        """The k best (seq, cosine) of this embedder in the space with this key, by score, then the newest.

        query: [D] float32 of unit norm. exclude: numbers that are passed over. VectorLengthMismatch.
        """
        family = self._follow(transaction, embedder)
        family.check_length(query.size)
        pool = family.pools.get(space)
        return [] if pool is None else family.nearest(transaction, pool, query, k, exclude)

    def nearest_elsewhere(
        self,
        transaction: Transaction,
        query: np.ndarray,
        embedder: str,
        space: str,
        k: int,
        exclude: Collection[int] = (),
    ) -> list[tuple[int, float]]:
        """As `nearest`, in all spaces but this one."""
        family = self._follow(transaction, embedder)
        family.check_length(query.size)
        pools = [pool for key, pool in family.pools.items() if key != space]
        found: list[tuple[int, float]] = []
        # There may be thousands of small spaces, one for each start image: only those that could answer are asked.
        for ceiling, pool in sorted(((pool.ceiling(query), pool) for pool in pools), key=lambda one: -one[0]):
            if len(found) == k and ceiling < found[-1][1] - TIE_TOLERANCE:
                break
            found = _best(found + family.nearest(transaction, pool, query, k, exclude), k)
        return found

    def clear(self) -> None:
        """Forget all vectors, when the catalog they followed was replaced."""
        for family in self._families.values():
            family.stop()
        self._families.clear()

    def forget(self, embedder: str | None = None, space: str | None = None) -> None:
        """Delete the snapshot of a space, or all, from disk. OSError as the file system does."""
        files = self._folder.glob("*") if space is None else [self._folder / _name(embedder or "", space)]
        for file in files:
            file.unlink(missing_ok=True)

    def wait(self) -> None:
        """Until what is being trained in the background is ready."""
        for family in self._families.values():
            for builder in list(family.builders.values()):
                builder.thread.join()

    def _follow(self, transaction: Transaction, embedder: str) -> _Family:
        """Costs one look at the catalog's version, plus what changed since."""
        # Taken out, so that a family whose catching up fails half-way is not kept.
        family = self._families.pop(embedder, None) or _Family(self._folder, embedder)
        family.follow(transaction)
        self._families[embedder] = family
        return family


class _Family:
    """The pools of one embedder, by space. gone: numbers that are still in a pool but not in the catalog."""

    def __init__(self, folder: Path, embedder: str):
        self.embedder = embedder
        self.pools: dict[str, Pool] = {}
        self.gone: set[int] = set()
        self.builders: dict[str, _Builder] = {}
        self._folder = folder
        self._seen = 0

    def follow(self, transaction: Transaction) -> None:
        """Become as new as `transaction`."""
        version = transaction.version()
        if self._seen != version:
            known = version - HISTORY <= self._seen < version
            dropped = transaction.dropped_after(self._seen) if known else None
            if dropped is None:
                self._reconcile(transaction)
            else:
                self.gone.update(dropped)
                self._add(transaction, transaction.sources(self.embedder, self._seen))
            if len(self.gone) > max(256, sum(map(len, self.pools.values())) // 8):
                self._compact()
            self._seen = version
        self._adopt(transaction)

    def check_length(self, length: int) -> None:
        kept = next((pool.vector_length for pool in self.pools.values()), length)
        if kept != length:
            raise VectorLengthMismatch(self.embedder, length, kept)

    def nearest(
        self, transaction: Transaction, pool: Pool, query: np.ndarray, k: int, exclude: Collection[int]
    ) -> list[tuple[int, float]]:
        """The k best (seq, cosine) of a pool, scored in float64."""
        ask = k + pool.first_ask
        while k > 0:
            seqs, rough = pool.candidates(query, min(ask, len(pool)))
            alive = np.array([seq not in self.gone and seq not in exclude for seq in seqs.tolist()], bool)
            if isinstance(pool, ExactPool):
                scored = _scored(seqs[alive], pool.vectors(seqs[alive]), query)
            else:
                read = transaction.vectors(seqs[alive].tolist(), query.size)
                scored = _scored(*read, query)
            found = _best(scored, k)
            # Whatever comes after the last candidate may tie with the k-th best only if that one nearly does.
            if ask >= len(pool) or (len(found) == k and rough[-1] < found[-1][1] - pool.tolerance):
                return found
            if isinstance(pool, ApproximatePool) and len(found) == k and ask > 500:
                return found  # a dense crowd: what is left out is as good as what is there
            ask *= 4
        return []

    def _reconcile(self, transaction: Transaction) -> None:
        """Agree with the catalog, whatever is here: load what is missing, forget what it no longer has."""
        live = transaction.sources(self.embedder)
        self.gone.clear()
        for space in self.pools.keys() - live.keys():
            self._drop(space)
        for space, seqs in live.items():
            pool = self.pools.get(space) or self._restored(transaction, space, seqs)
            have = pool.seqs if pool else np.empty(0, np.int64)
            if pool is not None:
                self.pools[space] = pool
                if len(dropped := np.setdiff1d(have, seqs, assume_unique=True)):
                    pool.remove(dropped)
            missing = np.setdiff1d(seqs, have, assume_unique=True)
            self._add(transaction, {space: missing})
            if isinstance(pool, ApproximatePool) and len(missing) > len(pool) // 10:
                self._save(transaction, space, pool)

    def _add(self, transaction: Transaction, sources: dict[str, np.ndarray]) -> None:
        for space, seqs in sources.items():
            pool = self.pools.get(space)
            if pool is not None and len(seqs) and len(pool) and seqs[0] <= pool.seqs[-1]:
                seqs = seqs[~np.isin(seqs, pool.seqs)]  # a damaged index of the catalog could bring them twice
            for start in range(0, len(seqs), _READ):
                length = next((p.vector_length for p in self.pools.values()), 0)
                found, vectors = transaction.vectors(seqs[start : start + _READ].tolist(), length)
                if not len(found):
                    continue
                if pool is None:
                    pool = self.pools[space] = ExactPool()
                    pool.reserve(len(seqs), vectors.shape[1])
                pool.add(found, vectors)

    def _compact(self) -> None:
        gone = np.fromiter(self.gone, np.int64, len(self.gone))
        for space, pool in list(self.pools.items()):
            pool.remove(gone)
            if not len(pool):
                self._drop(space)
        self.gone.clear()

    def _drop(self, space: str) -> None:
        del self.pools[space]
        if builder := self.builders.pop(space, None):
            builder.stop()

    # -- large spaces

    def stop(self) -> None:
        for builder in self.builders.values():
            builder.stop()

    def _adopt(self, transaction: Transaction) -> None:
        """Begin to train where a pool has grown large, and take what is ready."""
        for space, pool in list(self.pools.items()):
            if isinstance(pool, ApproximatePool):
                if len(pool) > RETRAIN_AT * pool.trained_with:
                    self.pools[space] = self._reloaded(transaction, space)
                continue
            builder = self.builders.get(space)
            if builder is None:
                if len(pool) >= APPROXIMATE_FROM and faiss_or_none() is not None:
                    self.builders[space] = _Builder(pool)
                continue
            if builder.thread.is_alive():
                continue
            if builder.made is None and len(pool) < 2 * builder.count:
                continue  # it failed, and said so: not again for as many
            del self.builders[space]
            if (made := builder.made) is not None:
                made.remove(np.setdiff1d(made.seqs, pool.seqs, assume_unique=True))
                later = np.setdiff1d(pool.seqs, made.seqs, assume_unique=True)
                made.add(later, pool.vectors(later))
                self.pools[space] = made
                self._save(transaction, space, made)

    def _reloaded(self, transaction: Transaction, space: str) -> ExactPool:
        del self.pools[space]
        self._add(transaction, {space: transaction.sources(self.embedder)[space]})
        pool = self.pools[space]
        assert isinstance(pool, ExactPool)
        return pool

    def _restored(self, transaction: Transaction, space: str, seqs: np.ndarray) -> ApproximatePool | None:
        """The pool of a snapshot that is of this catalog and of most of these sources."""
        file = self._folder / _name(self.embedder, space)
        snapshot = load_snapshot(file) if len(seqs) >= APPROXIMATE_FROM else None
        if snapshot is None:
            return None
        about, pool = snapshot.about, snapshot.pool
        ids = transaction.ids_of([int(seq) for seq in about["witnesses"]])
        kept = len(np.intersect1d(pool.seqs, seqs, assume_unique=True))
        if (
            about["catalog"] != transaction.catalog()
            or any(ids.get(int(seq), known) != known for seq, known in about["witnesses"].items())
            or len(seqs) > 2 * kept
            or len(pool) > 2 * kept
            or len(seqs) > RETRAIN_AT * pool.trained_with
        ):
            log.info("The search index %s is stale and made anew", file)
            return None
        return pool

    def _save(self, transaction: Transaction, space: str, pool: ApproximatePool) -> None:
        about = {
            "catalog": transaction.catalog(),
            "version": transaction.version(),
            "witnesses": transaction.ids_of(pool.seqs[-_WITNESSES:].tolist()),
        }
        try:
            pool.save(self._folder / _name(self.embedder, space), about)
        except OSError as error:
            log.warning("The search index is not kept for the next start: %s", error)


class _Builder:
    """Trains an approximate pool from what an exact one holds now, in a thread of its own."""

    def __init__(self, pool: ExactPool):
        self.made: ApproximatePool | None = None
        self.count = len(pool)
        self._stopped = False
        self._seqs, self._matrix = pool.seqs, pool.matrix  # never changed, only appended to
        self.thread = threading.Thread(target=self._run, name="chorus index", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self._stopped = True

    def _run(self) -> None:
        try:
            self.made = train(self._seqs, self._matrix, PROBES, lambda: self._stopped)
        except Exception as error:
            log.warning("The cache goes on searching exactly, which takes longer: no index could be made (%s)", error)
        finally:
            del self._seqs, self._matrix


def _scored(seqs: np.ndarray, vectors: np.ndarray, query: np.ndarray) -> list[tuple[int, float]]:
    return list(zip(seqs.tolist(), score(vectors, query).tolist(), strict=True))


def _best(found: list[tuple[int, float]], k: int) -> list[tuple[int, float]]:
    return sorted(found, key=lambda match: (-match[1], -match[0]))[:k]


def _name(embedder: str, space: str) -> str:
    return hashlib.sha256(f"{space} {embedder}".encode()).hexdigest()[:32] + ".ivf"
