"""Waits for a line on its input, then puts the entries FIRST … LAST−1 of KILOBYTES each into ROOT."""

from __future__ import annotations

import sys
from pathlib import Path

from sample import new_entry

from chorus.cache import LocalCache

if __name__ == "__main__":
    root, first, last, kilobytes, max_bytes = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    cache = LocalCache(Path(root), max_bytes=int(max_bytes), timeout=20)
    for number in range(int(first), int(last)):
        cache.put(new_entry(number, kilobytes=int(kilobytes)))
