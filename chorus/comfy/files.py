"""Digests of files by content, remembered by path, size and time of change, also after a restart.

A model file of many gigabytes is read once, by all cores, if possible while ComfyUI still loads it (`read_ahead`).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .caches import warn
from .content import counter, new_hash

_MEMORY = "files.json"
_ANNOTATION = re.compile(r" \[(input|output|temp)\]$")
_CHUNK = 1 << 25  # bytes read at once; large enough to be digested by all cores
_KEPT = 4096  # files remembered; the oldest go first


_STARTED_NS = time.time_ns()  # this module is loaded with the pack, before any model


State = tuple[int, int, int]
"""A file's size in bytes, and the times of its last change in content and in anything, in nanoseconds."""


def _state(path: str) -> State:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(path: str) -> str:
    """Hex digest of a file's content. One chunk is read while the one before is digested.

    Not through a memory map: a file that is cut off meanwhile would end the process.
    """
    hashed = new_hash()
    buffers = (bytearray(_CHUNK), bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1, "chorus-digest") as digesting:
        pending: Future[object] | None = None
        for number in itertools.count():
            buffer = memoryview(buffers[number % 2])
            length = file.readinto(buffer)
            if pending is not None:
                pending.result()
            if not length:
                return hashed.hexdigest(length=16)
            counter.bytes += length
            pending = digesting.submit(hashed.update, buffer[:length])
    raise AssertionError("unreachable")


class FileDigests:
    """Digests of files. Thread-safe.

    memory: a JSON file in which they are remembered. It may be missing: files are then read again.
    """

    def __init__(self, memory: Path | None):
        self._memory = memory
        self._lock = threading.Lock()
        self._known: dict[str, tuple[State, str]] = self._remembered()
        self._noted: dict[str, State] = {}
        self._reading: dict[tuple[str, State], Future[str]] = {}
        self._reader = ThreadPoolExecutor(1, "chorus-files")

    def note(self, path: str | os.PathLike[str]) -> None:
        """Remember how a file is now, before a graph that names it runs. Raises OSError."""
        real = os.path.realpath(path)
        state = _state(real)
        with self._lock:
            self._noted.setdefault(real, state)

    def is_as_loaded(self, path: str | os.PathLike[str]) -> bool:
        """Whether a model that this process loaded from the file is sure to have the file's present content.

        That is so if the file has not changed since a graph first named it, or since before this process began.
        Raises OSError.
        """
        real = os.path.realpath(path)
        state = _state(real)
        with self._lock:
            noted = self._noted.get(real)
        return noted == state if noted is not None else max(state[1], state[2]) < _STARTED_NS

    def of(self, path: str | os.PathLike[str]) -> str:
        """Hex digest of a file's content. Waits where it is being read. Raises OSError."""
        return self.begin(path).result()

    def begin(self, path: str | os.PathLike[str]) -> Future[str]:
        """The digest of a file, which is read in the background unless it is known. Raises OSError."""
        real = os.path.realpath(path)
        state = _state(real)
        with self._lock:
            known = self._known.get(real)
            if known is not None and known[0] == state:
                done: Future[str] = Future()
                done.set_result(known[1])
                return done
            if (real, state) not in self._reading:
                self._reading[real, state] = self._reader.submit(self._read, real, state)
            return self._reading[real, state]

    def _read(self, real: str, state: State) -> str:
        try:
            digest = _digest(real)
            with self._lock:
                if _state(real) == state:  # else it changed while it was read
                    self._known.pop(real, None)
                    self._known[real] = (state, digest)
                    while len(self._known) > _KEPT:
                        self._known.pop(next(iter(self._known)))
                    self._remember()
            return digest
        finally:
            with self._lock:
                self._reading.pop((real, state), None)

    def _remembered(self) -> dict[str, tuple[State, str]]:
        if self._memory is None:
            return {}
        try:
            rows = json.loads(self._memory.read_text(encoding="utf-8"))
            known = {}
            for path, (state, digest) in rows.items():
                size, modified, changed = map(int, state)
                known[str(path)] = ((size, modified, changed), str(digest))
            return known
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _remember(self) -> None:
        if self._memory is None:
            return
        new = self._memory.with_suffix(f".{os.getpid()}.new")
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(new, self._memory)
        except OSError as error:
            warn(f"digests of files are not remembered: {error}")


_digests: FileDigests | None = None
_digests_lock = threading.Lock()


def file_digests() -> FileDigests:
    """The digests of this process's files, remembered in ComfyUI's private user folder."""
    import folder_paths

    global _digests
    with _digests_lock:
        if _digests is None:
            _digests = FileDigests(Path(folder_paths.get_system_user_directory("chorus")) / _MEMORY)
        return _digests


def named_files(text: str) -> list[str]:
    """The files that a widget's text may name: in ComfyUI's model folders, its input folder, or by a whole path."""
    import folder_paths

    if not text or len(text) > 1024 or "\n" in text or "\0" in text:
        return []
    found: list[str] = []
    if os.path.splitext(_ANNOTATION.sub("", text))[1]:  # every model and media file has an ending
        for folder in list(folder_paths.folder_names_and_paths):
            path = folder_paths.get_full_path(folder, text)
            if path is not None:
                found.append(path)
        if os.path.isabs(text):
            found.append(text)
        elif folder_paths.exists_annotated_filepath(text):
            found.append(folder_paths.get_annotated_filepath(text))
    return sorted({os.path.realpath(path) for path in found if os.path.isfile(path)})


def read_ahead(prompt: Any) -> None:
    """Note the files that a graph names when it is queued, and begin to read those of a graph with Chorus nodes.

    Raises nothing.
    """
    try:
        nodes = [node for node in prompt.values() if isinstance(node, dict)]
        remembers = any(str(node.get("class_type", "")).startswith(("Chorus", "TGAA")) for node in nodes)
        for path in _texts(node.get("inputs", {}).values() for node in nodes):
            file_digests().note(path)
            if remembers:
                file_digests().begin(path)
    except Exception as error:  # reading ahead only saves time: the file is read again when its digest is needed
        warn(f"model files are not read ahead: {type(error).__name__}: {error}")


def on_prompt(data: dict[str, Any]) -> dict[str, Any]:
    """The host's handler of what is posted to /prompt: reads ahead, and changes nothing."""
    read_ahead(data.get("prompt"))
    return data


def _texts(inputs: Iterable[Iterable[Any]]) -> Iterable[str]:
    return (path for values in inputs for text in values if isinstance(text, str) for path in named_files(text))
