"""The workflows fit the server's nodes, and a template is the same graph as its API form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tools import templates

if TYPE_CHECKING:
    from tools.server import ComfyServer

NAMES = templates.names()
FILE_INPUTS = {"unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name", "lora_name"}
OWN_VIDEO = "control_video.mp4"
"""Stands where people choose a video of their own; ComfyUI brings none."""


@pytest.fixture(scope="module")
def object_info(comfy_server: ComfyServer) -> dict[str, Any]:
    return comfy_server.client().object_info()


def template(name: str) -> dict[str, Any]:
    return json.loads((templates.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def test_every_file_belongs_to_a_template() -> None:
    for folder, ending in (("", ".json"), ("", ".jpg"), ("api", ".json"), ("notes", ".md")):
        assert sorted(file.stem for file in (templates.WORKFLOWS / folder).glob(f"*{ending}")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_api_form_fits_the_nodes(name: str, object_info: dict[str, Any]) -> None:
    graph = templates.api_graph(name)
    for key, node in graph.items():
        where = f"{name}, node {key} ({node['class_type']})"
        assert node["class_type"] in object_info, f"{where}: no such node"
        specs = object_info[node["class_type"]]["input"]
        known = specs.get("required", {}) | specs.get("optional", {})
        assert set(specs.get("required", {})) <= set(node["inputs"]) <= set(known), where
        for input_name, value in node["inputs"].items():
            assert_value_fits(graph, value, known[input_name], object_info, f"{where}, {input_name}")


def assert_value_fits(graph: templates.Api, value: Any, spec: list, object_info: dict[str, Any], where: str) -> None:
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    if isinstance(value, list):
        origin, slot = value
        given = object_info[graph[origin]["class_type"]]["output"][slot]
        assert kind in ("*", given) or (isinstance(kind, str) and given in kind.split(",")), where
    elif where.rsplit(" ", 1)[1] in FILE_INPUTS:
        assert value in templates.MODELS, f"{where}: say in tools/templates.py where {value} comes from"
    elif options.get("video_upload"):
        assert value == OWN_VIDEO, where
    elif isinstance(kind, list) or kind == "COMBO":
        assert value in (kind if isinstance(kind, list) else options["options"]), where
    elif kind == "COMFY_DYNAMICCOMBO_V3":
        assert value in [option["key"] for option in options["options"]], where
    else:
        expected = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}[kind]
        assert type(value) is expected, where
        if expected in (int, float):
            assert options.get("min", value) <= value <= options.get("max", value), where


@pytest.mark.parametrize("name", NAMES)
def test_template_is_made_from_the_api_form(name: str, object_info: dict[str, Any]) -> None:
    made = templates.text(templates.build(name, object_info))
    written = (templates.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")
    assert made == written, "run: python tools/run.py python -P tools/launch.py tools.templates"


@pytest.mark.parametrize("name", NAMES)
def test_template_holds_the_same_graph(name: str, object_info: dict[str, Any]) -> None:
    graph = template(name)
    links = {link[0]: link for link in graph["links"]}
    read: templates.Api = {}
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        info = object_info[node["type"]]
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for input_name, spec, _ in templates.inputs_of(info):
            if templates.is_widget(spec):
                inputs[input_name] = next(values)
                if len(spec) > 1 and spec[1].get("control_after_generate"):
                    assert next(values) in ("fixed", "randomize", "increment", "decrement")
                if len(spec) > 1 and (spec[1].get("image_upload") or spec[1].get("video_upload")):
                    assert next(values) == "image"
        assert next(values, "no more") == "no more", f"{node['type']} has widget values left over"
        for entry in node["inputs"]:
            if entry["link"] is not None:
                _, origin, slot, _, _, _ = links[entry["link"]]
                inputs[entry["name"]] = [str(origin), slot]
        title = node.get("title", info["display_name"])
        read[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    assert read == templates.api_graph(name)


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_at_both_ends(name: str) -> None:
    graph = template(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(link[0] for link in graph["links"])
    for link, origin, origin_slot, target, target_slot, kind in graph["links"]:
        output, entry = nodes[origin]["outputs"][origin_slot], nodes[target]["inputs"][target_slot]
        assert link in output["links"] and entry["link"] == link
        assert output["type"] == kind and entry["type"] in (kind, "*")


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_lie_on_each_other(name: str) -> None:
    boxes = [
        (node["pos"][0], node["pos"][1] - templates.TITLE, *node["size"], node["type"])
        for node in template(name)["nodes"]
    ]
    for i, (x, y, w, h, kind) in enumerate(boxes):
        for x2, y2, w2, h2, other in boxes[i + 1 :]:
            apart = x + w <= x2 or x2 + w2 <= x or y + h + templates.TITLE <= y2 or y2 + h2 + templates.TITLE <= y
            assert apart, f"{kind} overlaps {other}"


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail_is_small(name: str) -> None:
    file = templates.WORKFLOWS / f"{name}.jpg"
    assert file.stat().st_size <= 60_000
    with Image.open(file) as image:
        assert image.format == "JPEG" and image.size == (640, 400)


def test_server_offers_the_templates(comfy_server: ComfyServer) -> None:
    offered = comfy_server.client().get("/workflow_templates")
    assert sorted(offered["chorus"]) == NAMES
