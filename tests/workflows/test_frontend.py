"""The templates open in ComfyUI's real frontend, and what it would queue is the committed API form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page

from tools import templates

OPEN = """async (name) => {
    const answer = await fetch(`api/workflow_templates/chorus/${name}.json`)
    await app.loadGraphData(await answer.json())
    const unknown = app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types))
    const { output, workflow } = await app.graphToPrompt()
    return { unknown: unknown.map((node) => node.type), output, workflow }
}"""


def chorus_inputs(name: str) -> dict[str, Any]:
    """What a template's node Chorus is given; nothing where it has none."""
    nodes = templates.api_graph(name).values()
    return next((node["inputs"] for node in nodes if node["class_type"] == "Chorus"), {})


EXPERTS = [name for name in templates.names() if "low_noise_model" in chorus_inputs(name)]
BYPASS = """async () => {
    for (const node of app.graph.nodes) if (["Chorus", "ChorusCacheStore"].includes(node.type)) node.mode = 4
    return (await app.graphToPrompt()).output
}"""


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


@pytest.mark.parametrize("name", EXPERTS)
def test_with_chorus_bypassed_each_expert_samples_its_half(name: str, page: Page) -> None:
    page.evaluate(OPEN, name)
    template, bypassed = templates.api_graph(name), page.evaluate(BYPASS)
    chorus = chorus_inputs(name)
    samplers = [key for key, node in template.items() if node["class_type"] == "KSamplerAdvanced"]
    models = [bypassed[key]["inputs"]["model"] for key in samplers]
    assert models == [chorus["model"], chorus["low_noise_model"]]


@pytest.mark.parametrize("name", EXPERTS)
def test_a_workflow_saved_with_another_order_of_sockets_is_the_same_graph(name: str, page: Page) -> None:
    """The second expert's socket was once the last one."""
    saved = json.loads((templates.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    (node,) = (node for node in saved["nodes"] if node["type"] == "Chorus")
    sockets = {entry["name"]: entry for entry in node["inputs"]}
    last = [sockets.pop("low_noise_model"), *(sockets.pop(one) for one in list(sockets) if "widget" in sockets[one])]
    node["inputs"] = [*sockets.values(), *last]
    for slot, entry in enumerate(node["inputs"]):
        for link in saved["links"]:
            if link[0] == entry["link"]:
                link[4] = slot
    opened = page.evaluate(
        "async (graph) => { await app.loadGraphData(graph); return (await app.graphToPrompt()).output }", saved
    )
    assert opened == templates.api_graph(name)
