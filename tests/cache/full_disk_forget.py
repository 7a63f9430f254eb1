"""Fills a small disk of its own at DISK with a cache and then to the last byte, and deletes from it, after a start too.

Prints "no mount" where such a disk cannot be had.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from sample import assert_is_entry, new_entry

from chorus.cache import CacheUnavailable, LocalCache

KILOBYTES = 200


def fill(disk: Path) -> None:
    """What another program writes until nothing is left."""
    with suppress(OSError), (disk / "other").open("ab") as file:
        while True:
            file.write(b"x" * 1000)
            file.flush()


def full_cache(disk: Path) -> tuple[Path, list[str]]:
    root = disk / "cache"
    cache = LocalCache(root)
    ids = []
    with suppress(CacheUnavailable):
        for number in range(400):
            ids.append(cache.put(new_entry(number, kilobytes=KILOBYTES)).id)
    assert len(ids) > 5
    fill(disk)
    return root, ids


def main(disk: Path) -> None:
    root, ids = full_cache(disk)
    running = LocalCache(root)
    assert_is_entry(0, running.load(ids[0]), KILOBYTES)
    running.forget(ids[0])
    assert running.get(ids[0]) is None
    fill(disk)
    running.close()

    again = LocalCache(root)
    assert [entry.id for entry in again.entries()] == ids[:0:-1]
    assert_is_entry(1, again.load(ids[1]), KILOBYTES)
    again.forget(ids[1])
    assert again.get(ids[1]) is None
    assert_is_entry(99, again.load(again.put(new_entry(99)).id))
    fill(disk)
    again.close()

    last = LocalCache(root)
    assert last.clear() == len(ids) - 1
    assert last.entries() == []
    assert not any((root / "blobs").rglob("*.safetensors"))
    assert_is_entry(1, last.load(last.put(new_entry(1)).id))
    last.close()
    print("done")


if __name__ == "__main__":
    disk = Path(sys.argv[1])
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        print("no mount")
    else:
        try:
            main(disk)
        finally:
            subprocess.run(["umount", "-l", str(disk)])
