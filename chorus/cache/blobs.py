"""The files of entries, written atomically. What is in one: format.py.

root/partial/<id>                           being written
root/blobs/<2 hex>/<id>.safetensors         committed
root/quarantine/<id>.safetensors            found damaged
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..log import logger
from .format import PREFIX, BlobDamaged, BlobNewer, EntryFile, Header, Packed, header_length, read_header

log = logger(__name__)

_ID = re.compile(r"[0-9a-f]{32}")


class Blobs:
    """The files under one root. No state of its own: safe for any number of threads and processes.

    Methods raise OSError as the file system does; what fails a checksum is never served.
    """

    def __init__(self, root: Path):
        self._committed = root / "blobs"
        self._partial = root / "partial"
        self._quarantine = root / "quarantine"
        for folder in (self._committed, self._partial, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, entry_id: str) -> Path:
        """Where the committed file of an entry lies. ValueError for anything that is not an entry's id."""
        if not _ID.fullmatch(entry_id):
            raise ValueError(f"{entry_id!r} is not an entry id (32 lower-case hex digits)")
        return self._committed / entry_id[:2] / f"{entry_id}.safetensors"

    def write(self, entry_id: str, packed: Packed) -> None:
        """Commit a file: after this returns it survives a power cut; before, none of that name exists."""
        target = self.path(entry_id)
        partial = self._partial / entry_id
        target.parent.mkdir(parents=True, exist_ok=True)
        self._partial.mkdir(exist_ok=True)
        with partial.open("xb") as file:
            file.write(packed.head)
            file.write(packed.body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        _sync_folder(target.parent)

    def read(self, entry_id: str, digest: str) -> EntryFile:
        """A file whose every byte was verified.

        digest: SHA-256 of its head, from the catalog. Raises BlobDamaged, BlobNewer, FileNotFoundError, OSError.
        """
        return EntryFile(self.path(entry_id).read_bytes(), digest)

    def headers(self) -> Iterator[Header]:
        """The headers of all committed files, to rebuild a catalog; damaged files are quarantined."""
        for path in self._files(self._committed):
            try:
                yield _read_header(path)
            except FileNotFoundError:
                continue  # evicted by another process meanwhile
            except BlobNewer as error:
                log.warning("Cache file %s is left out of the rebuilt catalog: %s", path, error)
            except BlobDamaged as error:
                log.warning("Cache file %s is left out of the rebuilt catalog: %s", path, error)
                os.replace(path, self._quarantine / path.name)

    def quarantine(self, entry_id: str) -> None:
        """Move an entry's file out of the way. A file that is already gone is no error."""
        path = self.path(entry_id)
        with suppress(FileNotFoundError):
            os.replace(path, self._quarantine / path.name)

    def remove(self, entry_id: str) -> None:
        """Delete what there is of an entry, in whatever state."""
        path = self.path(entry_id)
        for place in (path, self._partial / entry_id, self._quarantine / path.name):
            place.unlink(missing_ok=True)

    def empty_quarantine(self) -> None:
        """Delete all damaged files, catalogs among them."""
        for path in self._files(self._quarantine):
            path.unlink(missing_ok=True)

    def ids_older_than(self, age: float) -> set[str]:
        """Ids of entries of which any file, in any state, was last written more than `age` seconds ago.

        Or so far in the future: by a clock that was set back since.
        """
        now = time.time()
        ids = set()
        for folder in (self._committed, self._partial, self._quarantine):
            for file in _scanned(folder):
                name = file.name.split(".", 1)[0]
                try:
                    if _ID.fullmatch(name) and abs(now - file.stat().st_mtime) > age:
                        ids.add(name)
                except FileNotFoundError:
                    continue
        return ids

    @staticmethod
    def _files(folder: Path) -> Iterator[Path]:
        return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _scanned(folder: Path | str) -> Iterator[os.DirEntry]:
    """All files below a folder: several times faster than pathlib, which counts where there are 100,000."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir():
                yield from _scanned(entry.path)
            else:
                yield entry


def _read_header(path: Path) -> Header:
    with path.open("rb") as file:
        prefix = file.read(PREFIX.size)
        head = prefix + file.read(header_length(prefix))
        size = file.seek(0, os.SEEK_END)
    return read_header(head, size, path.stem)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
