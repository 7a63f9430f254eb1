"""The routes: each reads its parameters and calls what does the work. Only POST requests change anything."""

from __future__ import annotations

import math
import re
from typing import Any

from aiohttp import web

from ...cache import Cache, CacheError, every
from ...cache.bundle import MAX_ENTRIES, MAX_MANIFEST
from ...messages import said_by, say, to_json
from ...prompt import sentence
from .. import place as places
from .. import users, workflows
from ..caches import cache_folder, cache_names, limit_caches, limit_fixed, open_cache
from ..events import cache_changed, moved
from ..limit import GIGABYTE, VARIABLE, limit_bytes, limit_is_fixed
from . import bundles, listing, meaning, previews, visitors
from .answers import Handler, Problem, answering, body_of, in_thread, json_of

VERSION = 1
ROOT = f"/chorus/v{VERSION}"
CACHE = ROOT + "/caches/{cache}"
ENTRY = CACHE + "/entries/{entry}"
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_IDS = 1000  # changed by one request
# A picture belongs to an id, and an id is never given twice.
_ASK_AGAIN = "private, no-cache"  # a forgotten entry's picture must not be shown again


def register(routes: web.RouteTableDef) -> None:
    """Add the routes to a server's table. ComfyUI mirrors them below /api."""
    for method, path, handler in ROUTES:
        routes.route(method, path)(answering(handler))


async def status(request: web.Request) -> web.Response:
    """Which caches there are, where they lie, how large they may grow, and whether prompts compare by meaning."""
    return await json_of(_status, request)


def _status(request: web.Request) -> dict[str, Any]:
    place, fixed = places.current(), limit_fixed()
    names, fault = [], None
    try:
        names = cache_names(_user(request))
    except (CacheError, ValueError) as error:  # the settings can still be shown and changed
        fault = to_json(said_by(error))
    return {
        "version": VERSION,
        "caches": names,
        "fault": fault,
        "shared": place.shared,
        "folder": str(place.folder),
        "place": places.shown(not visitors.from_this_machine(request)),
        "limit_gb": limit_bytes(place.folder) / GIGABYTE,
        "limit_from": VARIABLE if limit_is_fixed() else None,
        "limit_fixed": fixed.to_json() if fixed else None,
        "meaning": sentence.installed(),
    }


async def stats(request: web.Request) -> web.Response:
    """Figures of a cache."""
    return await json_of(lambda: listing.figures(_cache(request)))


async def entries(request: web.Request) -> web.Response:
    """Part of a cache's entries: by a query, or by how near their prompts come to `meaning`."""
    asked = request.query
    number = listing.number_of(asked, "limit", 100, listing.MOST_ENTRIES)
    if text := asked.get("meaning"):
        return await json_of(lambda: meaning.nearest(_cache(request), text, number))
    query, offset = listing.query_of(asked), listing.number_of(asked, "offset", 0, 2**31)
    return await json_of(lambda: listing.page(_cache(request), query, number, offset))


async def entry(request: web.Request) -> web.Response:
    """Everything about an entry but its tensors."""
    entry_id = _entry_id(request)
    return await json_of(lambda: listing.full(_cache(request), entry_id))


async def preview(request: web.Request) -> web.Response:
    """The entry's preview as an animated WebP."""
    return await _picture(request, previews.animation)


async def frames(request: web.Request) -> web.Response:
    """The preview's frames one below the other, as a WebP."""
    return await _picture(request, previews.strip)


async def workflow(request: web.Request) -> web.Response:
    """The graph that made the entry: {"workflow": …} as the frontend saves it, or {"prompt": …} in API form."""
    entry_id = _entry_id(request)
    return await json_of(lambda: workflows.load(_cache(request), entry_id))


async def pin(request: web.Request) -> web.Response:
    """Keep entries from being evicted, or no longer: {"ids": […], "pinned": true}."""
    body = await body_of(request)
    ids, pinned = _ids(body), body.get("pinned")
    if not isinstance(pinned, bool):
        raise Problem(400, "bad_request", f"pinned={str(pinned)[:80]!r}: expected true or false")

    def work(cache: Cache) -> None:
        for entry_id in ids:
            cache.pin(entry_id, pinned)

    return await _change(request, work)


async def forget(request: web.Request) -> web.Response:
    """Delete entries with their prompts and files: {"ids": […]}."""
    ids = _ids(await body_of(request))

    def work(cache: Cache) -> None:
        for entry_id in ids:
            cache.forget(entry_id)
        previews.drop_pictures()

    return await _change(request, work)


async def export(request: web.Request) -> web.StreamResponse:
    """A bundle, streamed: of {"ids": […]}, or of all that answer {"query": {"words": "fox", "pinned": true}}."""
    body = await body_of(request)
    if ("ids" in body) == ("query" in body):
        raise Problem(400, "bad_request", 'say what to export: either "ids" or "query"')
    if "ids" in body:
        ids = _ids(body, MAX_ENTRIES)
        return await bundles.send(request, await in_thread(_cache, request), ids)
    query = listing.query_from(body["query"])
    cache = await in_thread(_cache, request)
    ids = await in_thread(lambda: [found.id for found in every(cache, query)])
    if not ids:
        raise Problem(404, "no_such_entry", "no entry answers the query")
    return await bundles.send(request, cache, ids)


async def import_bundle(request: web.Request) -> web.Response:
    """Add the entries of a bundle, the body of the request; the cache is made if it does not exist."""
    name = _own_name(request)
    most = await in_thread(_most_uploaded, request)
    async with bundles.received(request, places.current().folder, most) as file:
        answer = await bundles.take(name, file)
    return await json_of(lambda: answer)


def _most_uploaded(request: web.Request) -> int:
    """What a bundle for this cache may weigh, in bytes: all that the cache can hold, and a manifest."""
    name = request.match_info["cache"]
    cache_folder(name)  # is it a name?
    there = name in cache_names(_user(request))
    limit = _cache(request).stats().max_bytes if there else limit_bytes(places.current().folder)
    return limit + MAX_MANIFEST


async def limit(request: web.Request) -> web.Response:
    """Choose how large each cache may grow: {"gigabytes": 40}."""
    gigabytes = (await body_of(request)).get("gigabytes")
    if isinstance(gigabytes, bool) or not isinstance(gigabytes, int | float):
        raise Problem(400, "bad_request", f"gigabytes={str(gigabytes)[:80]!r}: expected a number")
    try:
        gigabytes = float(gigabytes)
    except OverflowError:
        gigabytes = math.inf
    await in_thread(limit_caches, gigabytes)
    return await json_of(_status, request)


async def place(request: web.Request) -> web.Response:
    """Choose where caches opened from now on are: {"folder": …}, or {"url": …, "blobs": …}; "" for the usual one."""
    body = await body_of(request)
    if not body or not body.keys() <= places.VARIABLES.keys() or not all(isinstance(v, str) for v in body.values()):
        raise Problem(400, "bad_request", f"expected texts under some of {', '.join(places.VARIABLES)}")
    try:
        await in_thread(lambda: places.choose(not visitors.from_this_machine(request), **body))
    except places.NotAllowed as error:
        raise Problem(403, "not_allowed", error.said) from error
    moved()
    return await json_of(_status, request)


async def _change(request: web.Request, work: Any) -> web.Response:
    def make() -> dict[str, Any]:
        cache = _cache(request)
        try:
            work(cache)
        finally:
            cache_changed(request.match_info["cache"])
        return {"version": cache.version()}

    return await json_of(make)


async def _picture(request: web.Request, make: Any) -> web.Response:
    entry_id, name = _entry_id(request), _own_name(request)
    tag = f'"{entry_id}-{make.__name__}"'
    headers = {
        "ETag": tag,
        "Cache-Control": _ASK_AGAIN,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
    }
    await in_thread(_cache, request)
    if tag in request.headers.get("If-None-Match", ""):
        await in_thread(previews.require, name, entry_id)
        return web.Response(status=304, headers=headers)
    data: bytes = await in_thread(make, name, entry_id)
    try:
        part = request.http_range
    except ValueError as error:
        raise Problem(416, "bad_range", f"Range {request.headers.get('Range', '')[:80]!r}: {error}") from error
    if part.start is None and part.stop is None:
        return web.Response(body=data, content_type="image/webp", headers=headers)
    start, stop, _ = part.indices(len(data))
    if start >= stop:
        headers["Content-Range"] = f"bytes */{len(data)}"
        return web.Response(status=416, headers=headers | {"Cache-Control": "no-store"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:stop], content_type="image/webp", headers=headers)


def _cache(request: web.Request) -> Cache:
    """The cache that the path names, only where it exists: asking must not make one."""
    name, names = request.match_info["cache"], cache_names(_user(request))
    if name not in names:
        raise Problem(404, "no_such_cache", say("route.no_such_cache", cache=name[:80], caches=", ".join(names)))
    return open_cache(_own_name(request))


def _own_name(request: web.Request) -> str:
    """The name under which the cache that the path names is kept for whoever asks."""
    return users.own_name(request.match_info["cache"], _user(request))


def _user(request: web.Request) -> str:
    try:
        return users.of_request(request)
    except KeyError as error:
        raise Problem(403, "not_allowed", say("route.user", user=str(error.args[0])[:80])) from error


def _entry_id(request: web.Request) -> str:
    entry_id = request.match_info["entry"]
    if not _ID.fullmatch(entry_id):
        raise Problem(400, "bad_request", f"entry {entry_id[:80]!r}: expected 32 hex digits")
    return entry_id


def _ids(body: dict[str, Any], most: int = _MOST_IDS) -> list[str]:
    ids = body.get("ids")
    if not isinstance(ids, list) or not all(isinstance(i, str) and _ID.fullmatch(i) for i in ids):
        raise Problem(400, "bad_request", "ids: expected a list of entry ids, each of 32 hex digits")
    if len(ids) > most:
        raise Problem(400, "bad_request", f"{len(ids)} ids: at most {most} in one request")
    return ids


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", f"{ROOT}/status", status),
    ("GET", f"{CACHE}/stats", stats),
    ("GET", f"{CACHE}/entries", entries),
    ("GET", ENTRY, entry),
    ("GET", f"{ENTRY}/preview", preview),
    ("GET", f"{ENTRY}/frames", frames),
    ("GET", f"{ENTRY}/workflow", workflow),
    ("POST", f"{CACHE}/pin", pin),
    ("POST", f"{CACHE}/forget", forget),
    ("POST", f"{CACHE}/export", export),
    ("POST", f"{CACHE}/import", import_bundle),
    ("POST", f"{ROOT}/limit", limit),
    ("POST", f"{ROOT}/place", place),
)
