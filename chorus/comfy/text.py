"""Which text a request samples: read from the graph, since a widget may hold an old copy of it, or none."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ..messages import Message, say
from .embed import encode, same_encoding
from .signature import LOOKUPS, Link, RunningNode

# What nodes put beside the text into a CONDITIONING, where it is compared by content.
_BESIDE_TEXT = {
    "AUDIO",
    "AUDIO_ENCODER_OUTPUT",
    "BOOLEAN",
    "CLIP_VISION_OUTPUT",
    "CONTROL_NET",
    "FLOAT",
    "IMAGE",
    "INT",
    "LATENT",
    "MASK",
    "STRING",
    "TRACKS",
    "VAE",
    "WAN_CAMERA_EMBEDDING",
}
# Core nodes that give the text of their widget as it is.
_CONSTANTS = {"PrimitiveString": "value", "PrimitiveStringMultiline": "value"}


@dataclass(frozen=True)
class Text:
    """prompt: the text that is sampled, "" where nothing tells it; encoders: the nodes that encode it."""

    prompt: str
    encoders: tuple[str, ...] = ()
    notes: tuple[Message, ...] = ()


def text_of_request(node: RunningNode | None, prompt: str, clip: Any | None, conditioning: list[Any] | None) -> Text:
    """The text of a look-up's request. prompt: the value of its prompt input.

    Where the positive CONDITIONING is connected, its text counts, not the prompt input's. Where the graph does not
    tell that text, the prompt input's is taken if its encoding is the one that is sampled.
    """
    if conditioning is None or node is None:
        return Text(prompt)
    encoders = tuple(encoders_of(node, node.link("positive")))
    sampled = sampled_text(node, encoders[0], node.link("prompt"), prompt) if len(encoders) == 1 else None
    if sampled is None and clip is not None and prompt and conditioning:
        sampled = prompt if same_encoding(encode(clip, prompt), conditioning[0][0]) else None
    if sampled is None:
        return Text("", encoders, (say("note.text_unknown"),))
    notes = (say("note.text_from_graph"),) if prompt.strip() and sampled.strip() != prompt.strip() else ()
    return Text(sampled, encoders, notes)


def prompt_of_sampler(node: RunningNode, prompt: str) -> str | None:
    """The text that the running sampler's node samples, None where the graph does not tell.

    prompt: the value of the look-up's prompt input.
    """
    link = next((link for name in ("positive", "conditioning") if (link := node.link(name))), None)
    if link is None and (guider := node.link("guider")) is not None:
        link = next((link for name in ("positive", "conditioning") if (link := node.link(name, guider[0]))), None)
    encoders = encoders_of(node, link)
    if len(encoders) != 1:
        return None
    lookups = [node_id for node_id in node.graph.all_node_ids() if node.class_of(node_id) in LOOKUPS]
    prompt_links = {node.link("prompt", node_id) for node_id in lookups}
    return sampled_text(node, encoders[0], prompt_links.pop() if len(prompt_links) == 1 else None, prompt)


def encoders_of(node: RunningNode, link: Link | None) -> list[str]:
    """The nodes that encoded the text of a CONDITIONING link: those with a CLIP and a text. Each once."""
    return list(dict.fromkeys(_encoders(node, link, set()))) if link else []


def _encoders(node: RunningNode, link: Link, seen: set[Link]) -> Iterator[str]:
    if link in seen or not node.graph.has_node(link[0]):
        return
    seen.add(link)
    maker, socket = link
    types = _input_types(node, maker)
    if "CLIP" in types.values() and any(types.get(name) == "STRING" for name in node.inputs(maker)):
        yield maker
        return
    conditionings = [name for name, kind in types.items() if kind == "CONDITIONING" and node.link(name, maker)]
    same_name = [name for name in conditionings if name == _output_name(node, maker, socket)]
    for name in same_name or conditionings:
        onward = node.link(name, maker)
        assert onward is not None
        yield from _encoders(node, onward, seen)


def changers_of_text(node: RunningNode, link: Link | None, encoders: Collection[str]) -> list[Any]:
    """The nodes between these encoders and a CONDITIONING link that may put something else among the text's tokens:
    their classes, and what they are set to.

    What a node adds beside the text is compared by itself, so the host's usual types count as understood. A node with
    an input of any other, as a style model, may have changed the text's own tokens. Raises NotUnderstood.
    """
    found = []
    waiting, seen = [link] if link else [], set()
    while waiting:
        maker, _ = waiting.pop()
        if maker in seen or maker in encoders or not node.graph.has_node(maker):
            continue
        seen.add(maker)
        types, inputs = _input_types(node, maker), node.inputs(maker)
        links = {name: onward for name in inputs if (onward := node.link(name, maker)) is not None}
        conditionings = {name for name in links if types.get(name) == "CONDITIONING"}
        waiting += [links[name] for name in sorted(conditionings)]
        others = {name: onward for name, onward in links.items() if name not in conditionings}
        if all(isinstance(types.get(name), list) or types.get(name) in _BESIDE_TEXT for name in others):
            continue
        settings = {name: value for name, value in inputs.items() if name not in links}
        signed = {name: node.signature_of(onward, ()) for name, onward in others.items()}
        found.append([node.class_of(maker), settings, signed])
    return found


def inputs_beside_text(node: RunningNode, encoders: Collection[str]) -> list[Link]:
    """What else than text and text encoder goes into these encoders: pictures among the tokens, for example."""
    found = []
    for encoder in encoders:
        types = _input_types(node, encoder)
        for name in sorted(node.inputs(encoder)):
            link = node.link(name, encoder)
            if link is not None and types.get(name) not in ("CLIP", "STRING"):
                found.append(link)
    return found


def sampled_text(node: RunningNode, encoder: str, prompt_link: Link | None, prompt: str) -> str | None:
    """The text that `encoder` encodes, None where the graph does not tell it.

    prompt_link, prompt: what is connected to the look-up's prompt input, and its value as the host resolved it.
    """
    types = _input_types(node, encoder)
    texts = [name for name in node.inputs(encoder) if types.get(name) == "STRING"]
    if len(texts) != 1 or not _encodes_as_it_is(node, encoder):
        return None
    link = node.link(texts[0], encoder)
    if link is None:
        value = node.inputs(encoder)[texts[0]]
        return value if isinstance(value, str) else None
    if link == prompt_link:
        return prompt
    constant = _CONSTANTS.get(node.class_of(link[0]))
    value = node.inputs(link[0]).get(constant) if constant else None
    return value if isinstance(value, str) else None


def _encodes_as_it_is(node: RunningNode, encoder: str) -> bool:
    """Whether a node is core's: one of a pack may roll or rewrite its text before it encodes it."""
    return str(_class(node, encoder).__module__).split(".")[0] in ("nodes", "comfy_extras")


def _class(node: RunningNode, node_id: str) -> Any:
    nodes: Any = importlib.import_module("nodes")  # ComfyUI's; to a type checker it is the folder of this checkout
    return nodes.NODE_CLASS_MAPPINGS[node.class_of(node_id)]


def _input_types(node: RunningNode, node_id: str) -> dict[str, Any]:
    declared = _class(node, node_id).INPUT_TYPES()
    return {
        name: spec[0] if isinstance(spec, list | tuple) and spec else None
        for group in ("required", "optional")
        for name, spec in declared.get(group, {}).items()
    }


def _output_name(node: RunningNode, node_id: str, socket: int) -> str | None:
    names = getattr(_class(node, node_id), "RETURN_NAMES", None) or ()
    return names[socket] if 0 <= socket < len(names) else None
