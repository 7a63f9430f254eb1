"""ComfyUI loads this pack, as a server and inside the process."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.server import ComfyServer


def test_server_reports_the_packs_nodes(comfy_server: ComfyServer) -> None:
    ours = {
        name
        for name, node in comfy_server.client().object_info().items()
        if node["python_module"] == "custom_nodes.chorus"
    }
    assert ours
    assert all("Chorus" in name or name == "TGAAPatch" for name in ours), ours


def test_host_and_tests_share_the_packs_modules(
    chorus_pack: ModuleType, pack_module: Callable[[str], ModuleType]
) -> None:
    assert pack_module("chorus") is chorus_pack.chorus
