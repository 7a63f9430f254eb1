"""The demo's graph: the template for Wan 2.1 with the small Wan in place of the loaders.

Nodes are found by what they are, so the template may number and arrange its nodes as it likes.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
TEMPLATE = CHECKOUT / "workflows" / "api" / "wan21_t2v_chorus.json"
MODEL = "small_wan_t2v.safetensors"

SIDE, LENGTH = 96, 13  # what the small Wan was trained on, in the template's units
CFG = 3.0

Graph = dict[str, dict[str, Any]]

_REPLACED = {"CLIPLoader": "SmallWanTextEncoderLoader", "VAELoader": "SmallWanVAELoader"}
_FRAMES = "demo frames"


class TemplateFailure(RuntimeError):
    """The template is missing or holds another graph than the demo knows; the message says where."""


@dataclass(frozen=True)
class DemoGraph:
    """A request in API form, and the ids of the nodes the demo looks at."""

    nodes: Graph
    sampler: str
    store: str
    steps: int
    frames: str = _FRAMES


def load_template(file: Path = TEMPLATE) -> Graph:
    """The template in API form. Raises `TemplateFailure`."""
    try:
        graph: Graph = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TemplateFailure(f"the template {file} cannot be read: {error}; restore it from the repository") from error
    return graph


def build(template: Graph, prompt: str, seed: int, *, use_chorus: bool = True) -> DemoGraph:
    """The template's request for `prompt`, sampled by the small Wan.

    use_chorus: False switches the look-up off, so that the run neither reads nor enters the cache.
    Raises `TemplateFailure`.
    """
    graph = copy.deepcopy(template)
    graph[only(graph, "UNETLoader")]["inputs"] |= {"unet_name": MODEL, "weight_dtype": "default"}
    for loader, replacement in _REPLACED.items():
        graph[only(graph, loader)] = {"class_type": replacement, "inputs": {}}
    latent = only(graph, "EmptyHunyuanLatentVideo")
    graph[latent]["inputs"] |= {"width": SIDE, "height": SIDE, "length": LENGTH, "batch_size": 1}

    sampler = only(graph, "KSampler")
    graph[sampler]["inputs"] |= {"seed": seed, "cfg": CFG}
    for socket, text in (("positive", prompt), ("negative", "")):
        write_text(graph, _source(graph, sampler, socket, "CLIPTextEncode"), "text", text)

    lookup = only(graph, "ChorusCacheLookup")
    # The graph's own encoding, so that outcomes do not depend on open_clip weights being on this machine.
    graph[lookup]["inputs"]["embedding"] = "conditioning"
    write_text(graph, lookup, "prompt", prompt)
    if not use_chorus:
        graph[lookup]["inputs"]["mode"] = "off"

    graph[_FRAMES] = {"class_type": "PreviewImage", "inputs": {"images": [only(graph, "VAEDecode"), 0]}}
    return DemoGraph(graph, sampler, only(graph, "ChorusCacheStore"), int(graph[sampler]["inputs"]["steps"]))


def only(graph: Graph, class_type: str) -> str:
    """The id of the one node of `class_type`. Raises `TemplateFailure`."""
    found = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise TemplateFailure(f"{TEMPLATE} has {len(found)} nodes of type {class_type}: the demo needs exactly one")
    return found[0]


def write_text(graph: Graph, node_id: str, name: str, text: str) -> None:
    """Set a text input, where it is linked at the node that holds the text for several."""
    if isinstance(graph[node_id]["inputs"].get(name), list):
        node_id, name = _source(graph, node_id, name, "PrimitiveStringMultiline"), "value"
    graph[node_id]["inputs"][name] = text


def _source(graph: Graph, node_id: str, socket: str, class_type: str) -> str:
    """The node linked to a socket, which must be of `class_type`."""
    link = graph[node_id]["inputs"].get(socket)
    source = str(link[0]) if isinstance(link, list) else ""
    if source not in graph or graph[source]["class_type"] != class_type:
        raise TemplateFailure(
            f"{TEMPLATE}: the input '{socket}' of node {node_id} comes from {link!r}, the demo needs a {class_type}"
        )
    return source
