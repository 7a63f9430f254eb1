"""Serves ROOT, which holds entry 1, while nothing in it may be written; prints what each change comes to.

Root may write everywhere: then the work is another user's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import safetensors.torch  # noqa: F401 - the other user may not be able to read where it is installed
from sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector

from chorus.cache import CacheUnavailable, LocalCache


def forbid(root: Path) -> None:
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def serve(cache: LocalCache) -> str:
    (match,) = cache.search(random_vector(1), EMBEDDER, SPACE)
    assert_is_entry(1, cache.load(match.entry.id))
    assert cache.entries() == [cache.find_request("request-1")] == [match.entry]
    assert cache.stats().entries == cache.count() == 1
    return match.entry.id


if __name__ == "__main__":
    root = Path(sys.argv[1])
    forbid(root)
    cache = LocalCache(root)
    entry_id = serve(cache)
    for change in (
        lambda: cache.put(new_entry(2)),
        lambda: cache.record_hit(entry_id, 1.0),
        lambda: cache.pin(entry_id),
        lambda: cache.forget(entry_id),
        cache.clear,
        cache.rebuild,
    ):
        try:
            change()
            print("changed")
        except CacheUnavailable as error:
            print(error)
        serve(cache)
