"""The entries' files in an object store: whole or not there, and every wait has an end.

<location>/<tenant>/<2 hex>/<id>.safetensors    the same bytes as in a local cache
<location>/<tenant>/store                       the mark by which a catalog knows its location
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.store import LocalStore, from_url

from ...messages import Message, say
from ..errors import CacheUnavailable
from .breaker import Breaker
from .settings import Settings

T = TypeVar("T")

CONNECT = 1.0  # seconds
ANSWER = 2.0  # seconds until a read begins, and between two pieces of it
DELETE = 10.0  # seconds for a request that deletes or lists
PART = 15.0  # seconds for a part of 5 MB on its way up
SLOWEST = 1_000_000  # bytes a second; a slower store counts as away
PAUSE = 5.0  # seconds after a fault in which nothing is sent
PIECE = 2**20  # bytes read at once

_KEY = re.compile(r"[^/]+/[0-9a-f]{2}/([0-9a-f]{32})\.safetensors")


class ObjectStore:
    """The files of one tenant. Safe for any number of threads.

    All failures but a missing file are CacheUnavailable. A fault costs its caller the seconds above; those after it
    are answered at once for `PAUSE` seconds, then one tries again.
    """

    def __init__(self, settings: Settings):
        self.place = f"{settings.blobs.rstrip('/')}/{settings.tenant}"
        self._settings = settings
        self._breaker = Breaker(PAUSE)
        self._lock = threading.Lock()
        self._stores: tuple[Any, Any] | None = None  # for reading, for writing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._mark = f"{settings.tenant}/store"

    def check(self) -> None:
        """CacheUnavailable while the store is known to be away."""
        if self._breaker.is_open():
            raise self._away(self._breaker.reason)

    def path(self, entry_id: str) -> str:
        """Where an entry's file lies, for people."""
        return f"{self._settings.blobs.rstrip('/')}/{self._key(entry_id)}"

    def write(self, entry_id: str, content: bytes) -> None:
        """Put a whole file there; nobody sees a part of it."""
        seconds = PART + len(content) / SLOWEST
        self._finish(seconds, lambda stores: obstore.put_async(stores[1], self._key(entry_id), content))

    def read(self, entry_id: str) -> bytes:
        """A file's bytes. FileNotFoundError when it is not there."""
        content = self._finish(None, lambda stores: _read(stores[0], self._key(entry_id)))
        if content is None:
            raise FileNotFoundError(self.path(entry_id))
        return content

    def remove(self, ids: Iterable[str]) -> None:
        """Delete files; those that are gone already are no error."""
        keys = [self._key(entry_id) for entry_id in ids]
        for first in range(0, len(keys), 100):
            batch = keys[first : first + 100]
            self._finish(DELETE, partial(_delete, batch))

    def mark(self) -> str | None:
        """The mark of this location, None where there is none."""
        content = self._finish(None, lambda stores: _read(stores[0], self._mark))
        return None if content is None else content.decode("ascii", "replace")

    def set_mark(self, mark: str) -> None:
        """Mark this location as a catalog's."""
        self._finish(PART, lambda stores: obstore.put_async(stores[1], self._mark, mark.encode("ascii")))

    def ids_older_than(self, age: float) -> set[str]:
        """Ids of all files that were last written more than `age` seconds ago."""
        self._remove_partial(age)
        return self._finish(None, lambda stores: _ids_before(stores[1], self._settings.tenant, time.time() - age))

    def close(self) -> None:
        """Let go of all connections; whatever follows is CacheUnavailable."""
        with self._lock:
            self._closed = True
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(_end(self._loop), self._loop)
                self._loop = None

    def _key(self, entry_id: str) -> str:
        return f"{self._settings.tenant}/{entry_id[:2]}/{entry_id}.safetensors"

    # -- one call

    def _finish(self, seconds: float | None, call: Callable[[tuple[Any, Any]], Awaitable[T]]) -> T:
        """The call's result, within so many seconds; None: it keeps its own time."""
        if not self._breaker.allows():
            raise self._away(self._breaker.reason)

        async def finish(stores: tuple[Any, Any]) -> T:
            return await asyncio.wait_for(call(stores), seconds)

        try:
            stores, loop = self._opened()
            result = asyncio.run_coroutine_threadsafe(finish(stores), loop).result()
        except CancelledError:
            raise CacheUnavailable(self.place, say("reason.closed"), say("advice.reopen")) from None
        except TimeoutError:
            raise self._away(say("reason.store_silent"), trip=True) from None
        except Exception as error:  # whose text may quote what it was given; the library's own faults are among them
            raise self._away(self._settings.redacted(_first_line(error)), trip=True) from None
        self._breaker.closed()
        return result

    def _away(self, reason: Message | str, trip: bool = False) -> CacheUnavailable:
        if trip:
            self._breaker.opened(reason)
        return CacheUnavailable(self.place, reason, say("advice.soon"))

    def _opened(self) -> tuple[tuple[Any, Any], asyncio.AbstractEventLoop]:
        with self._lock:
            if self._closed:
                raise CacheUnavailable(self.place, say("reason.closed"), say("advice.reopen"))
            if self._stores is None:
                self._stores = _open(self._settings)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="chorus-objects", daemon=True).start()
            return self._stores, self._loop

    def _remove_partial(self, age: float) -> None:
        """Delete what writers that died left in a folder (`<name>#<n>`); other stores hide such parts themselves."""
        folder = _folder(self._settings)
        for path in (folder / self._settings.tenant).glob("*/*#*") if folder else ():
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - age:
                    path.unlink()


async def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Stop the loop, whose callers get a CancelledError."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)
    loop.call_later(0.1, loop.stop)  # once the callers have been told


async def _read(store: Any, key: str) -> bytes | None:
    """The bytes under a key, None where there are none."""
    try:
        found = await asyncio.wait_for(obstore.get_async(store, key), ANSWER)
    except FileNotFoundError:
        return None
    content = bytearray()
    pieces = aiter(found.stream(min_chunk_size=PIECE))
    while True:
        try:
            content += await asyncio.wait_for(anext(pieces), max(ANSWER, PIECE / SLOWEST))
        except StopAsyncIteration:
            return bytes(content)


async def _delete(keys: list[str], stores: tuple[Any, Any]) -> None:
    try:
        await obstore.delete_async(stores[1], keys)
    except FileNotFoundError:  # a folder minds; one by one, so that the others go too
        for key in keys:
            with suppress(FileNotFoundError):
                await obstore.delete_async(stores[1], key)


async def _ids_before(store: Any, tenant: str, before: float) -> set[str]:
    ids: set[str] = set()
    pages = aiter(obstore.list(store, prefix=tenant))
    while True:
        try:
            page = await asyncio.wait_for(anext(pages), DELETE)
        except StopAsyncIteration:
            return ids
        for known in page:
            match = _KEY.fullmatch(known["path"])
            if match and known["last_modified"].timestamp() < before:
                ids.add(match[1])


def _folder(settings: Settings) -> Path | None:
    """The folder of a file:// location, None for any other."""
    parts = urlsplit(settings.blobs)
    if parts.scheme != "file":
        return None
    return Path(url2pathname(f"//{parts.netloc}{parts.path}" if parts.netloc else parts.path))


def _open(settings: Settings) -> tuple[Any, Any]:
    folder = _folder(settings)
    if folder is not None:
        if not folder.is_dir():
            raise CacheUnavailable(folder, say("reason.no_folder"), say("advice.mount"))
        store = LocalStore(prefix=folder)
        return store, store

    def remote(answer: float, retries: int) -> Any:
        return from_url(
            settings.blobs.rstrip("/"),
            client_options={
                **_client_options(),
                "connect_timeout": timedelta(seconds=CONNECT),
                "read_timeout": timedelta(seconds=answer),
                "timeout": timedelta(seconds=600),
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": timedelta(seconds=answer),
                "backoff": {
                    "base": 2,
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=1),
                },
            },
        )

    return remote(ANSWER, 1), remote(PART, 2)


def _client_options() -> Any:
    """The client's own settings in the environment, which obstore overlooks when it is given others."""
    known = {
        name.split("_", 1)[1].lower(): value
        for name, value in os.environ.items()
        if name in ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "AWS_PROXY_URL", "AZURE_PROXY_URL")
    }
    if "allow_http" in known:
        known["allow_http"] = known["allow_http"].lower() in ("true", "1")  # type: ignore[assignment]
    return known


def _first_line(error: Exception) -> str:
    """What went wrong; obstore appends its internals as further lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
