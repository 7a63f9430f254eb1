"""Stores, looks up, loads, pins, forgets in a shared cache: `worker.py URL BLOBS TENANT TIER FIRST COUNT KILOBYTES`.

Says "ready", waits for a line, then says `put ID NUMBER` for every entry stored, and at the end how much it did.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector

from chorus.cache import EntryMissing
from chorus.cache.shared import Settings, SharedCache

if __name__ == "__main__":
    url, blobs, tenant, tier, *numbers = sys.argv[1:]
    first, count, kilobytes = map(int, numbers)
    cache = SharedCache(Settings(url, blobs, tenant, 10**7), "default", tier=Path(tier))
    chance = random.Random(first)
    print("ready", flush=True)
    sys.stdin.readline()
    served = gone = 0
    for number in range(first, first + count):
        entry = cache.put(new_entry(number, kilobytes=kilobytes))
        print("put", entry.id, number, flush=True)
        for match in cache.search(random_vector(chance.randrange(first + count)), EMBEDDER, SPACE):
            try:
                loaded = cache.load(match.entry.id)
            except EntryMissing:
                gone += 1
                continue
            assert_is_entry(match.entry.settings["number"], loaded, kilobytes=kilobytes)
            cache.record_hit(match.entry.id, 1.0)
            served += 1
        if chance.random() < 0.1:
            cache.forget(entry.id)
            print("forgot", entry.id, number, flush=True)
    print("done", served, gone, flush=True)
    cache.close()
