"""Make the blueprints of the node library: templates as one node each.

    python tools/run.py python -P tools/launch.py tools.templates

makes them with the templates. `subgraphs/TITLE.json` follows from the template and from `BLUEPRINTS` below and is never
edited by hand.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .templates import WORKFLOWS, Api, ObjectInfo, api_graph, build, inputs_of, is_widget, text, type_name

SUBGRAPHS = WORKFLOWS.parent / "subgraphs"
INPUT_NODE, OUTPUT_NODE = -10, -20  # the host's ids for the two borders of a subgraph
LEFT_OUT = {"LoadImage", "SaveVideo", "PreviewAny", "MarkdownNote"}  # what people have in their own graph
SLOT = 20  # pixels between two slots of a border


@dataclass(frozen=True)
class Blueprint:
    """template: its name. inputs: what shows outside, as (label, node id, input); outputs: (label, node id, slot)."""

    template: str
    category: str
    description: str
    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, str, int], ...]


_SIZE = (("width", "7", "width"), ("height", "7", "height"), ("length", "7", "length"))
_SHOWN = (("video", "14", 0), ("what happened", "12", 2))
_CHOSEN = (
    ("seed", "10", "noise_seed"),
    ("cache", "9", "cache_name"),
    ("take", "9", "take"),
    ("high noise model", "1", "unet_name"),
    ("high noise LoRA", "23", "lora_name"),
    ("low noise model", "21", "unet_name"),
    ("low noise LoRA", "25", "lora_name"),
    ("text encoder", "2", "clip_name"),
    ("VAE", "3", "vae_name"),
)
_WORDS = "A similar prompt starts from the video that was made for an earlier one: Chorus keeps its latents on disk."
BLUEPRINTS = {
    "Image to Video (Wan 2.2, Chorus)": Blueprint(
        "image_to_video_wan22_4steps",
        "Video generation and editing/Image to video",
        f"Image to video with Wan 2.2 in 4 steps. {_WORDS}",
        (("start image", "7", "start_image"), ("prompt", "4", "value"), *_SIZE, *_CHOSEN),
        _SHOWN,
    ),
    "Text to Video (Wan 2.2, Chorus)": Blueprint(
        "text_to_video_wan22_4steps",
        "Video generation and editing/Text to video",
        f"Text to video with Wan 2.2 in 4 steps. {_WORDS}",
        (("prompt", "4", "value"), *_SIZE, *_CHOSEN),
        _SHOWN,
    ),
}
"""By their titles, which are the names of their files."""


def blueprint(title: str, object_info: ObjectInfo) -> dict[str, Any]:
    """The blueprint `title` in the frontend's format: a graph of one node, whose subgraph is the template."""
    made = BLUEPRINTS[title]
    template, api = build(made.template, object_info), api_graph(made.template)
    kept = {node["id"]: node for node in template["nodes"] if node["type"] not in LEFT_OUT}
    links = [_as_object(link) for link in template["links"] if link[1] in kept and link[3] in kept]
    gone = {link[0] for link in template["links"]} - {link["id"] for link in links}
    for node in kept.values():
        for entry in node["inputs"]:
            entry["link"] = None if entry["link"] in gone else entry["link"]
        for output in node["outputs"]:
            output["links"] = [link for link in output["links"] if link not in gone]
    inputs = [
        _input(title, slot, made.inputs[slot], kept, links, api, object_info, len(template["links"]))
        for slot in range(len(made.inputs))
    ]
    outputs = [_output(title, slot, made.outputs[slot], kept, links) for slot in range(len(made.outputs))]
    for slots, x in ((inputs, -320), (outputs, max(node["pos"][0] + node["size"][0] for node in kept.values()) + 100)):
        for number, border in enumerate(slots):
            border["pos"] = [x + 100, SLOT * (number + 1)]
    subgraph = {
        "id": _id(title),
        "version": 1,
        "state": {
            "lastGroupId": len(template["groups"]),
            "lastNodeId": max(kept),
            "lastLinkId": max(link["id"] for link in links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": title,
        "category": made.category,
        "description": made.description,
        "inputNode": _border(INPUT_NODE, inputs),
        "outputNode": _border(OUTPUT_NODE, outputs),
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(kept.values()),
        "groups": template["groups"],
        "links": links,
        "extra": {},
    }
    return {
        "id": _id(title, "workflow"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_instance(title, subgraph, api, object_info)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _id(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("chorus", *names))))


def _as_object(link: list[Any]) -> dict[str, Any]:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, link, strict=True))


def _spec(api: Api, object_info: ObjectInfo, node: str, name: str) -> Any:
    return next(spec for found, spec, _ in inputs_of(object_info[api[node]["class_type"]]) if found == name)


def _input(
    title: str,
    slot: int,
    of: tuple[str, str, str],
    nodes: Mapping[int, dict[str, Any]],
    links: list[dict[str, Any]],
    api: Api,
    object_info: ObjectInfo,
    before: int,
) -> dict[str, Any]:
    """An input of the subgraph, linked to its node. before: links of the template, whose ids are taken."""
    label, key, name = of
    node, spec = nodes[int(key)], _spec(api, object_info, key, name)
    kind, link = type_name(spec), before + slot + 1
    entry = next((entry for entry in node["inputs"] if entry["name"] == name), None)
    if entry is None:
        entry = {"name": name, "type": kind, "link": None, "widget": {"name": name}}
        node["inputs"].append(entry)
    entry["link"] = link
    target = node["inputs"].index(entry)
    links.append(_as_object([link, INPUT_NODE, slot, node["id"], target, kind]))
    return {"id": _id(title, "input", label), "name": label, "type": kind, "linkIds": [link]}


def _output(
    title: str,
    slot: int,
    of: tuple[str, str, int],
    nodes: Mapping[int, dict[str, Any]],
    links: list[dict[str, Any]],
) -> dict[str, Any]:
    label, key, origin_slot = of
    output = nodes[int(key)]["outputs"][origin_slot]
    link = max(link["id"] for link in links) + 1
    output["links"].append(link)
    links.append(_as_object([link, int(key), origin_slot, OUTPUT_NODE, slot, output["type"]]))
    return {"id": _id(title, "output", label), "name": label, "type": output["type"], "linkIds": [link]}


def _border(number: int, slots: list[dict[str, Any]]) -> dict[str, Any]:
    x, y = slots[0]["pos"]
    return {"id": number, "bounding": [x - 100, y - SLOT, 120, SLOT * (len(slots) + 2)]}


def _instance(title: str, subgraph: dict[str, Any], api: Api, object_info: ObjectInfo) -> dict[str, Any]:
    """The node that stands for the subgraph; its widgets are those of the inputs that are widgets inside."""
    inputs, widgets = [], []
    for label, key, name in BLUEPRINTS[title].inputs:
        spec = _spec(api, object_info, key, name)
        entry: dict[str, Any] = {"name": label, "type": type_name(spec), "link": None}
        if is_widget(spec):
            widgets.append((label, api[key]["inputs"][name]))
            entry["widget"] = {"name": label}
        inputs.append(entry)
    return {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [420, 480],
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": title,
        "inputs": inputs,
        "outputs": [{"name": one["name"], "type": one["type"], "links": None} for one in subgraph["outputs"]],
        "properties": {"proxyWidgets": [["-1", label] for label, _ in widgets]},
        "widgets_values": [value for _, value in widgets],
    }


def write(object_info: ObjectInfo) -> list[Path]:
    """Write all of them; returns their files."""
    SUBGRAPHS.mkdir(exist_ok=True)
    files = []
    for title in BLUEPRINTS:
        files.append(SUBGRAPHS / f"{title}.json")
        files[-1].write_text(text(blueprint(title, object_info)), encoding="utf-8")
    return files
