"""Waits for a line on its input, then puts the entries FIRST … LAST−1 of KILOBYTES each into ROOT.

Every fifth is pinned. MAX_ENTRIES 0 is no limit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sample import new_entry

from chorus.cache import LocalCache

if __name__ == "__main__":
    root, *numbers = sys.argv[1:]
    first, last, kilobytes, max_bytes, max_entries = map(int, numbers)
    print("ready", flush=True)
    sys.stdin.readline()
    cache = LocalCache(Path(root), max_bytes=max_bytes, max_entries=max_entries or None, timeout=20)
    for number in range(first, last):
        entry = cache.put(new_entry(number, kilobytes=kilobytes))
        if max_entries and number % 5 == 0:
            cache.pin(entry.id)
