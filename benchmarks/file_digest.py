"""What the digest of a model file costs beside reading it: `python tools/run.py python -P tools/launch.py
benchmarks.file_digest`.

One file is read and digested in turn, from the page cache, which is the hardest case: from a disk reading takes
longer and the digest does not. Then the digest is asked for again, as every later request does.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from chorus.comfy.files import FileDigests

SIZE = 2 << 30  # bytes
ROUNDS = 5
_CHUNK = 1 << 24


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        with file.open("wb") as out:
            for _ in range(SIZE // _CHUNK):
                out.write(os.urandom(_CHUNK))
        reading, digesting, again = [], [], []
        for _ in range(ROUNDS):
            reading.append(_read(file))
            digests = FileDigests(None)
            digesting.append(_timed(lambda d=digests: d.of(file)))
            again.append(_timed(lambda d=digests: d.of(file)))
    ratios = sorted(d / r for d, r in zip(digesting, reading, strict=True))
    print(f"reading: {SIZE / statistics.median(reading) / 1e9:.2f} GB/s on {os.cpu_count()} cores")
    print(f"digest over reading: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {ROUNDS})")
    print(f"asked again: {1e6 * statistics.median(again):.0f} µs")


def _read(file: Path) -> float:
    buffer = bytearray(_CHUNK)

    def whole() -> None:
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass

    return _timed(whole)


def _timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
