"""ComfyUI inside the test process: its own modules are its own, and graphs run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tools.inprocess import ComfyHost


def test_checkout_is_not_on_the_import_path(checkout: Path, comfy_host: ComfyHost) -> None:
    assert str(checkout) not in sys.path and "" not in sys.path
    nodes = sys.modules["nodes"]
    assert Path(str(nodes.__file__)).is_relative_to(comfy_host.root)


def test_graph_runs_and_its_tensors_can_be_read(comfy_host: ComfyHost) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 2, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    item = comfy_host.execute(prompt)
    assert len(item["outputs"]["2"]["images"]) == 2
    assert comfy_host.output("1")[0][0].shape == (2, 16, 32, 3)


def test_rejected_graph_raises_as_the_server_would(comfy_host: ComfyHost) -> None:
    from tools.client import PromptRejected

    with pytest.raises(PromptRejected, match="NoSuchNode"):
        comfy_host.execute({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_plain_import_of_the_core_needs_no_host(checkout: Path) -> None:
    import chorus

    assert list(chorus.__path__) == [str(checkout / "chorus")]
