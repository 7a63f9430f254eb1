"""The templates open in ComfyUI's real frontend, and what it would queue is the committed API form."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Page, sync_playwright

from tools import templates

if TYPE_CHECKING:
    from tools.server import ComfyServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
READY = "() => window.app?.vueAppReady && app.isGraphReady && app.extensionManager.spinner === false"
OPEN = """async (name) => {
    const answer = await fetch(`api/workflow_templates/chorus/${name}.json`)
    await app.loadGraphData(await answer.json())
    const unknown = app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types))
    const { output, workflow } = await app.graphToPrompt()
    return { unknown: unknown.map((node) => node.type), output, workflow }
}"""


def browser_path() -> str:
    path = os.environ.get("CHORUS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail("no browser: install chromium (apt-get install chromium), or name one in CHORUS_BROWSER")
    return path


@pytest.fixture(scope="module")
def page(comfy_server: ComfyServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        # Without a sandbox, since CI runs as root; the only page it opens is our own server's.
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            page.goto(comfy_server.url)
            page.wait_for_function(READY, timeout=120_000)
            yield page
        finally:
            browser.close()


def graph_of(nodes: list[dict[str, Any]]) -> dict[int, Any]:
    """What must survive opening and saving of each node."""
    return {
        node["id"]: {
            "type": node["type"],
            "title": node.get("title"),
            "inputs": [(entry["name"], entry["type"], entry["link"]) for entry in node["inputs"]],
            "outputs": [(entry["name"], entry["type"], entry["links"] or []) for entry in node["outputs"]],
            "widgets_values": node["widgets_values"],
        }
        for node in nodes
    }


@pytest.mark.parametrize("name", templates.names())
def test_template_opens_and_queues_its_api_form(name: str, page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened = page.evaluate(OPEN, name)
    assert opened["unknown"] == []
    assert opened["output"] == templates.api_graph(name)
    written = json.loads((templates.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    saved = graph_of(opened["workflow"]["nodes"])
    for node_id, node in graph_of(written["nodes"]).items():
        assert saved[node_id] == node | {"title": node["title"] or saved[node_id]["title"]}
    assert opened["workflow"]["links"] == written["links"]
    assert errors == []
