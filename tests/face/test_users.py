"""ComfyUI with --multi-user: each user has caches of their own, in the panel and in the runs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from chorus.comfy.users import own_name
from tools import demo_graph
from tools.demo_requests import SEED, SOURCE
from tools.server import ComfyServer

Call = tuple[int, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyServer]:
    with ComfyServer(arguments=["--multi-user", "--cache-none"]) as server:
        yield server


@pytest.fixture(scope="module")
def people(server: ComfyServer) -> tuple[str, str]:
    """The ids of two users."""
    first, second = (call(server, "/users", {"username": name})[1] for name in ("Ann", "Bo ../x"))
    return first, second


def call(server: ComfyServer, path: str, body: Any = None, user: str = "") -> Call:
    """(status, answer) of a request of a user, of nobody in particular without one."""
    headers = {"Comfy-User": user} if user else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content[:1] in b'{["' else content
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def render(server: ComfyServer, user: str, **more: Any) -> dict[str, Any]:
    """What the store says of a run of the one request that these tests make."""
    graph = demo_graph.build(demo_graph.load_template(), SOURCE.text, SEED)
    status, answer = call(server, "/prompt", {"prompt": graph.nodes, **more}, user)
    assert status == 200, answer
    while not (history := call(server, f"/history/{answer['prompt_id']}")[1]):
        time.sleep(0.1)
    result: dict[str, Any] = history[answer["prompt_id"]]["outputs"][graph.store]["chorus"][0]
    return result


def names(server: ComfyServer, user: str) -> list[str]:
    found: list[str] = call(server, "/chorus/v1/status", user=user)[1]["caches"]
    return found


def entries(server: ComfyServer, user: str) -> list[str]:
    return [entry["id"] for entry in call(server, "/chorus/v1/caches/default/entries", user=user)[1]["entries"]]


def test_a_run_is_served_from_its_own_users_cache(server: ComfyServer, people: tuple[str, str]) -> None:
    first, second = people
    assert render(server, first)["outcome"] == "miss"
    assert render(server, first)["outcome"] == "identical"
    assert render(server, second)["outcome"] == "miss"
    assert render(server, "")["outcome"] == "miss"  # a program that names no user
    own_id = "01234567-89ab-cdef-0123-456789abcdef"  # a page may bring an id of its own
    assert render(server, second, prompt_id=own_id)["outcome"] == "identical"
    assert [names(server, user) for user in (first, second, "")] == [["default"]] * 3
    kept = [entries(server, user) for user in (first, second, "")]
    assert [len(ids) for ids in kept] == [1, 1, 1] and len({ids[0] for ids in kept}) == 3
    folders = {folder.name for folder in (server.base / "user" / "__chorus").iterdir() if folder.is_dir()}
    assert folders >= {own_name("default", first), own_name("default", second), "default"}


def test_nobody_sees_or_changes_the_entries_of_others(server: ComfyServer, people: tuple[str, str]) -> None:
    first, second = people
    render(server, first)
    (entry, *_), path = entries(server, first), "/chorus/v1/caches/default"
    for part in ("", "/preview", "/frames", "/workflow"):
        assert call(server, f"{path}/entries/{entry}{part}", user=first)[0] in (200, 404)  # it has no frames
        for other in (second, ""):
            assert call(server, f"{path}/entries/{entry}{part}", user=other)[0] == 404
    # A picture's address says whose it is, since a page cannot give it a header.
    assert call(server, f"{path}/entries/{entry}/workflow?user={first}")[0] == 200
    assert call(server, f"{path}/forget", {"ids": [entry]}, second)[0] in (200, 404)
    assert call(server, f"{path}/pin", {"ids": [entry], "pinned": True}, second)[0] == 404
    assert call(server, f"{path}/entries/{entry}", user=first)[1]["pinned"] is False
    assert call(server, f"/chorus/v1/caches/{own_name('default', first)}/entries", user=second)[0] == 404


def test_a_user_that_comfyui_does_not_know_is_refused(server: ComfyServer) -> None:
    for user in ("nobody", "__chorus", "../default"):
        status, answer = call(server, "/chorus/v1/caches/default/entries", user=user)
        assert (status, answer["error"]["said"]["code"]) == (403, "route.user")


def test_without_users_the_header_means_nothing(face_server: ComfyServer) -> None:
    assert call(face_server, "/chorus/v1/status", user="nobody")[0] == 200
