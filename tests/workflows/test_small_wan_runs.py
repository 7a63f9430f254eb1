"""The workflows run: with the small Wan in place of the large files, a small size and few steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tools import templates

if TYPE_CHECKING:
    from tools.inprocess import ComfyHost

FIRST = "a red circle moving right over a navy background"
SIMILAR = "a green circle moving right over a navy background"
STEPS = 4
LOOKUPS = ("ChorusCacheLookup", "Chorus")
STANDS_IN = {"CLIPLoader": "SmallWanTextEncoderLoader", "VAELoader": "SmallWanVAELoader"}


@pytest.fixture(scope="module")
def second_expert(comfy_host: ComfyHost) -> str:
    """A second model file with other weights, as Wan 2.2's low-noise expert has."""
    folder = comfy_host.base / "models" / "diffusion_models"
    with safe_open(folder / "small_wan_t2v.safetensors", "pt") as file:
        metadata = file.metadata()
    weights = load_file(folder / "small_wan_t2v.safetensors")
    (head,) = (name for name in weights if name.endswith("head.head.weight"))
    weights[head] = weights[head] * 1.001
    save_file(weights, folder / "small_wan_low_noise.safetensors", metadata=metadata)
    return "small_wan_low_noise.safetensors"


def small(name: str, prompt: str, cache: str, low_noise: str = "") -> templates.Api:
    """The workflow `name` with the small Wan, without a video file at its end."""
    graph = templates.api_graph(name)
    for key, node in list(graph.items()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "UNETLoader":
            inputs["unet_name"] = low_noise if "low_noise" in inputs["unet_name"] else "small_wan_t2v.safetensors"
        elif kind in STANDS_IN:
            graph[key] = {"class_type": STANDS_IN[kind], "inputs": {}}
        elif kind == "LoraLoaderModelOnly":
            graph[key] = {"class_type": "ModelSamplingSD3", "inputs": {"model": inputs["model"], "shift": 5.0}}
        elif kind == "EmptyHunyuanLatentVideo":
            inputs |= {"width": 96, "height": 96, "length": 13}
        elif kind in ("KSampler", "KSamplerAdvanced"):
            inputs |= {"steps": STEPS, "cfg": 1.0}  # with CFG 6 all of 4 steps would be computed
            for cut in {"start_at_step", "end_at_step"} & set(inputs):
                inputs[cut] = STEPS // 2 if inputs[cut] == 10 else inputs[cut]
        elif kind == "PrimitiveStringMultiline":
            inputs["value"] = prompt
        elif kind in ("ChorusCacheLookup", "Chorus"):
            inputs |= {"cache_name": cache, "embedding": "conditioning"}
        elif kind == "CreateVideo":
            graph[key] = {"class_type": "PreviewImage", "inputs": {"images": inputs["images"]}}
        elif kind == "SaveVideo":
            del graph[key]
    return graph


def report(graph: templates.Api, item: dict[str, Any]) -> dict[str, Any]:
    (store,) = (key for key, node in graph.items() if node["class_type"] == "ChorusCacheStore")
    return item["outputs"][store]["chorus"][0]


@pytest.mark.parametrize("name", templates.names())
def test_second_similar_prompt_is_a_hit(name: str, comfy_host: ComfyHost, second_expert: str) -> None:
    graph = small(name, FIRST, name, second_expert)
    cold = report(graph, comfy_host.execute(graph))
    assert (cold["outcome"], cold["steps"], cold["steps_computed"]) == ("miss", STEPS, STEPS)
    assert cold["entry_id"]

    graph = small(name, SIMILAR, name, second_expert)
    hit = report(graph, comfy_host.execute(graph))
    assert hit["outcome"] == "hit" and hit["source_prompt"] == FIRST
    assert 0 < hit["looked"] < 1
    # At least one step is saved, or computed for what differs and the tokens beside it only.
    shares = [share for share in hit["token_share"] if 0 < share < 1]
    assert 2 <= hit["step_equivalents"] <= STEPS - 1 + max(shares, default=0.0) + 1e-3 < STEPS


@pytest.mark.parametrize("name", templates.names())
def test_unchanged_graph_does_not_sample_again(name: str, comfy_host: ComfyHost, second_expert: str) -> None:
    graph = small(name, FIRST, f"{name} again", second_expert)
    # A second look-up may find once what the first one's run has stored.
    for _ in [node for node in graph.values() if node["class_type"] in LOOKUPS]:
        comfy_host.execute(graph)
    again = comfy_host.execute(graph)
    (cached,) = (set(data["nodes"]) for kind, data in again["status"]["messages"] if kind == "execution_cached")
    assert {key for key, node in graph.items() if node["class_type"].startswith("KSampler")} <= cached
