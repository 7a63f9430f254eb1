"""Bundles: entries in one file, to share with other people. A zip of entry files and a manifest.

    manifest.json                     {"chorus_bundle": 1, "entries": [{"id", "bytes", "sha256", "prompt"}, …]}
    entries/<id>.safetensors          the entry's file, as the cache keeps it

A bundle comes from a stranger: nothing in it is believed before it was checked, and nothing is written outside the
cache. An entry is taken over only when its file is what the manifest says, is sound, and holds only finite numbers.
What cannot be checked is whether a latent shows what its prompt says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .entry import Entry
from .errors import CacheError
from .local import LocalCache

VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 64 * 2**20  # bytes
MAX_ENTRIES = 100_000
UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError)  # by zipfile
_MEMBER = re.compile(r"entries/([0-9a-f]{32})\.safetensors")


class BundleRefused(CacheError):
    """A file is not a bundle that this version reads, or claims what cannot be."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is not taken: {self.reason}."


@dataclass(frozen=True)
class Imported:
    """What became of a bundle's entries. refused: (id, why)."""

    taken: tuple[Entry, ...]
    present: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def write_bundle(cache: LocalCache, entries: Sequence[Entry], path: Path, progress: Callable[[int], None]) -> int:
    """Put `entries` into a bundle at `path`, complete or not at all; returns its size in bytes.

    `progress(done)` is called after each. Raises what `LocalCache.file` raises, and OSError.
    """
    partial = path.with_name(path.name + ".partial")
    listed = []
    try:
        # Entry files are compressed already.
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as bundle:
            for entry in entries:
                content = cache.file(entry.id)
                bundle.writestr(f"entries/{entry.id}.safetensors", content)
                digest = hashlib.sha256(content).hexdigest()
                listed.append({"id": entry.id, "bytes": len(content), "sha256": digest, "prompt": entry.prompt})
                progress(len(listed))
            bundle.writestr(MANIFEST, json.dumps({"chorus_bundle": VERSION, "entries": listed}, indent=1))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def read_bundle(cache: LocalCache, path: Path, progress: Callable[[int, int], None]) -> Imported:
    """Take a bundle's entries over into `cache`; those that are there already stay as they are.

    `progress(done, of)` is called after each. Raises BundleRefused for a file that is no bundle, and CacheError when
    the cache itself cannot take entries; an entry that is not sound is refused alone.
    """
    taken: list[Entry] = []
    present: list[str] = []
    refused: list[tuple[str, str]] = []
    try:
        with zipfile.ZipFile(path) as bundle:
            listed = _manifest(path, bundle)
            for done, (entry_id, (size, digest)) in enumerate(listed.items(), start=1):
                if cache.get(entry_id) is not None:
                    present.append(entry_id)
                else:
                    try:
                        content = _member(bundle, entry_id, size, digest, cache.max_bytes)
                        taken.append(cache.adopt(entry_id, content))
                    except (ValueError, *UNREADABLE) as error:
                        refused.append((entry_id, str(error)))
                progress(done, len(listed))
    except (*UNREADABLE, OSError) as error:
        raise BundleRefused(path, f"it cannot be read as a zip file ({error})") from error
    return Imported(tuple(taken), tuple(present), tuple(refused))


def _manifest(path: Path, bundle: zipfile.ZipFile) -> dict[str, tuple[int, str]]:
    """Entry id → (bytes, SHA-256), with every member of the zip accounted for."""
    names = bundle.namelist()
    if len(names) > MAX_ENTRIES + 1:
        raise BundleRefused(path, f"it has {len(names):,} members, more than {MAX_ENTRIES:,}")
    if MANIFEST not in names:
        raise BundleRefused(path, f"it has no {MANIFEST}")
    strange = [name for name in names if name != MANIFEST and not _MEMBER.fullmatch(name)]
    if strange:
        raise BundleRefused(path, f"it holds something else than entries: {strange[0]!r}")
    if len(set(names)) < len(names):
        raise BundleRefused(path, "it holds a name twice")
    if bundle.getinfo(MANIFEST).file_size > MAX_MANIFEST:
        raise BundleRefused(path, f"its {MANIFEST} is larger than {MAX_MANIFEST:,} bytes")
    try:
        with bundle.open(MANIFEST) as file:
            manifest = json.loads(file.read(MAX_MANIFEST + 1))
        version = manifest["chorus_bundle"]
        if version != VERSION:
            raise BundleRefused(path, f"it has version {version!r}, this Chorus reads {VERSION}")
        listed = {entry["id"]: (int(entry["bytes"]), str(entry["sha256"])) for entry in manifest["entries"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleRefused(path, f"its {MANIFEST} is not one ({type(error).__name__}: {error})") from error
    members = {_MEMBER.fullmatch(name)[1] for name in names if name != MANIFEST}  # type: ignore[index]
    if members != listed.keys():
        raise BundleRefused(path, "its manifest lists other entries than it holds")
    return listed


def _member(bundle: zipfile.ZipFile, entry_id: str, size: int, digest: str, most: int) -> bytes:
    """An entry's file, no larger than it says. ValueError with what is wrong."""
    if not 0 < size <= most:
        raise ValueError(f"it says it has {size:,} bytes; the cache holds {most:,}")
    with bundle.open(f"entries/{entry_id}.safetensors") as file:
        content = file.read(size + 1)  # never more, however far it would unpack
    if len(content) != size:
        raise ValueError(f"it has other than the {size:,} bytes it says")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("it does not have the checksum in the manifest")
    return content
