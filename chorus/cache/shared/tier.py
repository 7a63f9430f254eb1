"""This machine's copies of entries' files that it has read or written."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from ...log import logger
from ..blobs import regular
from ..format import BlobDamaged

log = logger(__name__)

UNFINISHED = 3600.0  # seconds after which a copy that is still being written belongs to a dead process


class LocalTier:
    """Files by entry id in the folder `root`, the least recently read going first when there are too many.

    Nothing here is the truth: whoever reads a copy verifies it, a copy that is gone or damaged is fetched again, and
    no fault of this disk is an error. Safe for any number of threads and processes; the limit may be exceeded for
    a moment by what several of them write at once.
    """

    def __init__(self, root: Path, max_bytes: int):
        self.root = root
        self.max_bytes = max_bytes

    def read(self, entry_id: str) -> bytes | None:
        """A copy's bytes, not verified, or None. Makes it the most recently read."""
        path = self._path(entry_id)
        try:
            content = regular(path).read_bytes()
            os.utime(path)
        except (OSError, BlobDamaged):
            return None
        return content

    def write(self, entry_id: str, content: bytes) -> None:
        """Keep a copy, where there is room for it."""
        if len(content) > self.max_bytes:
            return
        target = self._path(entry_id)
        partial = target.with_name(f"{uuid.uuid4().hex}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(len(content))
            partial.write_bytes(content)
            os.replace(partial, target)
        except OSError as error:  # full, read-only, or in use (Windows)
            log.warning("No copy of cache entry %s is kept in %s: %s", entry_id, self.root, error)
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def remove(self, entry_id: str) -> None:
        """Delete a copy, if there is one."""
        with suppress(OSError):
            self._path(entry_id).unlink(missing_ok=True)

    def ids(self) -> list[str]:
        """Ids of all copies."""
        return [path.stem for path, _, _ in self._files() if path.suffix == ".safetensors"]

    def clear(self) -> None:
        """Delete all copies."""
        for entry_id in self.ids():
            self.remove(entry_id)

    def _path(self, entry_id: str) -> Path:
        return self.root / entry_id[:2] / f"{entry_id}.safetensors"

    def _make_room(self, size: int) -> None:
        files = sorted(self._files(), key=lambda file: file[1])
        excess = sum(taken for _, _, taken in files) + size - self.max_bytes
        for path, read, taken in files:
            if path.suffix == ".partial" and time.time() - read < UNFINISHED:
                continue
            if excess <= 0 and path.suffix != ".partial":
                break
            with suppress(OSError):
                path.unlink()
                excess -= taken

    def _files(self) -> list[tuple[Path, float, int]]:
        """(path, when it was last read, bytes) of every file, unfinished ones too."""
        found = []
        for path in self.root.glob("??/*"):
            with suppress(OSError):
                status = path.stat()
                found.append((path, status.st_mtime, status.st_size))
        return found
