"""Each node has a help page, which the frontend shows beside the node."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tools.server import ComfyServer

NODES = (
    "ChorusCacheLookup",
    "ChorusStage1Reuse",
    "ChorusSRDMask",
    "TGAAPatch",
    "ChorusStage3Refine",
    "ChorusCacheStore",
    "Chorus",
)


def test_each_page_has_its_node(checkout: Path) -> None:
    assert sorted(page.stem for page in (checkout / "web" / "docs").glob("*.md")) == sorted(NODES)


@pytest.mark.parametrize("node", NODES)
def test_page_names_each_input_and_output(node: str, checkout: Path, comfy_server: ComfyServer) -> None:
    page = (checkout / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    info = comfy_server.client().object_info(node)[node]
    for name in [*info["input"].get("required", {}), *info["input"].get("optional", {}), *info["output_name"]]:
        assert f"| `{name}` |" in page, f"{node}.md has no row for '{name}'"


@pytest.mark.parametrize("node", NODES)
def test_server_gives_the_page_to_the_frontend(node: str, comfy_server: ComfyServer) -> None:
    with urllib.request.urlopen(f"{comfy_server.url}/extensions/chorus/docs/{node}.md", timeout=30) as response:
        assert response.status == 200
