"""Chorus in ComfyUI's real frontend: a server of these tests' own, and Chromium."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

from tools.small_workflow import small_workflow

if TYPE_CHECKING:
    from tools.server import ComfyServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
READY = "() => window.app?.vueAppReady && app.isGraphReady && app.extensionManager.spinner === false"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.47.12", "Comfy.Minimap.Visible": False}
# The host's own, without this pack too: templates not installed, files users may add, its default graph's models.
HOSTS_OWN = (
    "404 (Not Found)",
    "workflow templates",
    "fuse options",
    "graph accessed before initialization",
    "huggingface",
)

RUN = """() => new Promise((resolve, reject) => {
    const ended = (event) => {
        for (const name of ["execution_success", "execution_error"]) app.api.removeEventListener(name, ended)
        event.type === "execution_success" ? resolve() : reject(new Error(JSON.stringify(event.detail).slice(0, 2000)))
    }
    for (const name of ["execution_success", "execution_error"]) app.api.addEventListener(name, ended)
    app.queuePrompt(0)
})"""

RESULT = """(type) => app.graph.nodes.find((node) => node.comfyClass === type)
    .widgets.find((widget) => widget.name === "chorus_result").element.innerText"""


@pytest.fixture(scope="package")
def face_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server as people start it: with the host's default node cache, which keeps the outputs of earlier graphs."""
    from tools.server import ComfyServer

    with ComfyServer(tmp_path_factory.mktemp("face")) as server:
        yield server


@pytest.fixture(scope="package")  # while it is open, nothing else in this process can run an event loop
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHORUS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail("no browser: install chromium (apt-get install chromium), or name one in CHORUS_BROWSER")
    with sync_playwright() as playwright:
        # Without a sandbox, since CI runs as root; the only page it opens is our own server's.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


@pytest.fixture
def ask_cache(face_server: ComfyServer) -> Callable[..., Answer]:
    """`ask_cache("/entries", cache="name")`: what a route answers; below the root where `cache` is None."""
    place = urlsplit(face_server.url)

    def asked(path: str, *, cache: str | None, post: Any = None, headers: Mapping[str, str] = {}) -> Answer:
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        root = "/chorus/v1" if cache is None else f"/chorus/v1/caches/{quote(cache, safe='')}"
        try:
            if post is None:
                connection.request("GET", root + path, headers=dict(headers))
            else:
                body = post if isinstance(post, bytes) else json.dumps(post).encode()
                connection.request("POST", root + path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    return asked


class Face:
    """A page of ComfyUI, and the errors in its console."""

    def __init__(self, page: Page, url: str):
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(own in message.text for own in HOSTS_OWN):
            self.errors.append(message.text)

    def _asked(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(address)

    def open(self) -> None:
        """Load the page with nothing in the graph."""
        self.page.add_init_script("sessionStorage.clear(); localStorage.clear()")
        self.page.goto(self.url)
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.evaluate("() => app.graph.clear()")

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def load(self, name: str, prompt: str, **options: Any) -> None:
        """Open a template with the small Wan."""
        self.page.evaluate("(graph) => app.loadGraphData(graph)", small_workflow(name, prompt, **options))

    def run(self) -> None:
        """Queue the open graph and wait until it has run."""
        self.page.evaluate(RUN)

    def show(self, node_id: int, x: int = 100) -> None:
        """Bring a node into view at its natural size, `x` pixels from the left."""
        self.page.evaluate(
            """([id, left]) => {
                const [x, y] = app.graph.getNodeById(id).pos
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [left - x, 120 - y]
                app.canvas.setDirty(true, true)
            }""",
            [node_id, x],
        )

    def toggle_panel(self) -> None:
        self.page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('chorus')")

    @property
    def store(self) -> Locator:
        """What the open graph's Cache Store shows."""
        return self.page.locator('.chorus-result[data-node="ChorusCacheStore"]')

    def result(self, node_type: str) -> str:
        """What the open graph's node of this type shows."""
        return self.page.evaluate(RESULT, node_type)

    def assert_clean(self) -> None:
        assert self.errors == []


@contextmanager
def opened(
    server: ComfyServer,
    browser: Browser,
    *,
    language: str = "en",
    theme: str = "dark",
    vue_nodes: bool = False,
    **context: Any,
) -> Iterator[Face]:
    """A page of the server; a console error fails the test that opened it."""
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"Comfy.Locale": language, "Comfy.ColorPalette": theme, "Comfy.VueNodes.Enabled": vue_nodes}
    settings.write_text(json.dumps(SETTINGS | chosen), encoding="utf-8")
    shown = browser.new_context(viewport={"width": 1440, "height": 900}, **context)
    try:
        face = Face(shown.new_page(), server.url)
        face.open()
        yield face
        face.assert_clean()
    finally:
        shown.close()


@pytest.fixture
def open_page(face_server: ComfyServer, browser: Browser) -> Callable[..., Any]:
    """`with open_page(theme="light") as face:`; see `opened`."""
    return partial(opened, face_server, browser)


@pytest.fixture
def cache_folder(face_server: ComfyServer) -> Path:
    """The folder of all caches of the server."""
    return face_server.base / "user" / "__chorus"


@pytest.fixture
def small_disk(cache_folder: Path) -> Iterator[Callable[..., Any]]:
    """`small_disk("name", megabytes)` puts the folder of a cache on a disk of its own; `disk.remount("ro")`."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    mounted: list[Path] = []

    def made(name: str, megabytes: int) -> Disk:
        folder = cache_folder / name
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chorus", str(folder)], check=True)
        mounted.append(folder)
        return Disk(folder)

    yield made
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazily: the server has files open there


@dataclass(frozen=True)
class Disk:
    """A disk that can be full, or read only."""

    folder: Path

    def fill(self) -> None:
        """Leave no byte."""
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def empty(self) -> None:
        (self.folder / "ballast").unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)
