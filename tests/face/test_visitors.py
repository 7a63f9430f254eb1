"""Who may ask the routes: pages of this server, under names that no page from elsewhere can take; and programs."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chorus.comfy.server.routes import ROUTES
from tools.server import ComfyServer

from .conftest import Answer
from .entries import fill

CACHE = "visited"
HERE, ELSEWHERE = "https://studio.example", "https://evil.example"

Ask = Callable[..., Answer]


def asking(server: ComfyServer) -> Ask:
    """`ask("/status", "evil.example", {"Origin": …}, post={…})`: what a server answers under that Host."""
    place = urlsplit(server.url)

    def ask(
        path: str,
        host: str = place.netloc,
        headers: Mapping[str, str] = {},
        post: Any = None,
        root: str = "/chorus/v1",
    ) -> Answer:
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
        body = None if post is None else post if isinstance(post, bytes) else json.dumps(post).encode()
        kind = "application/zip" if isinstance(post, bytes) else "application/json"
        asked = {"Host": host, **headers} | ({} if body is None else {"Content-Type": kind})
        asked = {name: value.replace(":PORT", f":{place.port}") for name, value in asked.items()}
        try:
            connection.request("GET" if body is None else "POST", root + path, body, asked)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    return ask


@pytest.fixture(scope="module")
def open_server() -> Iterator[ComfyServer]:
    """Reached from the network, its CORS header for every origin, and known under a name."""
    environment = {"CHORUS_ALLOWED_HOSTS": "studio.example, Other.example"}
    with ComfyServer(arguments=["--listen", "0.0.0.0", "--enable-cors-header"], environment=environment) as server:
        yield server


def entry_of(server: ComfyServer) -> str:
    folder = server.base / "user" / "__chorus" / CACHE
    return fill(folder, 1)[0]


def paths(entry: str) -> Iterator[tuple[str, Any]]:
    """(path, body) of every route, the body such that it would change something."""
    bodies: dict[str, Any] = {
        "pin": {"ids": [entry], "pinned": True},
        "forget": {"ids": [entry]},
        "export": {"ids": [entry]},
        "import": b"PK",
        "limit": {"gigabytes": 33},
        "place": {"folder": str(Path.cwd() / "theirs")},
    }
    for method, path, _ in ROUTES:
        filled = path.removeprefix("/chorus/v1").format(cache=CACHE, entry=entry)
        yield filled, bodies[filled.rsplit("/", 1)[1]] if method == "POST" else None


def state(server: ComfyServer, entry: str) -> Any:
    ask = asking(server)
    files = sorted((server.base / "user" / "__chorus").glob("*.json"))
    return ask("/status").json, ask(f"/caches/{CACHE}/entries/{entry}").json, [file.read_bytes() for file in files]


STRANGERS = [
    ("evil.example", {}),
    ("evil.example:PORT", {"Origin": "http://evil.example:PORT"}),
    ("evil.example:PORT", {"Origin": "http://evil.example:PORT", "Sec-Fetch-Site": "same-origin"}),
    ("evil.example:PORT", {"Referer": "http://evil.example:PORT/"}),
    ("evil.example:PORT", {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}),
    ("evil.example", {"Origin": "https://other.evil.example"}),
    ("localhost.evil.example:PORT", {}),
    ("127.0.0.1.evil.example", {}),
    ("127.0.0.1@evil.example", {}),
    ("evil.example#127.0.0.1", {}),
    ("127.0.0.1:PORT", {"Origin": ELSEWHERE}),
    ("127.0.0.1:PORT", {"Origin": ELSEWHERE, "Sec-Fetch-Site": "cross-site"}),
    ("127.0.0.1:PORT", {"Origin": "http://127.0.0.1:1"}),  # another server's page on this machine
    ("127.0.0.1:PORT", {"Origin": "null"}),
    ("127.0.0.1:PORT", {"Origin": "http://127.0.0.1:PORT@evil.example"}),
    ("127.0.0.1:PORT", {"Origin": "file://"}),
    ("127.0.0.1:PORT", {"Sec-Fetch-Site": "cross-site"}),
    ("127.0.0.1:PORT", {"Sec-Fetch-Site": "cross-site", "Referer": ELSEWHERE + "/page"}),
]


@pytest.mark.parametrize("which", ["face_server", "open_server"])
def test_no_route_does_anything_for_a_page_from_elsewhere(request: pytest.FixtureRequest, which: str) -> None:
    server: ComfyServer = request.getfixturevalue(which)
    ask, entry = asking(server), entry_of(server)
    before, reasons = state(server, entry), []
    for host, headers in STRANGERS:
        for path, body in paths(entry):
            for root in ("/chorus/v1", "/api/chorus/v1"):
                answer = ask(path, host, headers, body, root)
                assert answer.status in (400, 403), (host, headers, path, answer.body[:300])
                if answer.body.startswith(b"{"):  # ComfyUI itself refuses some of them, without a reason
                    reasons.append(answer.json["error"]["said"])
    assert {said["code"] for said in reasons} == {"route.host", "route.origin"}
    assert all("CHORUS_ALLOWED_HOSTS" in said["text"] for said in reasons)
    assert state(server, entry) == before


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("127.0.0.1:PORT", {}),
        ("127.0.0.1:PORT", {"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "same-origin"}),
        ("localhost:PORT", {"Origin": "http://localhost:PORT"}),
        ("LOCALHOST:PORT", {}),
        ("[::1]:PORT", {"Origin": "http://[::1]:PORT"}),
        ("localhost:9000", {"Origin": "http://localhost:9000"}),  # a forwarded port
        # A proxy with a certificate for its name.
        ("comfy.example", {"Origin": "https://comfy.example"}),
        ("comfy.example:8443", {"Referer": "https://comfy.example:8443/"}),
        ("comfy.example", {"Origin": "https://comfy.example:8443"}),  # and one that leaves the port out
    ],
)
def test_this_server_answers_its_own_pages(face_server: ComfyServer, host, headers) -> None:
    entry = entry_of(face_server)
    for path in ("/status", f"/caches/{CACHE}/entries/{entry}", f"/caches/{CACHE}/entries/{entry}/preview"):
        assert asking(face_server)(path, host, headers).status == 200
    assert asking(face_server)(f"/caches/{CACHE}/pin", host, headers, {"ids": [entry], "pinned": True}).status == 200


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("192.168.1.5:PORT", {"Origin": "http://192.168.1.5:PORT"}),
        ("[fd00::5]:PORT", {}),
        ("renderbox:PORT", {"Origin": "http://renderbox:PORT"}),
        ("renderbox.local:PORT", {}),
        ("comfy.example", {"Origin": "https://comfy.example"}),
        ("studio.example", {}),
        ("other.example:PORT", {"Origin": "http://other.example:PORT"}),
        ("127.0.0.1:PORT", {"Origin": HERE, "Sec-Fetch-Site": "cross-site"}),  # a page that was allowed
        ("127.0.0.1:PORT", {"Referer": HERE + "/", "Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_in_a_network_it_answers_under_the_names_of_the_network(open_server: ComfyServer, host, headers) -> None:
    entry = entry_of(open_server)
    assert asking(open_server)(f"/caches/{CACHE}/entries/{entry}", host, headers).status == 200
    assert asking(open_server)(f"/caches/{CACHE}/pin", host, headers, {"ids": [entry], "pinned": True}).status == 200


def test_names_of_a_network_mean_nothing_to_a_server_of_this_machine_alone(face_server: ComfyServer) -> None:
    for host in ("192.168.1.5:PORT", "169.254.169.254", "renderbox:PORT", "renderbox.local", "0.0.0.0:PORT"):
        assert asking(face_server)("/status", host).json["error"]["said"]["code"] == "route.host", host


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("comfy.example", {"Origin": "https://comfy.example"}),
        ("127.0.0.1:PORT", {"X-Forwarded-Host": "comfy.example"}),
        ("127.0.0.1:PORT", {"Via": "1.1 proxy"}),
    ],
)
def test_who_comes_through_a_proxy_may_look_and_not_choose_a_place(face_server: ComfyServer, host, headers) -> None:
    ask = asking(face_server)
    assert ask("/status", host, headers).json["place"]["folder"]["fixed"]["code"] == "place.exposed"
    answer = ask("/place", host, headers, {"folder": str(Path.cwd() / "theirs")})
    assert (answer.status, answer.json["error"]["said"]["code"]) == (403, "place.exposed")
