"""A template in the frontend's format with the small Wan in place of the large files, to open in a real browser."""

from __future__ import annotations

import json
from typing import Any

from .demo_graph import LENGTH, MODEL, SIDE
from .templates import WORKFLOWS

_STANDS_IN = {"CLIPLoader": "SmallWanTextEncoderLoader", "VAELoader": "SmallWanVAELoader"}
Workflow = dict[str, Any]


def small_workflow(name: str, prompt: str, *, cache: str = "default", seed: int = 1) -> Workflow:
    """The template `name` as people open it, sampling a few steps of a small video."""
    workflow: Workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        kind, values = node["type"], node.get("widgets_values")
        if kind in _STANDS_IN:
            node |= {"type": _STANDS_IN[kind], "inputs": [], "widgets_values": [], "properties": {}}
        elif kind == "UNETLoader":
            node |= {"widgets_values": [MODEL, "default"], "properties": {}}
        elif kind == "LoraLoaderModelOnly":
            node |= {"widgets_values": ["small_wan_4step_lora.safetensors", 1.0], "properties": {}}
        elif kind == "EmptyHunyuanLatentVideo":
            values[:] = [SIDE, SIDE, LENGTH, 1]
        elif kind == "KSampler":
            values[0] = seed
        elif kind == "PrimitiveStringMultiline":
            values[0] = prompt
        elif kind in ("ChorusCacheLookup", "Chorus"):
            values[3:5] = [cache, "conditioning"]
    return workflow
