"""Opens ROOT, keeps a small entry, then puts one that the disk has no room for: files end at 300 kB."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from sample import assert_is_entry, new_entry

from chorus.cache import CacheUnavailable, LocalCache

if __name__ == "__main__":
    cache = LocalCache(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    small = cache.put(new_entry(1))
    try:
        cache.put(new_entry(2, kilobytes=1024))
    except CacheUnavailable as error:
        print(error)
    assert_is_entry(1, cache.load(small.id))
    assert_is_entry(3, cache.load(cache.put(new_entry(3)).id))
    # The catalog cannot grow either: puts raise an error that says so, and the entries can still be read.
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
    try:
        for number in range(4, 100):
            cache.put(new_entry(number, kilobytes=1))
    except CacheUnavailable as error:
        print(error)
    assert_is_entry(1, cache.load(small.id))
    print("done")
