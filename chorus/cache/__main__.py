"""Look after a cache from the command line: `python -m chorus.cache --help`, from this pack's folder."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from . import CacheError, Entry, EntryDamaged, EntryMissing, LocalCache
from .local import limits

DAY = 86_400.0  # seconds
PAGE = 200  # entries read from the catalog at once

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out, err = Console(), Console(stderr=True)

Folder = Annotated[
    Path,
    typer.Argument(
        envvar="CHORUS_CACHE", help="A cache's folder, for example ComfyUI/user/__chorus/default.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@contextmanager
def opened(folder: Path) -> Iterator[LocalCache]:
    """The cache in `folder`, which must exist; its faults end the command with exit status 1 and a line."""
    if not any(folder.glob("catalog-*.sqlite")) and not (folder / "blobs").is_dir():
        err.print(f"{folder}: there is no cache in this folder", markup=False)
        raise typer.Exit(2)
    cache = None
    try:
        cache = LocalCache(folder, **limits())
        yield cache
    except (CacheError, ValueError) as error:
        err.print(str(error), markup=False)
        raise typer.Exit(1) from error
    finally:
        if cache is not None:
            cache.close()


def every(cache: LocalCache) -> list[Entry]:
    """All entries, newest first."""
    found: list[Entry] = []
    while page := cache.entries(PAGE, len(found)):
        found += page
    return found


def size(count: float) -> str:
    """Bytes for people, in units of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def shown(entries: list[Entry], title: str) -> Table:
    table = Table("id", "prompt", "size", "hits", "age", "source", title=title)
    for entry in entries:
        age = f"{max(0.0, time.time() - entry.created) / DAY:.1f} d"
        source = "yes" if entry.is_source else "no"
        table.add_row(entry.id[:12], escape(entry.prompt), size(entry.bytes), str(entry.hits), age, source)
    return table


def find(cache: LocalCache, prefix: str) -> Entry:
    """The one entry whose id begins so; exit status 2 where there is none or several."""
    found = [e for e in every(cache) if e.id.startswith(prefix)] if prefix else []
    if len(found) != 1:
        err.print(f"{prefix!r}: {'no entry' if not found else f'{len(found)} entries'} with such an id", markup=False)
        raise typer.Exit(2)
    return found[0]


@app.command()
def ls(
    folder: Folder,
    words: Annotated[str, typer.Option(help="Only prompts that contain this text.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """List entries, newest first."""
    with opened(folder) as cache:
        found = [e for e in every(cache) if words.casefold() in e.prompt.casefold()]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(e) for e in found[:limit]], indent=1))
    else:
        out.print(shown(found[:limit], f"{min(limit, len(found))} of {len(found)} entries"))


@app.command()
def show(
    folder: Folder, entry: Annotated[str, typer.Argument(help="An id, or how it begins.")], as_json: Json = False
) -> None:
    """All that is known of one entry."""
    with opened(folder) as cache:
        known = dataclasses.asdict(find(cache, entry))
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    table = Table("", "", show_header=False)
    for name, value in known.items():
        table.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
    out.print(table)


@app.command()
def stats(folder: Folder, as_json: Json = False) -> None:
    """How much is kept, and what it has saved."""
    with opened(folder) as cache:
        known = dataclasses.asdict(cache.stats())
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    out.print(f"{known['entries']} entries, {size(known['bytes'])} of {size(known['max_bytes'])}")
    out.print(f"{known['hits']} hits, about {known['seconds_saved']:.0f} s saved")


@app.command()
def check(
    folder: Folder,
    fix: Annotated[bool, typer.Option("--fix", help="Make the catalog anew from what is sound.")] = False,
) -> None:
    """Read every entry whole and compare its checksums. Exit status 1 when something is damaged or missing.

    Reading is enough for the cache to put a damaged entry in quarantine, as any look-up does; --fix also makes the
    catalog anew from the files that are sound.
    """
    bad: list[str] = []
    with opened(folder) as cache:
        entries = every(cache)
        for entry in track(entries, "checking", console=err, transient=True):
            try:
                cache.load(entry.id)
            except (EntryDamaged, EntryMissing) as error:
                bad.append(str(error))
        kept = cache.rebuild() if fix else len(entries) - len(bad)
    for line in bad:
        err.print(line, markup=False)
    out.print(f"{len(entries)} entries read, {len(bad)} damaged or missing, {kept} kept")
    if bad:
        raise typer.Exit(1)


@app.command()
def forget(
    folder: Folder,
    entry: Annotated[str, typer.Option("--id", help="An id, or how it begins.")] = "",
    words: Annotated[str, typer.Option(help="All whose prompt contains this text.")] = "",
    older: Annotated[float, typer.Option(help="All that were last used more than so many days ago.")] = 0.0,
    yes: Yes = False,
) -> None:
    """Delete entries from disk. Where several options are given, all must hold."""
    if not (entry or words or older):
        err.print("say what to forget: --id, --words or --older")
        raise typer.Exit(2)
    with opened(folder) as cache:
        found = [find(cache, entry)] if entry else every(cache)
        found = [e for e in found if words.casefold() in e.prompt.casefold()]
        found = [e for e in found if not older or time.time() - e.used > older * DAY]
        if found and not yes:
            out.print(shown(found, "to be deleted"))
            typer.confirm(f"Delete {len(found)} entries?", abort=True)
        for known in found:
            cache.forget(known.id)
    out.print(f"{len(found)} entries deleted, {size(sum(e.bytes for e in found))} freed")


@app.command()
def clear(folder: Folder, yes: Yes = False) -> None:
    """Delete all entries, and what is in quarantine."""
    with opened(folder) as cache:
        if not yes:
            typer.confirm(f"Delete all {cache.stats().entries} entries?", abort=True)
        out.print(f"{cache.clear()} entries deleted")


if __name__ == "__main__":
    app(prog_name="python -m chorus.cache")
