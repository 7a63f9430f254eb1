"""How a route answers: with JSON, with errors that say what to do, and without keeping the event loop waiting."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from ...cache import CacheError, CacheUnavailable, EntryMissing
from ...cache.bundle import BundleRefused
from ...messages import Message, said_by
from ..caches import warn
from . import visitors

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Only two, so that a panel that scrolls takes little processor time from the sampler.
_threads = ThreadPoolExecutor(2, "chorus-panel")
_NEVER_KEPT = {"Cache-Control": "no-store"}


class Problem(Exception):
    """A request that cannot be answered. code: for programs; said: for the person at the screen."""

    def __init__(self, status: int, code: str, said: Message | str):
        super().__init__(str(said))
        self.status, self.code, self.said = status, code, said


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work(*arguments)` on one of the few threads of the routes."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)


async def json_of(work: Callable[..., Any], *arguments: Any) -> web.Response:
    """What `work(*arguments)` returns, as JSON; both made off the event loop."""

    def make() -> bytes:
        return json.dumps(work(*arguments), allow_nan=False).encode()

    return web.Response(body=await in_thread(make), content_type="application/json", headers=_NEVER_KEPT)


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object that a POST carries. Problem for anything else.

    Only as application/json, which a page from elsewhere cannot send without asking this server first.
    """
    if request.content_type != "application/json":
        raise Problem(415, "not_json", "send the request as application/json")
    try:
        content = await request.read()
    except web.RequestPayloadError as error:  # cut off, or not compressed as its header says
        raise Problem(400, "bad_request", f"the body cannot be read: {error}") from error
    read: dict[str, Any] = await in_thread(_object, content)
    return read


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content.decode("utf-8"), parse_constant=_no_number)
        json.dumps(body, ensure_ascii=False).encode("utf-8")  # ValueError for half of a character
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_request", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Problem(400, "bad_request", f"the body is a JSON {type(body).__name__}: expected an object")
    return body


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def answering(handler: Handler) -> Handler:
    """`handler` for those who may ask, with every failure turned into {"error": {"code", "message"}} and its status.

    Every route goes through here, so that a request that is refused has done nothing. Where the message is one of
    `TEXTS`, `said` has its code and values, so that a page can translate it.
    """

    @functools.wraps(handler)
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            _require_sound(request)
            return await handler(request)
        except Problem as error:
            problem = error
        except BundleRefused as error:
            problem = Problem(507 if error.code == "cache_full" else 400, error.code, str(error))
        except EntryMissing as error:
            problem = Problem(404, "no_such_entry", said_by(error))
        except CacheUnavailable as error:
            problem = Problem(503, "cache_unavailable", said_by(error))
        except CacheError as error:
            problem = Problem(409, "cache_error", said_by(error))
        except ValueError as error:
            problem = Problem(400, "bad_request", said_by(error))
        except web.HTTPException as error:  # of aiohttp: a body larger than ComfyUI takes
            problem = Problem(error.status, "bad_request", error.text or error.reason)
        except Exception as error:
            warn(f"{request.method} {request.path} failed: {type(error).__name__}: {error}")
            problem = Problem(500, "failed", f"{type(error).__name__}: {error}")
        body: dict[str, Any] = {"code": problem.code, "message": str(problem)}
        if isinstance(problem.said, Message):
            body["said"] = problem.said.to_json()
        return web.json_response({"error": body}, status=problem.status, headers=_NEVER_KEPT)

    return answer


def _require_sound(request: web.Request) -> None:
    """Problem for a request from a stranger, for a compressed one, or for a text that no cache can hold."""
    if said := visitors.refusal(request):
        raise Problem(403, "not_allowed", said)
    if (coding := request.headers.get("Content-Encoding", "identity")) != "identity":
        # aiohttp waits for ever for the rest of a body that is not what it is said to be.
        raise Problem(415, "bad_request", f"Content-Encoding {coding[:80]!r}: send the body as it is")
    for name, text in request.query.items():
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Problem(400, "bad_request", f"{name[:80]}={text[:80]!r}: it holds what is no character")
