"""Bundles over HTTP: an export is streamed, an import uploaded to a file without a name. Neither is whole in memory."""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from aiohttp import web

from ...cache import Cache
from ...cache.bundle import Bundle, bundled
from ..caches import open_cache, warn
from ..events import cache_changed, import_goes_on
from .answers import Problem, in_thread

TYPE = "application/zip"
_CHUNK = 2**20  # bytes sent or read at once
_TOLD = 1.0  # seconds between two messages on how far an import is
_MOST_REASONS = 100  # told in one answer
# An import may take minutes: it has a thread of its own, and the next one waits for it.
_importer = ThreadPoolExecutor(1, "chorus-import")


async def send(request: web.Request, cache: Cache, ids: list[str]) -> web.StreamResponse:
    """A bundle of these entries, entry by entry as they are read; those that are not there are left out.

    What goes wrong before the first entry raises as `bundled` does; what goes wrong later cuts the connection, so that
    nobody takes a part for the whole.
    """
    pieces = bundled(cache, ids, [])
    batch = await in_thread(next, pieces)
    headers = {"Content-Disposition": 'attachment; filename="entries.chorus"', "Cache-Control": "no-store"}
    response = web.StreamResponse(headers=headers)
    response.content_type = TYPE
    await response.prepare(request)
    try:
        while batch is not None:
            for piece in batch:
                for start in range(0, len(piece), _CHUNK):
                    await response.write(memoryview(piece)[start : start + _CHUNK])
            batch = await in_thread(next, pieces, None)
    except Exception as error:
        if not isinstance(error, ConnectionError):  # else the client has gone
            warn(f"an export was cut off: {error}")
        if request.transport is not None:
            request.transport.close()  # the client gets what was written, but not the end of the answer
    return response


@asynccontextmanager
async def received(request: web.Request, folder: Path, most: int) -> AsyncIterator[IO[bytes]]:
    """The file that a POST carries, in a temporary file on the disk of `folder` that is gone when this ends.

    most: bytes. Only as application/zip, which a page from elsewhere cannot send without asking this server first.
    """
    if request.content_type != TYPE:
        raise Problem(415, "not_zip", f"send the bundle itself, as {TYPE}")
    length = request.content_length or 0
    _require(length, most)
    with await in_thread(_temporary, folder, length) as file:
        size = 0
        try:
            async for chunk in request.content.iter_chunked(_CHUNK):
                size += len(chunk)
                _require(size, most)
                await in_thread(file.write, chunk)
            await in_thread(file.flush)
        except (ConnectionError, web.RequestPayloadError) as error:
            raise Problem(400, "upload_cut_off", f"the upload was cut off after {size:,} bytes: {error}") from error
        except OSError as error:
            raise _no_space(folder, str(error)) from error
        yield file


def _require(size: int, most: int) -> None:
    if size > most:
        reason = f"the bundle has {size:,} bytes or more, and the cache may hold {most:,}"
        raise Problem(413, "bundle_too_large", f"{reason}: raise the cache's limit, or have it exported in parts")


def _temporary(folder: Path, length: int) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if length > free:
            raise _no_space(folder, f"{free:,} bytes are free, the bundle has {length:,}")
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise _no_space(folder, str(error)) from error


def _no_space(folder: Path, reason: str) -> Problem:
    return Problem(507, "no_space", f"the upload cannot be kept in {folder} ({reason}): free some space there")


async def take(name: str, file: IO[bytes]) -> dict[str, Any]:
    """Add the entries of an uploaded bundle to the cache called `name`, which is made if it does not exist."""
    return await asyncio.get_running_loop().run_in_executor(_importer, _take, name, file)


def _take(name: str, file: IO[bytes]) -> dict[str, Any]:
    bundle = Bundle(file, "The uploaded file")  # before a cache is made for it
    cache = open_cache(name)
    try:
        imported = bundle.copy_into(cache, _telling(name))
    finally:
        cache_changed(name)
    return {
        "added": len(imported.taken),
        "present": len(imported.present),
        "refused": len(imported.refused),
        "reasons": [{"id": entry_id, "reason": why} for entry_id, why in imported.refused[:_MOST_REASONS]],
        "evicted": imported.evicted,
        "version": cache.version(),
    }


def _telling(name: str) -> Callable[[int, int], None]:
    """Tell the open pages now and then how far an import is, and that the cache changes."""
    told = -math.inf

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _TOLD:
            told = time.monotonic()
            import_goes_on(name, done, of)
            cache_changed(name)

    return progress
