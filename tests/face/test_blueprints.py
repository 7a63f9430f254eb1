"""The blueprints of the node library: a template as one node, with the same graph inside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tools import blueprints, templates

if TYPE_CHECKING:
    from tools.server import ComfyServer

FOUND = "(title) => app.graph.nodes.some((node) => node.title === title)"
QUEUED = "async () => (await app.graphToPrompt()).output"
SET = """([title, values]) => {
    const node = app.graph.nodes.find((node) => node.title === title)
    for (const [name, value] of values) node.widgets.find((widget) => widget.name === name).value = value
    return node.inputs.filter((input) => !input.widget).map((input) => [input.name, input.type])
}"""


def inside(title: str) -> templates.Api:
    """The template's graph without what people have in their own."""
    graph = templates.api_graph(blueprints.BLUEPRINTS[title].template)
    kept = {key: node for key, node in graph.items() if node["class_type"] not in blueprints.LEFT_OUT}
    for node in kept.values():
        links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        for name in (name for name, value in links.items() if value[0] not in kept):
            del node["inputs"][name]
    return kept


def queued(page: Any) -> templates.Api:
    """The open graph as it is queued, its nodes' ids without that of the subgraph."""

    def own(value: Any) -> Any:
        return [value[0].split(":")[-1], value[1]] if isinstance(value, list) else value

    return {
        key.split(":")[-1]: node | {"inputs": {name: own(value) for name, value in node["inputs"].items()}}
        for key, node in page.evaluate(QUEUED).items()
    }


@pytest.mark.parametrize("title", blueprints.BLUEPRINTS)
def test_from_the_library_comes_the_graph_of_the_template(open_page, title: str) -> None:
    with open_page() as face:
        page, expected = face.page, inside(title)
        page.evaluate("() => { app.extensionManager.command.execute('Workspace.SearchBox.Toggle') }")
        page.locator("input:focus").fill(title)
        page.get_by_text(title, exact=True).first.wait_for()
        page.keyboard.press("Enter")
        page.mouse.click(600, 400)  # where it is put
        page.wait_for_function(FOUND, arg=title)
        assert queued(page) == expected

        values = {"prompt": "a red fox", "seed": 7, "length": 17, "cache": "another"}
        sockets = page.evaluate(SET, [title, list(values.items())])
        assert sockets == ([["start image", "IMAGE"]] if "Image to" in title else [])
        for label, node, name in blueprints.BLUEPRINTS[title].inputs:
            if label in values:
                expected[node]["inputs"][name] = values[label]
        assert queued(page) == expected


@pytest.mark.parametrize("title", blueprints.BLUEPRINTS)
def test_blueprint_is_made_from_its_template(title: str, face_server: ComfyServer) -> None:
    made = templates.text(blueprints.blueprint(title, face_server.client().object_info()))
    written = (blueprints.SUBGRAPHS / f"{title}.json").read_text(encoding="utf-8")
    assert made == written, "run: python tools/run.py python -P tools/launch.py tools.templates"


def test_server_offers_the_blueprints(face_server: ComfyServer) -> None:
    offered = face_server.client().get("/global_subgraphs").values()
    assert {one["name"] for one in offered if "chorus" in json.dumps(one["info"])} == set(blueprints.BLUEPRINTS)
