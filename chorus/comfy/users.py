"""To which user a request and a run belong, if ComfyUI keeps its users apart (--multi-user).

ComfyUI tells its routes the user, by a header, and its nodes the id of the prompt that they run for. So the user is
noted for each prompt when it is queued. "" is nobody in particular: without --multi-user, for a program that names no
user, and for a name that ComfyUI does not know. A user is a name, not a login: who reaches ComfyUI may give any.
"""

from __future__ import annotations

import hashlib
import threading
import uuid
from contextvars import ContextVar
from typing import Any

from aiohttp import web

_MANY = 1000  # prompts noted, before those that are over are forgotten

_asking: ContextVar[str] = ContextVar("chorus_user", default="")
_prompts: dict[str, str] = {}  # prompt id → user
_lock = threading.Lock()


def note_prompts(server: Any) -> None:
    """Note the user of each prompt that this server queues from now on. To be called before the server starts."""
    if _kept_apart():
        server.app.middlewares.append(_note_who_asks)
        server.add_on_prompt_handler(lambda asked: _note(server, asked))


def of_request(request: web.Request) -> str:
    """The user who asks a route. KeyError for one whom ComfyUI does not know.

    Beside the header, which a picture's address cannot carry, the parameter `user` says it.
    """
    if not _kept_apart():
        return ""
    from server import PromptServer

    user = request.headers.get("comfy-user") or request.query.get("user", "")
    if user and user not in PromptServer.instance.user_manager.users:
        raise KeyError(user)
    return user


def of_run() -> str:
    """The user whose prompt this thread runs."""
    if not _kept_apart():
        return ""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return _prompts.get(context.prompt_id, "") if context else ""


class OwnName(str):
    """The name under which a user's cache is kept, as `own_name` makes it: NAME@DIGEST. No widget can hold one."""


def own_name(name: str, user: str) -> str:
    """The name under which the user's cache `name` is kept; `name` itself for nobody in particular.

    A user's id may hold what a file name may not, so its digest stands for it.
    """
    return OwnName(f"{name}@{hashlib.sha256(user.encode()).hexdigest()[:16]}") if user else name


def plain_name(name: str) -> str:
    """The name by which people know the cache that is kept as `name`."""
    return name.partition("@")[0]


def _kept_apart() -> bool:
    from comfy.cli_args import args

    return bool(args.multi_user)


@web.middleware
async def _note_who_asks(request: web.Request, handler: Any) -> Any:
    try:
        _asking.set(of_request(request))
    except KeyError:
        _asking.set("")
    return await handler(request)


def _note(server: Any, asked: Any) -> Any:
    """Called by ComfyUI with each prompt before it is queued, in the task of the request that brought it."""
    if user := _asking.get():
        if asked.get("prompt_id") is None:  # ComfyUI would make an id after this; it takes one that is there
            asked = {**asked, "prompt_id": str(uuid.uuid4())}
        with _lock:
            _prompts[str(asked["prompt_id"])] = user
            if len(_prompts) > _MANY:
                _forget_past(server)
    return asked


def _forget_past(server: Any) -> None:
    running, waiting = server.prompt_queue.get_current_queue_volatile()
    alive = {item[1] for item in (*running, *waiting)}
    for prompt_id in list(_prompts)[: -_MANY // 2]:  # the newest may be on their way into the queue
        if prompt_id not in alive:
            del _prompts[prompt_id]
