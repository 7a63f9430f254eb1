"""What the open pages are told while ComfyUI runs."""

from __future__ import annotations

from typing import Any

from ..messages import Message, to_json
from . import users


def send(event: str, data: dict[str, Any]) -> None:
    """Send `chorus.<event>` to every open page; nothing happens where no server runs."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(f"chorus.{event}", data)


def cache_changed(cache_name: str) -> None:
    """Entries of this cache came, went or were used."""
    send("changed", {"cache": users.plain_name(cache_name)})


def moved() -> None:
    """The caches are in another place from now on."""
    send("moved", {})


def not_kept(cache_name: str, entry_id: str, why: Message | str) -> None:
    """A result is not in the cache though it was to be kept. entry_id: "" where it had none yet."""
    send("not_kept", {"cache": users.plain_name(cache_name), "entry": entry_id, "text": str(why), "said": to_json(why)})


def import_goes_on(cache_name: str, done: int, of: int) -> None:
    """An import into this cache has gone through `done` of its entries."""
    send("import", {"cache": users.plain_name(cache_name), "done": done, "of": of})


def run_started(figures: dict[str, Any]) -> None:
    """A sampler begins under a plan. figures: outcome, steps, k1, k2, and what else describes the run."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    where = {"prompt_id": context.prompt_id, "node": context.node_id} if context else {}
    send("run", {**where, **figures})
