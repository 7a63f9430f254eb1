"""A small client for ComfyUI's HTTP and websocket API."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

Prompt = Mapping[str, Mapping[str, Any]]
"""A graph in API form: node id to `{"class_type": …, "inputs": {…}}`."""


class ApiError(RuntimeError):
    """The server answered a request with an error; the message holds the path and the server's text."""


class PromptRejected(ApiError):
    """The graph did not pass validation; the message lists the nodes and inputs at fault.

    Attributes:
        node_errors: ComfyUI's own report, node id to errors.
    """

    def __init__(self, message: str, node_errors: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


class ExecutionFailed(RuntimeError):
    """A node raised an error; the message holds its id, type and traceback.

    Attributes:
        node_id, node_type, exception_type: where and what.
    """

    def __init__(self, details: Mapping[str, Any]) -> None:
        self.node_id = str(details.get("node_id"))
        self.node_type = str(details.get("node_type"))
        self.exception_type = str(details.get("exception_type"))
        trace = "".join(details.get("traceback", ()))
        super().__init__(
            f"node {self.node_id} ({self.node_type}) raised {self.exception_type}: "
            f"{str(details.get('exception_message', '')).strip()}\n{trace}"
        )


class ExecutionInterrupted(RuntimeError):
    """The run was interrupted before it finished."""


@dataclass(frozen=True)
class Progress:
    """How far a node is: `value` of `maximum` steps."""

    node_id: str
    value: float
    maximum: float


class ComfyClient:
    """Talks to the server at `url`. Methods block; use one client from as many threads as needed."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def queue(
        self,
        prompt: Prompt,
        on_progress: Callable[[Progress], None] | None = None,
        *,
        on_event: Callable[[str, Mapping[str, Any]], None] | None = None,
        front: bool = False,
        timeout: float = 600.0,
    ) -> dict[str, Any]:
        """Queue a graph, wait until it has run, and return its item of the history.

        Args:
            prompt: the graph in API form.
            on_progress: called for each step of a node of this graph.
            on_event: called with the type and data of every websocket message, the pack's own too.
            front: put it before what waits already.
            timeout: seconds for waiting and running together.

        Raises:
            PromptRejected, ExecutionFailed, ExecutionInterrupted, TimeoutError.
        """
        return asyncio.run(self._queue(prompt, on_progress, on_event, front, timeout))

    def submit(self, prompt: Prompt, *, front: bool = False, client_id: str | None = None) -> str:
        """Queue a graph and return its prompt id at once. Raises `PromptRejected`."""
        body: dict[str, Any] = {"prompt": prompt, "front": front}
        if client_id is not None:
            body["client_id"] = client_id
        try:
            return str(self.post("/prompt", body)["prompt_id"])
        except _HttpError as error:
            raise _as_rejection(error) from None

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """Return the history item of a run, None while it has not finished."""
        item: dict[str, Any] | None = self.get(f"/history/{prompt_id}").get(prompt_id)
        return item

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict[str, Any]:
        """Wait for a submitted graph and return its history item, successful or not."""
        deadline = time.monotonic() + timeout
        while (item := self.history(prompt_id)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {prompt_id} did not finish within {timeout:.0f} s")
            time.sleep(0.05)
        return item

    def object_info(self, node_type: str | None = None) -> dict[str, Any]:
        """Return the definitions of all node types, or of one."""
        suffix = "" if node_type is None else "/" + urllib.parse.quote(node_type, safe="")
        info: dict[str, Any] = self.get("/object_info" + suffix)
        return info

    def interrupt(self) -> None:
        """Interrupt the graph that runs now."""
        self.post("/interrupt", {})

    def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the server to unload models and to drop the outputs it keeps between runs."""
        self.post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    def view(self, file: Mapping[str, str]) -> bytes:
        """Download a file that an output names: `{"filename": …, "subfolder": …, "type": …}`."""
        keys = ("filename", "subfolder", "type")
        query = urllib.parse.urlencode({key: file[key] for key in keys if key in file})
        return self._request("GET", f"/view?{query}")

    def get(self, path: str) -> Any:
        """GET `path` and return the decoded JSON. Raises `ApiError`."""
        return _decoded(self._request("GET", path))

    def post(self, path: str, body: Any = None) -> Any:
        """POST `body` as JSON to `path` and return the decoded JSON. Raises `ApiError`."""
        return _decoded(self._request("POST", path, body))

    def _request(self, method: str, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            raise _HttpError(method, path, error.code, error.read().decode(errors="replace")) from None

    async def _queue(
        self,
        prompt: Prompt,
        on_progress: Callable[[Progress], None] | None,
        on_event: Callable[[str, Mapping[str, Any]], None] | None,
        front: bool,
        timeout: float,
    ) -> dict[str, Any]:
        client_id = uuid.uuid4().hex
        async with (
            asyncio.timeout(timeout),
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket,
        ):
            prompt_id = await asyncio.to_thread(self.submit, prompt, front=front, client_id=client_id)
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue  # binary messages are preview images
                event = json.loads(message.data)
                kind, data = event["type"], event.get("data") or {}
                if on_event is not None:
                    on_event(kind, data)
                if data.get("prompt_id") != prompt_id:
                    continue
                if kind == "progress" and on_progress is not None:
                    on_progress(Progress(str(data["node"]), data["value"], data["max"]))
                elif kind == "execution_error":
                    raise ExecutionFailed(data)
                elif kind == "execution_interrupted":
                    raise ExecutionInterrupted(f"prompt {prompt_id} was interrupted at node {data['node_id']}")
                elif kind == "executing" and data.get("node") is None:
                    # Sent after the history is written, unlike execution_success.
                    return await asyncio.to_thread(self.wait, prompt_id, timeout)
        raise ApiError(f"{self.url} closed the connection while prompt {prompt_id} ran: look at its log")


def rejection(problem: Mapping[str, Any], node_errors: Mapping[str, Any]) -> PromptRejected:
    """Return the error for a graph that ComfyUI's validation refused, from its two reports."""
    lines = [f"the graph was rejected: {_sentence(problem)}"]
    for node_id, node in node_errors.items():
        for item in node.get("errors", ()):
            lines.append(f"  node {node_id} ({node.get('class_type')}): {_sentence(item)}")
    return PromptRejected("\n".join(lines), node_errors)


class _HttpError(ApiError):
    def __init__(self, method: str, path: str, status: int, body: str) -> None:
        super().__init__(f"{method} {path}: status {status}: {body[:2000]}")
        self.body = body


def _decoded(content: bytes) -> Any:
    return json.loads(content) if content.strip() else None


def _as_rejection(error: _HttpError) -> ApiError:
    try:
        report = json.loads(error.body)
        return rejection(report["error"], report.get("node_errors") or {})
    except (ValueError, KeyError, TypeError, AttributeError):  # not the validation's report
        return error


def _sentence(problem: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (problem.get("message"), problem.get("details")) if part)
