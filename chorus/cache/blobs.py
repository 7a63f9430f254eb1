"""The files of entries, written atomically. What is in one: format.py.

root/partial/<id>                           being written
root/blobs/<2 hex>/<id>.safetensors         committed
root/quarantine/<id>.safetensors            found damaged
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..log import logger
from .format import PREFIX, BlobDamaged, BlobNewer, EntryFile, Header, Packed, header_length, read_header

log = logger(__name__)

_ID = re.compile(r"[0-9a-f]{32}")


def is_id(entry_id: str) -> bool:
    """Whether this can be an entry's id."""
    return _ID.fullmatch(entry_id) is not None


def checked_id(entry_id: str) -> str:
    """The id, if it can be one. Else ValueError."""
    if not is_id(entry_id):
        raise ValueError(f"{entry_id!r} is not an entry id (32 lower-case hex digits)")
    return entry_id


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
        return self._committed / checked_id(entry_id)[:2] / f"{entry_id}.safetensors"

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
        return EntryFile(regular(self.path(entry_id)).read_bytes(), digest)

    def ids(self) -> set[str]:
        """Ids of all committed files."""
        return {found for file in _scanned(self._committed) if (found := self._id(Path(file.path)))}

    def headers(self, ids: Collection[str]) -> Iterator[tuple[str, Header]]:
        """(id, header) of these committed files, to make rows of them; damaged files are quarantined."""
        for entry_id in ids:
            path = self.path(entry_id)
            try:
                yield entry_id, _read_header(path)
            except FileNotFoundError:
                continue  # evicted by another process meanwhile
            except BlobNewer as error:
                log.warning("Cache file %s is left out of the catalog: %s", path, error)
            except BlobDamaged as error:
                log.warning("Cache file %s is left out of the catalog and moved to quarantine: %s", path, error)
                self.quarantine(entry_id)

    def quarantine(self, entry_id: str) -> None:
        """Move an entry's file out of the way. A file that is already gone is no error."""
        path = self.path(entry_id)
        target = self._quarantine / path.name
        with suppress(FileNotFoundError):
            os.replace(path, target)
            os.utime(target, follow_symlinks=os.utime not in os.supports_follow_symlinks)

    def remove(self, entry_id: str) -> None:
        """Delete every file of an entry: committed, half-written or in quarantine."""
        path = self.path(entry_id)
        for place in (path, self._partial / entry_id, self._quarantine / path.name):
            _delete(place)

    def sync(self, ids: Iterable[str]) -> None:
        """Make the deletion of these entries' files durable: after this a power cut does not bring them back."""
        for folder in {self.path(entry_id).parent for entry_id in ids}:
            if folder.is_dir():
                _sync_folder(folder)

    def empty_quarantine(self) -> None:
        """Delete all damaged files, catalogs among them."""
        for file in os.scandir(self._quarantine):
            _delete(Path(file.path))

    def remove_leftovers(self, known: Collection[str], age: float) -> None:
        """Delete what is in quarantine or half-written, is none of the `known` ids', and is older than `age` seconds.

        Or so far in the future: by a clock that was set back since.
        """
        now = time.time()
        for folder in (self._partial, self._quarantine):
            for file in os.scandir(folder):
                name = file.name.split(".", 1)[0]
                with suppress(OSError):  # gone meanwhile, or in use (Windows)
                    written = file.stat(follow_symlinks=False).st_mtime
                    if _ID.fullmatch(name) and name not in known and abs(now - written) > age:
                        _delete(Path(file.path))

    def _id(self, path: Path) -> str | None:
        """Whose committed file this is, None for a file that lies where no entry's would."""
        return path.stem if _ID.fullmatch(path.stem) and path == self.path(path.stem) else None


def _scanned(folder: Path | str) -> Iterator[os.DirEntry]:
    """All files below a folder: several times faster than pathlib, which counts where there are 100,000."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False) and not entry.name.endswith(".safetensors"):
                yield from _scanned(entry.path)
            else:
                yield entry


def regular(path: Path) -> Path:
    """`path`, once it is known to be a regular file: reading a pipe or a device could wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BlobDamaged("it is not a regular file")
    return path


def _delete(path: Path) -> None:
    """Delete a file, or a folder that lies in its place."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(path)


def _read_header(path: Path) -> Header:
    with regular(path).open("rb") as file:
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
