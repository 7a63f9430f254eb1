"""`make bench`: every table in its quick form; `make bench-full`: the whole. Both go on where they were stopped."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tools.demo_graph import CHECKOUT

from . import page, report
from .samples import KEPT, Bench
from .server import RealWan, Server

TABLES = (
    "looks",
    "courses",
    "hits",
    "from_image",
    "threshold",
    "can_tell",
    "tuning",
    "main",
    "amplification",
    "regions",
    "edits",
    "chains",
    "transfer",
    "embedders",
    "locality",
    "capacity",
    "states",
    "size",
    "eviction",
    "lookup",
    "overhead",
    "wall",
    "crash",
    "load",
    "panel",
)


def main(arguments: Sequence[str]) -> int:
    """Run the tables and return the exit status."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; all without")
    parser.add_argument("--full", action="store_true", help="all samples; hours instead of minutes")
    parser.add_argument("--output", type=Path, help="folder for the results; quick ones go to bench_output/")
    parser.add_argument("--processes", type=int, default=1, help="that share the samples of the bench model's tables")
    parser.add_argument("--order", type=int, help=argparse.SUPPRESS)  # of the samples, in a process beside another one
    parser.add_argument("--fresh", action="store_true", help="delete the samples of earlier runs first")
    server = parser.add_argument_group("real weights", "table `real` against a ComfyUI server that has this pack")
    server.add_argument("--server", metavar="URL", help="for example http://127.0.0.1:8188")
    for field in dataclasses.fields(RealWan):
        kind = int if field.type == "int" else str
        server.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    options = parser.parse_args(arguments)
    known = ("real",) if options.server else TABLES
    unknown = set(options.tables) - set(known)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))} here; there are {', '.join(known)}")
    if options.fresh:
        forget(KEPT)
    whole = options.full and not options.server
    output = options.output or (report.RESULTS if whole else KEPT / "results")
    console = Console()
    if options.server:
        subject = RealWan(**{field.name: getattr(options, field.name) for field in dataclasses.fields(RealWan)})
        kept = KEPT / hashlib.sha256(repr([options.server, subject]).encode()).hexdigest()[:12]
        bench = Bench(kept, subject, Server(options.server), kept / "videos")
    else:
        bench = Bench(order=options.order if options.processes < 2 else 0)
    helpers = [_beside(number, options) for number in range(1, options.processes)]
    try:
        for name in options.tables or known:
            began, sampled = time.perf_counter(), bench.sampled
            result = importlib.import_module(f".tables.{name}", __package__).measure(bench, options.full)
            seconds = time.perf_counter() - began
            command = f"make bench{'-full' if options.full else ''} ARGS={name}"
            report.write(result, command, seconds, output)
            console.print(report.table(result))
            console.print(f"{name}: {bench.sampled - sampled} samples, {seconds:.0f} s\n", style="dim")
            summary = report.summarise(result, output)
    finally:
        for helper in helpers:
            helper.terminate()
        bench.close()
    console.print(f"written: {summary.parent}")
    if whole and options.output is None:
        page.write(TABLES)
    return 0


def forget(kept: Path) -> None:
    """Delete the samples of all subjects, and what they are made from; results, and what else lies there, stay."""
    for file in [*kept.glob("samples-*.jsonl"), *kept.glob("*/samples-*.jsonl")]:
        file.unlink()
    for folder in (kept / "caches", *kept.glob("*/frames")):
        shutil.rmtree(folder, ignore_errors=True)


def _beside(order: int, options: argparse.Namespace) -> subprocess.Popen:
    """A process that samples for the same tables in another order; its results are thrown away."""
    folder = KEPT / "beside" / str(order)
    given = [*options.tables, "--order", str(order), "--output", str(folder), *(["--full"] if options.full else [])]
    launched = [sys.executable, "-P", str(CHECKOUT / "tools" / "launch.py"), __package__, *given]
    return subprocess.Popen(launched, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
