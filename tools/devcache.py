"""The development cache: a folder outside the checkout, shared by every checkout of a user."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

MARKER = ".complete"
"""File written last into a cached folder; without it the folder is an interrupted attempt."""

_PREFIXES = ("env-", "comfyui-", "travel-")


def cache_folder() -> Path:
    """Return the cache folder: `CHORUS_DEV_CACHE`, else `chorus-dev` in the user's cache folder."""
    chosen = os.environ.get("CHORUS_DEV_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        parent = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "chorus-dev"


def build_once(folder: Path, build: Callable[[Path], None], waiting: Callable[[str], None]) -> Path:
    """Return `folder`, calling `build(folder)` on an empty one first unless an earlier call finished.

    Built in place, because a virtual environment cannot be moved. Concurrent callers, also from
    other processes, wait for the first; what an interrupted build left behind is removed.
    """
    marker = folder / MARKER
    if marker.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(folder.with_name(folder.name + ".lock"), waiting):
        if marker.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        build(folder)
        marker.touch()
    return folder


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold an operating system lock on `path`; it ends with the process, however that dies."""
    with path.open("a+b") as file:
        if not _try_lock(file.fileno()):
            waiting(f"waiting for another process that builds {path.stem}")
            _lock(file.fileno())
        yield


def remove_all() -> list[Path]:
    """Delete every cached environment and ComfyUI copy; return what was deleted."""
    folder = cache_folder()
    found = [p for p in folder.glob("*") if p.name.startswith(_PREFIXES)] if folder.is_dir() else []
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


if sys.platform == "win32":
    import msvcrt
    import time

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _lock(descriptor: int) -> None:
        # LK_LOCK gives up after ten seconds, an installation takes minutes.
        while not _try_lock(descriptor):
            time.sleep(0.5)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
