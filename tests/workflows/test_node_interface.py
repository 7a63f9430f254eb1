"""The nodes' ids, inputs and outputs stay as they are, so that saved workflows keep opening.

A saved workflow names nodes by id and keeps widget values by their position alone. `node_interface.json`
pins both. A new widget goes last among a node's widgets; nothing is renamed, moved or removed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import templates

if TYPE_CHECKING:
    from tools.server import ComfyServer

PINNED = Path(__file__).parent / "node_interface.json"
FILES = {"sam_checkpoint"}
"""Choices that depend on the files on a machine."""


def interface(info: dict[str, Any]) -> dict[str, list]:
    inputs = []
    for name, spec, optional in templates.inputs_of(info):
        kind = templates.type_name(spec) + (" (optional)" if optional else "")
        choices = spec[1].get("options") if len(spec) > 1 else None
        inputs.append([name, kind, *([choices] if choices and name not in FILES else [])])
    return {"inputs": inputs, "outputs": list(zip(info["output_name"], info["output"], strict=True))}


def test_saved_workflows_keep_opening(comfy_server: ComfyServer) -> None:
    ours = {
        name: interface(info)
        for name, info in comfy_server.client().object_info().items()
        if info["python_module"] == "custom_nodes.chorus"
    }
    ours = json.loads(json.dumps(ours))
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))
    assert sorted(ours) == sorted(pinned)
    for name in pinned:
        assert ours[name] == pinned[name], f"{name} changed: workflows that people saved would open wrongly"
