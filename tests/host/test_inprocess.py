"""ComfyUI inside the test process: its own modules are its own, and graphs run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tools.client import Prompt
    from tools.inprocess import ComfyHost, NodeCache


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


@pytest.mark.parametrize("kind", ["default", "classic", "lru", "none"])
def test_every_kind_of_node_cache_runs_a_node_again_when_and_only_when_it_should(
    comfy_host: ComfyHost, kind: NodeCache
) -> None:
    def image(width: int) -> Prompt:
        size = {"width": width, "height": 16, "batch_size": 1, "color": 0}
        return {
            "1": {"class_type": "EmptyImage", "inputs": size},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }

    def cached(width: int) -> set[str]:
        item = comfy_host.execute(image(width))
        assert comfy_host.output("1")[0][0].shape == (1, 16, width, 3)
        return {n for said, data in item["status"]["messages"] if said == "execution_cached" for n in data["nodes"]}

    with comfy_host.node_cache(kind):
        comfy_host.forget_outputs()
        assert cached(32) == set()
        assert cached(32) == (set() if kind == "none" else {"1", "2"})
        assert cached(48) == set()
        # The graph before the last: only these two kinds may still hold it, and only the second one must.
        assert cached(32) in {"default": [set(), {"1", "2"}], "lru": [{"1", "2"}]}.get(kind, [set()])
        comfy_host.forget_outputs()
        assert cached(32) == set()


def test_rejected_graph_raises_as_the_server_would(comfy_host: ComfyHost) -> None:
    from tools.client import PromptRejected

    with pytest.raises(PromptRejected, match="NoSuchNode"):
        comfy_host.execute({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_plain_import_of_the_core_needs_no_host(checkout: Path) -> None:
    import chorus

    assert list(chorus.__path__) == [str(checkout / "chorus")]
