"""Processor time of one exact search, by how the vectors are kept: the figures behind docs/cache.md.

    python tools/run.py python -P tools/launch.py benchmarks.flat_search

Vectors of 1024 numbers in clusters, the eleven nearest, one core, median of 60 searches in milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from chorus.cache.vectors import ArrayVectors, FaissVectors, Vectors, faiss_or_none

LENGTH, NEAREST = 1024, 11


def clustered(count: int) -> np.ndarray:
    """[N, D] float32 of unit norm, mixtures of six hundred."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((600, LENGTH), np.float32)
    made = np.empty((count, LENGTH), np.float32)
    for start in range(0, count, 5000):
        one, two, three = base[rng.integers(600, size=(3, min(5000, count - start)))]
        share = rng.uniform(0, 0.7, (len(one), 1)).astype(np.float32)
        mixed = one + share * (two - three) + np.float32(0.1) * rng.standard_normal(one.shape, np.float32)
        made[start : start + 5000] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return made


def median(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    spent = []
    for query in queries:
        began = time.process_time()
        search(query)
        spent.append(1000 * (time.process_time() - began))
    return float(np.median(spent))


def main() -> None:
    faiss = faiss_or_none()
    faiss.omp_set_num_threads(1)
    for count in (4000, 10_000, 100_000):
        vectors = clustered(count)
        queries = vectors[np.random.default_rng(1).integers(count, size=60)]
        every, few = np.ones(count, bool), np.arange(count) % 100 == 0
        found = {}
        for kind in (FaissVectors, ArrayVectors):
            kept: Vectors = kind(LENGTH)
            kept.add(vectors)
            for wanted, name in ((every, "all"), (few, "1 %")):
                found[f"{kind.__name__}, {name}"] = median(lambda q: kept.best(q, wanted, NEAREST), queries)  # noqa: B023
        half = faiss.IndexScalarQuantizer(LENGTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        half.train(vectors[:1])
        half.add(vectors)
        sel = faiss.IDSelectorBitmap(np.packbits(every, bitorder="little"))
        parameters = faiss.SearchParameters(sel=sel)
        found["16 bits, all"] = median(lambda q: half.search(q[None], NEAREST, params=parameters), queries)  # noqa: B023
        print(f"{count:,}", {name: round(spent, 2) for name, spent in found.items()}, flush=True)


if __name__ == "__main__":
    main()
