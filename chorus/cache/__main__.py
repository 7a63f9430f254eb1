"""Look after a cache from the command line: `python -m chorus.cache --help`, from this pack's folder."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, track
from rich.table import Table
from rich.text import Text

from . import SORTS, CacheError, Entry, EntryDamaged, EntryMissing, LocalCache, Query, every
from .bundle import read_bundle, write_bundle
from .local import limits
from .schema import MIGRATIONS
from .words import by_meaning, by_text

DAY = 86_400.0  # seconds
UNLIMITED = 2**62  # bytes
_JOINERS = "\u200c\u200d"  # invisible, and part of emoji and of several scripts


class Terminal(Console):
    """Prints texts of other people, prompts for example, so that they do nothing to the terminal.

    Control characters, changes of the writing direction and halves of characters are shown as their escapes.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(printable(text), **options)


def printable(text: str) -> str:
    """`text` with every character that does not show as itself written as in Python: "\\x1b"."""
    return "".join(c if c.isprintable() or c in _JOINERS else repr(c)[1:-1] for c in text)


app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out, err = Terminal(), Terminal(stderr=True)

Folder = Annotated[
    Path,
    typer.Argument(
        envvar="CHORUS_CACHE", help="A cache's folder, for example ComfyUI/user/__chorus/default.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Id = Annotated[str, typer.Option("--id", help="An id, or how it begins.")]
Words = Annotated[str, typer.Option(help="Only those whose prompt contains this text.")]
Model = Annotated[str, typer.Option(help="Only those of a model: the digest of its weights, or how it begins.")]
Sort = StrEnum("Sort", {name: name for name in SORTS})  # type: ignore[misc]


@contextmanager
def opened(folder: Path, **other_limits: Any) -> Iterator[LocalCache]:
    """The cache in `folder`, which must exist; its faults end the command with exit status 1 and a line.

    other_limits: none without, so that looking at a cache never evicts from it.
    """
    if not any(folder.glob("catalog-*.sqlite")) and not (folder / "blobs").is_dir():
        err.print(f"{folder}: there is no cache in this folder", markup=False, soft_wrap=True)
        raise typer.Exit(2)
    cache = None
    try:
        cache = LocalCache(folder, **{"max_bytes": UNLIMITED} | other_limits)
        yield cache
    except (CacheError, ValueError) as error:
        err.print(str(error), markup=False)
        raise typer.Exit(1) from error
    finally:
        if cache is not None:
            cache.close()


def size(count: float) -> str:
    """Bytes for people, in units of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def shown(entries: list[Entry], title: str) -> Table:
    table = Table("id", "prompt", "size", "hits", "saved", "age", "source", "pinned", title=title)
    for entry in entries:
        age = f"{max(0.0, time.time() - entry.created) / DAY:.1f} d"
        source, pinned = ("yes" if told else "no" for told in (entry.is_source, entry.pinned))
        saved = f"{entry.saved:.0f} s"
        row = (entry.id[:12], escape(entry.prompt), size(entry.bytes), str(entry.hits), saved, age, source, pinned)
        table.add_row(*row)
    return table


def print_entries(entries: list[Entry], title: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(e) for e in entries], indent=1))
    else:
        out.print(shown(entries, title))


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
    words: Words = "",
    model: Model = "",
    pinned: Annotated[bool, typer.Option("--pinned", help="Only pinned ones.")] = False,
    sort: Annotated[Sort, typer.Option(help="What comes first.")] = Sort.newest,  # type: ignore[attr-defined]
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """List entries."""
    query = Query(words=words, weights=model, pinned=pinned or None, sort=sort.value)
    with opened(folder) as cache:
        found, count = cache.entries(limit, 0, query), cache.count(query)
    print_entries(found, f"{len(found)} of {count} entries", as_json)


@app.command()
def search(
    folder: Folder,
    words: Annotated[str, typer.Argument(help="A prompt, or some words.")],
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 10,
    as_json: Json = False,
) -> None:
    """List the entries nearest in meaning.

    Meaning needs the package wordllama; without it the entries that share most words with the text are listed, and a
    line says so.
    """
    with opened(folder) as cache:
        entries = list(every(cache))
    try:
        found = by_meaning(entries, words, limit)
    except RuntimeError as error:
        err.print(f"by words, not by meaning: {error}", markup=False)
        found = by_text(entries, words, limit)
    if as_json:
        typer.echo(json.dumps([{**dataclasses.asdict(m.entry), "score": m.score} for m in found], indent=1))
        return
    table = Table("score", "id", "prompt", title=f"nearest to {escape(repr(words))}")
    for match in found:
        table.add_row(f"{match.score:.2f}", match.entry.id[:12], escape(match.entry.prompt))
    out.print(table)


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
    most = f" of at most {known['max_entries']:,}" if known["max_entries"] is not None else ""
    out.print(f"{known['entries']:,} entries{most}, {size(known['bytes'])}")
    if known["pinned_bytes"]:
        out.print(f"{size(known['pinned_bytes'])} are pinned")
    out.print(f"{known['hits']:,} hits, about {known['seconds_saved']:.0f} s saved")
    if known["models"]:
        table = Table("weights", "latent format", "entries", "size", "hits", "saved", title="by model")
        for model in known["models"]:
            saved = f"{model['seconds_saved']:.0f} s"
            counts = (f"{model['entries']:,}", size(model["bytes"]), f"{model['hits']:,}", saved)
            table.add_row(model["weights"][:12], escape(model["latent_format"]), *counts)
        out.print(table)


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
def pin(
    folder: Folder,
    entries: Annotated[list[str], typer.Argument(help="Ids, or how they begin.")],
    off: Annotated[bool, typer.Option("--off", help="Unpin them.")] = False,
) -> None:
    """Keep entries from being evicted."""
    with opened(folder) as cache:
        found = [find(cache, entry) for entry in entries]
        for entry in found:
            cache.pin(entry.id, not off)
    out.print(f"{len(found)} entries {'unpinned' if off else 'pinned'}")


@app.command()
def prune(
    folder: Folder,
    gigabytes: Annotated[float | None, typer.Option("--gb", min=0.0, help="Keep at most so many GB.")] = None,
    entries: Annotated[int | None, typer.Option(min=0, help="Keep at most so many entries.")] = None,
) -> None:
    """Evict down to a limit now, the least worth first, pinned ones never; and clear away what crashes left behind.

    Without a limit, to those of the environment (CHORUS_CACHE_GB, CHORUS_CACHE_ENTRIES).
    """
    asked: dict[str, Any] = {}
    if gigabytes is None and entries is None:
        asked = {name: limits()[name] for name in ("max_bytes", "max_entries")}
    if gigabytes is not None:
        asked["max_bytes"] = int(gigabytes * 2**30)
    if entries is not None:
        asked["max_entries"] = entries
    with opened(folder) as cache:
        before = cache.stats()
    with opened(folder, **asked) as cache:
        after = cache.stats()
    freed = size(max(0, before.bytes - after.bytes))
    out.print(f"{before.entries - after.entries} entries evicted, {freed} freed, {after.entries} kept")


@app.command()
def forget(
    folder: Folder,
    entry: Id = "",
    words: Words = "",
    model: Model = "",
    older: Annotated[float, typer.Option(help="Only those last used more than so many days ago.")] = 0.0,
    yes: Yes = False,
) -> None:
    """Delete entries from disk. Where several options are given, all must hold."""
    if not (entry or words or model or older):
        err.print("say what to forget: --id, --words, --model or --older")
        raise typer.Exit(2)
    query = Query(words=words, weights=model, unused_since=time.time() - older * DAY if older else None)
    with opened(folder) as cache:
        found = every(cache, query)
        if entry:
            wanted = find(cache, entry).id
            found = [e for e in found if e.id == wanted]
        if found and not yes:
            out.print(shown(found, "to be deleted"))
            typer.confirm(f"Delete {len(found)} entries?", abort=True)
        for known in track(found, "deleting", console=err, transient=True):
            cache.forget(known.id)
    out.print(f"{len(found)} entries deleted, {size(sum(e.bytes for e in found))} freed")


@app.command()
def clear(folder: Folder, yes: Yes = False) -> None:
    """Delete all entries, and what is in quarantine."""
    with opened(folder) as cache:
        if not yes:
            typer.confirm(f"Delete all {cache.stats().entries} entries?", abort=True)
        out.print(f"{cache.clear()} entries deleted")


@app.command("export")
def export_bundle(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(help="The file to write.")],
    entry: Id = "",
    words: Words = "",
    model: Model = "",
    pinned: Annotated[bool, typer.Option("--pinned", help="Only pinned ones.")] = False,
) -> None:
    """Write entries into a bundle for other people. Their prompts, previews and settings go with them.

    Exit status 1 when one is damaged, or was evicted meanwhile, and is left out.
    """
    if bundle.exists():
        err.print(f"{bundle} is there already", markup=False)
        raise typer.Exit(2)
    query = Query(words=words, weights=model, pinned=pinned or None)
    with opened(folder) as cache, progress("exporting") as advance:
        found = every(cache, query)
        if entry:
            wanted = find(cache, entry).id
            found = [e for e in found if e.id == wanted]
        if not found:
            err.print("no entry is like that")
            raise typer.Exit(2)
        written = write_bundle(cache, [e.id for e in found], bundle, lambda done: advance(done, len(found)))
    for entry_id, why in written.left_out:
        err.print(f"{entry_id} is left out: {why}", markup=False)
    out.print(f"{len(found) - len(written.left_out)} entries, {size(written.bytes)}, in {bundle}", markup=False)
    if written.left_out:
        raise typer.Exit(1)


@app.command("import")
def import_bundle(
    folder: Annotated[Path, typer.Argument(help="A cache's folder; made where there is none.")],
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    as_json: Json = False,
) -> None:
    """Take entries over from a bundle, each once it was checked. Exit status 1 when one was refused."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    with opened(folder) as cache:
        most = max(limits()["max_bytes"], cache.stats().bytes)  # bounds what a stranger's file may unpack to
    with opened(folder, max_bytes=most) as cache, progress("importing") as advance:
        imported = read_bundle(cache, bundle, advance)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(imported), "taken": [e.id for e in imported.taken]}, indent=1))
    else:
        for entry_id, why in imported.refused:
            err.print(f"{entry_id} is refused: {why}", markup=False)
        taken, present, refused = map(len, (imported.taken, imported.present, imported.refused))
        evicted = f", {imported.evicted} evicted to make room" if imported.evicted else ""
        out.print(f"{taken} entries taken, {present} were there, {refused} refused{evicted}")
    if imported.refused:
        raise typer.Exit(1)


@app.command()
def migrate(folder: Folder, as_json: Json = False) -> None:
    """Bring the catalog to this version, which opening it does, too, and tell the entries' format versions."""
    with opened(folder) as cache:
        entries = every(cache)
    old = sum(not entry.shapes for entry in entries)
    known = {"catalog": len(MIGRATIONS), "entries": {"1": old, "2": len(entries) - old}}
    if as_json:
        typer.echo(json.dumps(known, indent=1))
        return
    out.print(f"catalog of version {known['catalog']}; {old} entries of format 1, {len(entries) - old} of format 2")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """`advance(done, of)` moves a bar on the terminal."""
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


if __name__ == "__main__":
    app(prog_name="python -m chorus.cache")
