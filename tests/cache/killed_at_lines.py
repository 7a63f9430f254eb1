"""Does OPERATION on ROOT again and again, each time in a process that is killed one line of the cache's code later.

So a SIGKILL falls on every STRIDE-th line that a store (or an eviction, a deletion, a rebuild) executes. After each the
cache is opened anew and read whole. Prints one JSON object: trials, wrong (entries whose bytes are not what was
stored), lost (entries that were promised and are gone) and finished (trials whose operation came to its end).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from sample import assert_is_entry, new_entry

import chorus.cache
from chorus.cache import EntryMissing, LocalCache, local

CODE = str(Path(chorus.cache.__file__).parent)
KEPT = 3  # entries that every operation must leave alone
KILOBYTES = 64
ROOMY, TIGHT = 10**9, 6 * KILOBYTES * 1024


def put(cache: LocalCache, number: int) -> None:
    print(cache.put(new_entry(number, kilobytes=KILOBYTES)).id)


# Each does its work on an open cache of KEPT entries and one more, the newest.
OPERATIONS: dict[str, Callable[[LocalCache, int], object]] = {
    "put": put,
    "evict": put,
    "hit": lambda cache, number: cache.record_hit(cache.entries()[0].id, 1.0),
    "forget": lambda cache, number: cache.forget(cache.entries()[0].id),
    "rebuild": lambda cache, number: cache.rebuild(),
}


def killed_after(lines: int | None, work: Callable[[], object]) -> int:
    """Do `work`, killed at the given line of the cache's code; returns how many lines it took."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            seen += 1
            if seen == lines:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return seen


def in_a_child(lines: int | None, root: Path, limit: int, operation: str, number: int) -> tuple[bool, str]:
    """Whether the operation came to its end, and what it printed, in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        cache = LocalCache(root, max_bytes=limit)
        took = killed_after(lines, partial(OPERATIONS[operation], cache, number))
        print(f"lines {took}")
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0, said


def main(operation: str, root: Path, stride: int) -> dict[str, int]:
    limit = TIGHT if operation == "evict" else ROOMY
    local.RESERVED_FOR = 0.0  # as if minutes had passed between the trials
    promised = set()

    def prepare(number: int) -> None:
        with closing(LocalCache(root, max_bytes=limit)) as cache:
            if number == 0:
                promised.update(cache.put(new_entry(n, kilobytes=KILOBYTES)).id for n in range(KEPT))
            if operation not in ("put", "evict"):
                for left in [entry for entry in cache.entries() if entry.id not in promised]:
                    cache.forget(left.id)
                cache.put(new_entry(1000 + number, kilobytes=KILOBYTES))

    prepare(0)
    _, said = in_a_child(None, root, limit, operation, 999)
    lines = int(said.split()[-1])
    found = {"trials": 0, "wrong": 0, "lost": 0, "finished": 0}
    for trial, line in enumerate(range(1, lines + 2 * stride, stride), start=1):
        prepare(trial)
        finished, said = in_a_child(line, root, limit, operation, 2000 + trial)
        found["trials"] += 1
        found["finished"] += finished
        if operation == "put":
            promised |= {word for word in said.split() if len(word) == 32}
        with closing(LocalCache(root, max_bytes=limit)) as cache:
            for entry in cache.entries(10_000):
                try:
                    with suppress(EntryMissing):  # its file was deleted first: a miss, after which its row is gone, too
                        loaded = cache.load(entry.id)
                        assert_is_entry(entry.settings["number"], loaded, kilobytes=KILOBYTES)
                except AssertionError:
                    found["wrong"] += 1
            if operation != "evict":
                found["lost"] += len(promised - {entry.id for entry in cache.entries(10_000)})
        held = sum(path.stat().st_size for path in (root / "blobs").rglob("*") if path.is_file())
        assert held <= limit, f"{held} bytes in a cache of {limit}"
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
