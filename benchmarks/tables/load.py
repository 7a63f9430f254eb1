"""The shared cache under load: 16 workers look up, store, evict, pin and forget at once, and one is killed half-way.

A real PostgreSQL with pgvector and a shared folder, all on this machine, with 16 processes that do nothing else. The
cache is filled to its limit first, so that every store evicts. Then the workers' notes are compared with the
catalog and the folder. An entry is *lost* if its store was confirmed and it is not there any more, though nobody
dropped its row; *dropped twice* if its row was deleted more than once; *wrong* if what was loaded is not what was
stored. The limit is checked ten times a second. A look-up is a search, a load and the counting of the hit. An entry
that was evicted between the search and the load is *gone*, which is no error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import torch

from chorus.cache import CacheError
from chorus.cache.format import pack
from chorus.cache.record import write_record
from chorus.cache.shared import Settings, SharedCache
from tools.demo_graph import CHECKOUT
from tools.postgres import Postgres

from .. import load_worker, report
from ..samples import Bench

WORKERS = 16
TENANT = "load"
LIMIT_LOOKS = 10  # a second

_AUDIT = """
CREATE TABLE public.audit (id text);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.audit VALUES (old.id); RETURN old; END $$;
CREATE TRIGGER audit AFTER DELETE ON chorus.entries FOR EACH ROW EXECUTE FUNCTION public.note();
"""


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by operation, in milliseconds. Needs no sampling: `bench` is not asked."""
    entries, seconds = (10_000, 300.0) if full else (320, 20.0)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Postgres({"max_connections": 120}) as server,
    ):
        lines, found = run(server, Path(folder), entries, seconds)
    rows = []
    for what in sorted({line[0] for line in lines} - {"wrong"}):
        took = np.array([line[1] for line in lines if line[0] == what and not line[2]]) * 1000
        ended = Counter(line[2] if line[2] in ("", "gone") else "error" for line in lines if line[0] == what)
        rows.append(
            {
                "operation": what,
                "n": sum(ended.values()),
                "a second": round(sum(ended.values()) / seconds, 1),
                "p50 ms": round(float(np.percentile(took, 50)), 2) if len(took) else None,
                "p99 ms": round(float(np.percentile(took, 99)), 2) if len(took) else None,
                "gone": ended["gone"],
                "errors": ended["error"],
            }
        )
    columns = ["operation", "n", "a second", "p50 ms", "p99 ms", "gone", "errors"]
    title = f"{WORKERS} workers on a shared cache of {entries:,} entries for {seconds:.0f} s, one of them killed"
    return report.Result("load", title, columns, rows, summary={"load": found}, summary_file="cache.json")


def run(server: Postgres, folder: Path, entries: int, seconds: float) -> tuple[list[list], dict[str, Any]]:
    """(what the workers noted after the fill, what was found of it)."""
    share = folder / "share"
    share.mkdir()
    packed = pack(
        write_record("0" * 32, time.time(), load_worker.new(0)), load_worker.vector(0), load_worker.new(0).tensors
    )
    limit = entries * (packed.size + 64)  # the header's length may differ by a few bytes
    settings = Settings(server.url(), share.as_uri(), TENANT, 0)
    cache = SharedCache(settings, "load", tier=folder / "tier", max_bytes=limit)
    cache.version()
    server.execute(_AUDIT)
    arguments = [server.url(), share.as_uri(), TENANT, str(folder)]
    workers = [_start([*arguments, str(n), str(entries // WORKERS), str(seconds)]) for n in range(WORKERS)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "filled\n":
                raise RuntimeError(f"a worker ended with status {worker.wait()} while the cache was filled")
        began, filled = time.time(), {n: len(_noted(folder, n)) for n in range(WORKERS)}
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        looks = over = 0
        killed = False
        with psycopg.connect(server.url(), autocommit=True) as connection:
            while any(worker.poll() is None for worker in workers):
                if not killed and time.time() - began > seconds / 2:
                    workers[0].send_signal(signal.SIGKILL)
                    killed = True
                looks += 1
                over += _taken(connection) > limit
                time.sleep(1 / LIMIT_LOOKS)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    failed = [worker.returncode for worker in workers[1:] if worker.returncode]
    noted = {n: _noted(folder, n) for n in range(WORKERS)}
    lines = [line for n in range(WORKERS) for line in noted[n][filled[n] :]]
    found = _compare(cache, server, share, [line for known in noted.values() for line in known])
    cache.close()
    errors = [line[2] for line in lines if line[2] not in ("", "gone")]
    operations = sum(line[0] != "wrong" for line in lines)
    found |= {"operations": operations, "errors": len(errors), "limit_looks": looks, "over_limit": over}
    found |= {"workers": WORKERS, "entries": entries, "seconds": seconds, "workers_failed": len(failed)}
    return lines, found


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(CHECKOUT / "tools" / "launch.py"), "benchmarks.load_worker", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _noted(folder: Path, index: int) -> list[list]:
    """A worker's lines; the one that a killed worker was writing is left out."""
    text = (folder / f"{index}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _taken(connection: psycopg.Connection) -> int:
    """Bytes that entries and uploads take, of one moment."""
    row = connection.execute(
        "SELECT (SELECT coalesce(sum(bytes), 0) FROM chorus.entries)"
        " + (SELECT coalesce(sum(bytes), 0) FROM chorus.reservations)"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _compare(cache: SharedCache, server: Postgres, share: Path, lines: list[list]) -> dict[str, int]:
    """What the workers noted against what there is."""
    stored = {line[3]: line[4] for line in lines if line[0] == "store" and not line[2]}
    dropped = Counter(entry_id for (entry_id,) in server.execute("SELECT id FROM audit"))
    kept = {entry.id: int(entry.settings["number"]) for entry in cache.entries(limit=10**6)}
    wrong = sum(line[0] == "wrong" for line in lines)
    unreadable = 0
    for entry_id, number in kept.items():
        try:
            wrong += not torch.equal(cache.load(entry_id)["final"], load_worker.content(number))
        except CacheError:
            unreadable += 1
    ends: dict[str, int] = defaultdict(int)
    ends |= {"lost": len(stored.keys() - kept.keys() - dropped.keys()) + unreadable}
    ends |= {"double": sum(times > 1 for times in dropped.values()), "wrong": wrong}
    ends |= {"stored": len(stored), "dropped": len(dropped), "kept": len(kept)}
    files = {path.stem for path in share.glob("*/??/*.safetensors")}
    ends["files_without_entry"] = len(files - kept.keys())  # at most the killed worker's, until it is swept
    return dict(ends)
