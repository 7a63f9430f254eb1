"""Bundles: entries in one file, to share with other people. A zip of entry files and a manifest.

    entries/<id>.safetensors          the entry's file, as the cache keeps it
    manifest.json                     {"chorus_bundle": 1, "entries": [{"id", "bytes", "sha256", "prompt"}, …]}

Entry files are stored in the zip as they are, so that none unpacks to more than it weighs.

A bundle comes from a stranger: nothing in it is believed before it was checked, and nothing is written outside the
cache. An entry is taken over only when its file is what the manifest says and keeps the rules of rules.py. What cannot
be checked is whether a latent shows what its prompt says.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .entry import CacheStats, Entry
from .errors import CacheError, CacheUnavailable, EntryDamaged, EntryMissing
from .interface import Cache

VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 32 * 2**20  # bytes
MAX_ENTRIES = 100_000
_CHUNK = 2**20  # bytes read at once
_SIGNATURE = b"PK\x03\x04"  # how a zip file with anything in it begins
_MEMBER = re.compile(r"entries/([0-9a-f]{32})\.safetensors")
# What zipfile raises for a file that is broken or is no zip file.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)


class BundleRefused(CacheError):
    """A bundle is not taken, and nothing of it was. place: which; code: why, for programs, one of `CODES`."""

    CODES = ("not_a_bundle", "bundle_damaged", "bundle_version", "cache_full")

    def __init__(self, place: Path | str, code: str, reason: str):
        super().__init__(place, code, reason)
        self.place, self.code, self.reason = place, code, reason

    def __str__(self) -> str:
        return f"{self.place} is not taken: {self.reason}."


@dataclass(frozen=True)
class Imported:
    """What became of a bundle's entries. refused: (id, why).

    evicted: how many fewer entries the cache has than it had and has taken: they made room.
    """

    taken: tuple[Entry, ...]
    present: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    evicted: int = 0


@dataclass(frozen=True)
class Exported:
    """A bundle that was written. bytes: its size. left_out: (id, why) of entries that are not there, or damaged."""

    bytes: int
    left_out: tuple[tuple[str, str], ...]


# -- writing


def write_bundle(cache: Cache, ids: Iterable[str], path: Path, progress: Callable[[int], None]) -> Exported:
    """Put entries into a bundle at `path`, complete or not at all.

    `progress(done)` is called after each. Raises what `bundled` raises, and OSError.
    """
    partial = path.with_name(path.name + ".partial")
    left_out: list[tuple[str, str]] = []
    try:
        with partial.open("wb") as file:
            for done, pieces in enumerate(bundled(cache, ids, left_out), start=1):
                file.writelines(pieces)
                progress(done)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path.stat().st_size, tuple(left_out))


def bundled(cache: Cache, ids: Iterable[str], left_out: list[tuple[str, str]]) -> Iterator[list[bytes]]:
    """The bytes of a bundle in their order, for each entry in turn and at last for the manifest.

    Entries that are not there (any more), or turn out damaged, are put into `left_out` with the reason. Before any
    bytes come: EntryMissing or EntryDamaged when none is left, ValueError for no ids or too many. CacheUnavailable.
    """
    wanted = list(dict.fromkeys(ids))
    if not 0 < len(wanted) <= MAX_ENTRIES:
        raise ValueError(f"{len(wanted):,} entries to export: a bundle has 1 to {MAX_ENTRIES:,}")
    sink = _Pieces()
    listed: list[dict[str, str | int]] = []
    fault: CacheError | None = None
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as bundle:  # type: ignore[call-overload]
        for entry_id in wanted:
            try:
                entry, content = _read(cache, entry_id)
            except (EntryMissing, EntryDamaged) as error:
                left_out.append((entry_id, str(error.reason)))
                fault = error
                continue
            bundle.writestr(f"entries/{entry_id}.safetensors", content)
            digest = hashlib.sha256(content).hexdigest()
            listed.append({"id": entry_id, "bytes": len(content), "sha256": digest, "prompt": entry.prompt})
            yield sink.taken()
        if fault is not None and not listed:
            raise fault
        bundle.writestr(MANIFEST, _manifest(listed))
    yield sink.taken()


def _manifest(listed: list[dict[str, str | int]]) -> bytes:
    text = json.dumps({"chorus_bundle": VERSION, "entries": listed}, indent=1).encode()
    if len(text) <= MAX_MANIFEST:
        return text
    return _manifest([{key: value for key, value in entry.items() if key != "prompt"} for entry in listed])


def _read(cache: Cache, entry_id: str) -> tuple[Entry, bytes]:
    entry = cache.get(entry_id)
    if entry is None:
        raise EntryMissing(entry_id)
    return entry, cache.file(entry_id)


class _Pieces:
    """A file that can only be written, and gives away what was."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(piece)
        return len(piece)

    def flush(self) -> None:
        """Part of what zipfile wants of a file."""

    def taken(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces


# -- reading


def read_bundle(cache: Cache, path: Path, progress: Callable[[int, int], None]) -> Imported:
    """Take the entries of the bundle at `path` over into `cache`; see `Bundle`. BundleRefused also when it is away."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BundleRefused(path, "not_a_bundle", f"it cannot be opened ({error})") from error
    with file:
        return Bundle(file, path).copy_into(cache, progress)


class Bundle:
    """A bundle whose list was checked, its entries not yet. BundleRefused for a file that is no bundle.

    file: open for reading and seekable; it stays the caller's to close. place: what messages call it.
    """

    def __init__(self, file: IO[bytes], place: Path | str):
        self._place = place
        try:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            signature = file.read(len(_SIGNATURE))
        except OSError as error:
            raise self._refused("not_a_bundle", f"it cannot be read ({error})") from error
        if signature != _SIGNATURE:
            raise self._refused("not_a_bundle", "it is no bundle, which is a zip file")
        try:
            self._zip = zipfile.ZipFile(file)
        except _UNREADABLE as error:
            raise self._refused("bundle_damaged", f"it cannot be read as a zip file ({error})") from error
        self._listed = self._manifest(size)

    def copy_into(self, cache: Cache, progress: Callable[[int, int], None]) -> Imported:
        """Take the entries over into `cache`; those that are there already stay as they are.

        Evicts others as `Cache.put` does. `progress(done, of)` is called after each. BundleRefused when they can
        never fit beside what is pinned, CacheUnavailable when the cache takes none now; an entry that is not sound is
        refused alone.
        """
        before = cache.stats()
        there = {entry_id: cache.get(entry_id) is not None for entry_id in self._listed}
        present = [entry_id for entry_id in there if there[entry_id]]
        absent = [entry_id for entry_id in there if not there[entry_id]]
        self._require_room(absent, before)
        taken: list[Entry] = []
        refused: list[tuple[str, str]] = []
        for done, entry_id in enumerate(absent, start=1):
            try:
                taken.append(cache.adopt(entry_id, self._member(entry_id, before.max_bytes)))
            except CacheUnavailable as error:
                if not taken:
                    raise
                refused += [(rest, str(error)) for rest in absent[done - 1 :]]
                break
            except Exception as error:  # one bad entry must not end the import of the others
                refused.append((entry_id, str(error) or type(error).__name__))
            progress(len(present) + done, len(self._listed))
        try:
            evicted = max(0, before.entries + len(taken) - cache.count())
        except CacheUnavailable:  # what was added before is reported all the same
            evicted = 0
        return Imported(tuple(taken), tuple(present), tuple(refused), evicted)

    def _refused(self, code: str, reason: str) -> BundleRefused:
        return BundleRefused(self._place, code, reason)

    def _manifest(self, size: int) -> dict[str, tuple[int, str]]:
        """Entry id → (bytes, SHA-256), with every member of the zip, a file of `size` bytes, accounted for."""
        members = self._zip.infolist()
        names = [member.filename for member in members]
        if len(names) > MAX_ENTRIES + 1:
            raise self._refused("not_a_bundle", f"it has {len(names):,} members, more than {MAX_ENTRIES:,}")
        if MANIFEST not in names:
            raise self._refused("not_a_bundle", f"it has no {MANIFEST}")
        strange = [name for name in names if name != MANIFEST and not _MEMBER.fullmatch(name)]
        if strange:
            raise self._refused("not_a_bundle", f"it holds something else than entries: {strange[0]!r}")
        if len(set(names)) < len(names):
            raise self._refused("bundle_damaged", "it holds a name twice")
        if sum(member.compress_size for member in members) > size:
            raise self._refused("bundle_damaged", "its members overlap")
        listed = self._read_manifest()
        if {f"entries/{entry_id}.safetensors" for entry_id in listed} != set(names) - {MANIFEST}:
            raise self._refused("bundle_damaged", "its manifest lists other entries than it holds")
        return listed

    def _read_manifest(self) -> dict[str, tuple[int, str]]:
        member = self._zip.getinfo(MANIFEST)
        if member.compress_type != zipfile.ZIP_STORED:
            raise self._refused("not_a_bundle", f"its {MANIFEST} is compressed; Chorus stores it as it is")
        if member.file_size > MAX_MANIFEST:
            raise self._refused("not_a_bundle", f"its {MANIFEST} is larger than {MAX_MANIFEST:,} bytes")
        try:
            content = self._stored(member)
        except _UNREADABLE as error:
            raise self._refused("bundle_damaged", f"its {MANIFEST} cannot be read ({error})") from error
        try:
            manifest = json.loads(content)
            version = manifest["chorus_bundle"]
            if version == VERSION:
                return {str(entry["id"]): (int(entry["bytes"]), str(entry["sha256"])) for entry in manifest["entries"]}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = f"its {MANIFEST} is not one ({type(error).__name__}: {error})"
            raise self._refused("not_a_bundle", reason) from error
        reason = (
            f"it has version {version!r:.40}, this Chorus reads {VERSION}: update Chorus, or ask for another export"
        )
        raise self._refused("bundle_version", reason)

    def _require_room(self, absent: list[str], stats: CacheStats) -> None:
        need = sum(self._info(entry_id).compress_size for entry_id in absent)
        room = stats.max_bytes - stats.pinned_bytes
        if need > room:
            reason = f"its new entries take {need:,} bytes, and beside pinned ones the cache has {max(0, room):,}"
            raise self._refused("cache_full", f"{reason}: raise the cache's limit, or unpin some")
        if stats.max_entries is not None and len(absent) > stats.max_entries:
            reason = f"it has {len(absent):,} new entries, but the cache keeps at most {stats.max_entries:,}"
            raise self._refused("cache_full", f"{reason}: raise CHORUS_CACHE_ENTRIES")

    def _info(self, entry_id: str) -> zipfile.ZipInfo:
        return self._zip.getinfo(f"entries/{entry_id}.safetensors")

    def _member(self, entry_id: str, most: int) -> bytes:
        """An entry's file, no larger than it says. ValueError with what is wrong."""
        size, digest = self._listed[entry_id]
        if not 0 < size <= most:
            raise ValueError(f"it says it has {size:,} bytes; the cache holds {most:,}")
        member = self._info(entry_id)
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed; Chorus stores entries in a bundle as they are")
        if member.file_size != size:
            raise ValueError(f"it has other than the {size:,} bytes it says")
        content = self._stored(member)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("it does not have the checksum in the manifest")
        return content

    def _stored(self, member: zipfile.ZipInfo) -> bytes:
        """The bytes of a member that is not compressed. ValueError where it has others than it says."""
        content = io.BytesIO()  # its value needs no copy; ZipFile.read holds the content twice for a while
        with self._zip.open(member) as file:
            while chunk := file.read(min(_CHUNK, member.file_size - content.tell())):
                content.write(chunk)
        if not content.tell() == member.file_size == member.compress_size:
            raise ValueError(f"it has other than the {member.file_size:,} bytes it says")
        return content.getvalue()
