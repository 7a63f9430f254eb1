"""Many vectors of one space: an inverted file (IVF) with 8 bits a number, and its snapshot on disk.

The candidates it finds are scored again from the catalog, so that no score is ever approximate; what may be missed is
a candidate. A snapshot is derived data: it saves the next start the training, is checked whole before it is read, and
the catalog decides what of it still counts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..log import logger

log = logger(__name__)

FORMAT = 1
BATCH = 20_000  # vectors assigned to lists at once
_FOOTER = struct.Struct("<Q8s")  # length of the JSON before it; magic
_MAGIC = b"CHRSIVF1"


@functools.cache
def faiss_or_none():
    """The module faiss; None, with a message the first time, where it is not installed."""
    try:
        import faiss
    except ImportError:
        log.warning("faiss is not installed: the cache searches exactly, which takes longer for many entries")
        return None
    return faiss


def lists_of(count: int) -> int:
    """How many lists: about 2√N, so that a look-up compares as many centroids as it reads vectors of few lists."""
    return int(min(4096, max(64, 2 * count**0.5)))


class ApproximatePool:
    """As `ExactPool`, but the best are found with a small chance to be missed. Not thread-safe.

    index: a trained faiss.IndexIVFScalarQuantizer whose ids are the numbers. seqs: these numbers, in any order.
    """

    tolerance = 0.01  # twice the error that 8 bits a number leave in the inner product of unit vectors
    first_ask = 60

    def __init__(self, index, seqs: np.ndarray):
        self._index = index
        self._parts = [np.asarray(seqs, np.int64)]
        self.trained_with = len(seqs)

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def seqs(self) -> np.ndarray:
        """The numbers, ascending: [N] int64."""
        if len(self._parts) > 1 or not _ascending(self._parts[0]):
            self._parts = [np.sort(np.concatenate(self._parts))]
        return self._parts[0]

    @property
    def vector_length(self) -> int:
        return self._index.d

    def add(self, seqs: np.ndarray, vectors: np.ndarray) -> None:
        """See `ExactPool.add`."""
        for start in range(0, len(seqs), BATCH):
            self._index.add_with_ids(np.ascontiguousarray(vectors[start : start + BATCH]), seqs[start : start + BATCH])
        self._parts.append(np.asarray(seqs, np.int64))

    def remove(self, seqs: np.ndarray) -> None:
        """See `ExactPool.remove`."""
        self._index.remove_ids(np.asarray(seqs, np.int64))
        self._parts = [self.seqs[~np.isin(self.seqs, seqs)]]

    def candidates(self, query: np.ndarray, ask: int) -> tuple[np.ndarray, np.ndarray]:
        """See `ExactPool.candidates`; may be fewer."""
        scores, seqs = self._index.search(query[None], ask)
        found = seqs[0] >= 0
        return seqs[0][found], scores[0][found]

    def ceiling(self, query: np.ndarray) -> float:
        """See `ExactPool.ceiling`: not known before it is searched."""
        return np.inf

    def save(self, file: Path, about: dict) -> None:
        """Write a snapshot with `about` (JSON-able) in it, in one step. OSError as the file system does."""
        faiss = faiss_or_none()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.touch()
            faiss.write_index(self._index, str(partial))
            about = {**about, "format": FORMAT, "trained_with": self.trained_with, "sha256": _digest(partial)}
            text = json.dumps(about).encode()
            with partial.open("ab") as out:
                out.write(text + _FOOTER.pack(len(text), _MAGIC))
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, file)
        except RuntimeError as error:  # faiss's word for a disk that is full
            raise OSError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Snapshot:
    """A sound snapshot: the pool, and what was said about it."""

    pool: ApproximatePool
    about: dict


def load_snapshot(file: Path) -> Snapshot | None:
    """The snapshot in `file`; None, with a message where there is one, if it is not exactly what was written."""
    faiss = faiss_or_none()
    if faiss is None or not file.exists():
        return None
    try:
        with file.open("rb") as content:
            size = content.seek(-_FOOTER.size, os.SEEK_END)
            length, magic = _FOOTER.unpack(content.read())
            if magic != _MAGIC or length > size:
                raise ValueError("it does not end as a snapshot does")
            content.seek(size - length)
            about = json.loads(content.read(length))
        if about["format"] != FORMAT:
            raise ValueError(f"its format {about['format']} is unknown")
        if _digest(file, size - length) != about["sha256"]:
            raise ValueError("it does not have its checksum")
        index = faiss.read_index(str(file))
        pool = ApproximatePool(index, _ids(index))
        pool.trained_with = int(about["trained_with"])
        return Snapshot(pool, about)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, struct.error) as error:
        log.warning("The search index %s is not used and made anew: %s", file, error)
        return None


def train(seqs: np.ndarray, matrix: np.ndarray, probes: int, should_stop=lambda: False) -> ApproximatePool | None:
    """An approximate pool of vectors [N, D] float32, on one core; None when it was told to stop.

    probes: how many lists a search reads. Seconds to minutes: for a thread of its own.
    """
    faiss = faiss_or_none()
    faiss.omp_set_num_threads(1)  # counts for this thread alone: the render has the other cores
    count, length = matrix.shape
    lists = lists_of(count)
    chosen = np.random.default_rng(0).choice(count, min(count, 40 * lists), replace=False)
    quantizer = faiss.IndexFlatIP(length)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, length, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.niter = 8
    index.cp.spherical = True  # the vectors have norm 1, and so have the centroids they are compared with
    index.cp.min_points_per_centroid = 1
    index.train(matrix[np.sort(chosen)])
    index.nprobe = min(probes, lists)
    for start in range(0, count, BATCH):
        if should_stop():
            return None
        index.add_with_ids(matrix[start : start + BATCH], seqs[start : start + BATCH])
    return ApproximatePool(index, seqs.copy())


def _ids(index) -> np.ndarray:
    faiss = faiss_or_none()
    lists = faiss.extract_index_ivf(index).invlists

    def of(number: int) -> np.ndarray:
        return faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()

    return np.concatenate([np.empty(0, np.int64), *(of(n) for n in range(lists.nlist) if lists.list_size(n))])


def _ascending(seqs: np.ndarray) -> bool:
    return bool((seqs[1:] > seqs[:-1]).all())


def _digest(file: Path, length: int | None = None) -> str:
    """SHA-256 of a file, or of its first `length` bytes."""
    digest = hashlib.sha256()
    for block in _blocks(file, length):
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path, length: int | None) -> Iterator[bytes]:
    left = file.stat().st_size if length is None else length
    with file.open("rb") as content:
        while left > 0 and (block := content.read(min(left, 2**20))):
            left -= len(block)
            yield block
