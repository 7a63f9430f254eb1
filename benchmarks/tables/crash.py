"""SIGKILL in the middle of stores, evictions, deletions and rebuilds: what is served wrong, and what is lost.

Every operation is killed at each line of the cache's code that it executes, and writers are killed at random moments,
which fall inside SQLite and the system's calls, too. The programs are those of tests/cache/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from chorus.cache import CacheError, LocalCache
from tools.demo_graph import CHECKOUT

from .. import report
from ..samples import Bench

PROGRAMS = CHECKOUT / "tests" / "cache"
OPERATIONS = ("put", "evict", "hit", "forget", "rebuild")
STRIDE, KILLS = {True: 1, False: 6}, {True: 400, False: 30}  # by whether the run is a full one
LIMIT = 10**9


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by operation. Needs no sampling: `bench` is not asked."""
    rows = []
    for operation in OPERATIONS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            said = _run("killed_at_lines.py", operation, Path(folder) / "cache", STRIDE[full])
        rows.append({"operation": f"{operation}, at each line", **json.loads(said.splitlines()[-1])})
    rows.append({"operation": "put, at random moments", **_random_moments(KILLS[full])})
    columns = {"trials": "trials", "wrong": "served wrong", "lost": "promised and lost", "finished": "not hit"}
    rows = [{"operation": r["operation"], **{shown: r[name] for name, shown in columns.items()}} for r in rows]
    return report.Result(
        name="crash",
        title="Killed at any moment",
        columns=list(rows[0]),
        rows=rows,
        summary={
            "crash_trials": sum(r["trials"] for r in rows),
            "wrong_served": sum(r["served wrong"] for r in rows),
            "lost_committed": sum(r["promised and lost"] for r in rows),
        },
        summary_file="cache.json",
    )


def _run(program: str, *arguments: object) -> str:
    command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def _random_moments(kills: int) -> dict[str, int]:
    """Writers killed at random moments; what `put` returned before is promised."""
    found = {"trials": kills, "wrong": 0, "lost": 0, "finished": 0}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "cache"
        promised = dict(line.split() for line in _run("killed_writers.py", root, kills, LIMIT).splitlines())
        cache = LocalCache(root, max_bytes=LIMIT)
        for entry_id, number in promised.items():
            try:
                known, loaded = cache.get(entry_id), cache.load(entry_id)
            except CacheError:
                found["lost"] += 1
                continue
            if known is None or known.settings["number"] != int(number) or not _is_entry(int(number), loaded):
                found["wrong"] += 1
        cache.close()
    return found


def _is_entry(number: int, loaded: dict) -> bool:
    """Whether these are the tensors that tests/cache/sample.py makes for an entry of this number."""
    import torch

    generator = torch.Generator().manual_seed(number)
    final, checkpoint = torch.randn(2, 1, 4, 2, 4, 4, generator=generator)
    words = torch.randn(8 * 256 - 6, 64, generator=generator)
    made = {"final": final, "checkpoint/0.937500": checkpoint.to(torch.bfloat16), "tokens": words.half()}
    return loaded.keys() == made.keys() and all(torch.equal(loaded[name], made[name]) for name in made)
