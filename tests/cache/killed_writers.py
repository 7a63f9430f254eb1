"""Starts KILLS writers on ROOT, one after the other, and ends each with SIGKILL at a random moment.

Of every two, the second is killed after its first put, however slow the machine is.

Prints "<entry id> <number>" for every put that returned. Limited to MAX_BYTES; 256 kB an entry.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import safetensors.torch
from sample import new_entry

from chorus.cache import LocalCache
from chorus.cache.vectors import faiss_or_none


def write_until_killed(root: Path, max_bytes: int, numbers: itertools.count, report: int) -> None:
    cache = LocalCache(root, max_bytes=max_bytes, timeout=20)
    for number in numbers:
        entry = cache.put(new_entry(number, kilobytes=256))
        os.write(report, f"{entry.id} {number}\n".encode())  # one write: never half a line


if __name__ == "__main__":
    root, kills, max_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    delays = random.Random(0)
    safetensors.torch.save(dict(new_entry(0).tensors))  # what is slow the first time, before the clock starts
    faiss_or_none()
    for kill in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            write_until_killed(root, max_bytes, itertools.count(1000 * kill), write)
        os.close(write)
        with open(read) as pipe:
            first = pipe.readline() if kill % 2 else ""
            time.sleep(delays.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            print(first + pipe.read(), end="", flush=True)
