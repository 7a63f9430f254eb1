"""The workflows run: with the small Wan in place of the large files, a small size and few steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tools import templates

from . import test_tiny_models_run

if TYPE_CHECKING:
    from tools.inprocess import ComfyHost

FIRST = "a red circle moving right over a navy background"
SIMILAR = "a green circle moving right over a navy background"
STEPS = 4
NAMES = sorted(set(templates.names()) - set(test_tiny_models_run.NAMES))
LOOKUPS = ("ChorusCacheLookup", "Chorus")
STANDS_IN = {"CLIPLoader": "SmallWanTextEncoderLoader", "VAELoader": "SmallWanVAELoader"}


@pytest.fixture(scope="module")
def models(comfy_host: ComfyHost) -> Path:
    """The folder of the small Wan, with files like those of Wan 2.2.

    Its low-noise expert has other weights. Models that start from an image have 20 more input channels; here, small
    random weights let them count.
    """
    folder = comfy_host.base / "models" / "diffusion_models"
    with safe_open(folder / "small_wan_t2v.safetensors", "pt") as file:
        metadata = file.metadata()
    weights = load_file(folder / "small_wan_t2v.safetensors")
    (head,) = (name for name in weights if name.endswith("head.head.weight"))
    (first,) = (name for name in weights if name.endswith("patch_embedding.weight"))
    more = torch.randn((len(weights[first]), 20, *weights[first].shape[2:]), generator=torch.Generator().manual_seed(1))
    from_image = {first: torch.cat((weights[first], 0.01 * more.to(weights[first])), 1)}
    low_noise = {head: weights[head] * 1.001}
    for name, other in (("t2v_low", low_noise), ("i2v", from_image), ("i2v_low", from_image | low_noise)):
        save_file(weights | other, folder / f"small_wan_{name}.safetensors", metadata=metadata)
    return folder


def small(name: str, prompt: str, cache: str) -> templates.Api:
    """The workflow `name` with the small Wan, without a video file at its end."""
    graph = templates.api_graph(name)
    for key, node in list(graph.items()):
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "UNETLoader":
            family, low = ("i2v" if "i2v" in inputs["unet_name"] else "t2v"), "_low" * ("low" in inputs["unet_name"])
            inputs["unet_name"] = f"small_wan_{family}{low}.safetensors"
        elif kind in STANDS_IN:
            # The codec that encodes the images of a video has one of them for each latent frame.
            model = {"model": "bench_wan_i2v"} if kind == "VAELoader" and "image_to_video" in name else {}
            graph[key] = {"class_type": STANDS_IN[kind], "inputs": model}
        elif kind == "LoraLoaderModelOnly":
            graph[key] = {"class_type": "ModelSamplingSD3", "inputs": {"model": inputs["model"], "shift": 5.0}}
        elif kind in ("EmptyHunyuanLatentVideo", "WanImageToVideo"):
            inputs |= {"width": 96, "height": 96, "length": 13}
        elif kind in ("KSampler", "KSamplerAdvanced"):
            inputs |= {"steps": STEPS, "cfg": 1.0}  # with CFG 6 all of 4 steps would be computed
            for cut in {"start_at_step", "end_at_step"} & set(inputs):
                inputs[cut] = STEPS // 2 if inputs[cut] in (2, 10) else inputs[cut]
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


@pytest.mark.parametrize("name", NAMES)
def test_second_similar_prompt_is_a_hit(name: str, comfy_host: ComfyHost, models: Path) -> None:
    graph = small(name, FIRST, name)
    cold = report(graph, comfy_host.execute(graph))
    assert (cold["outcome"], cold["steps"], cold["steps_computed"]) == ("miss", STEPS, STEPS)
    assert cold["entry_id"]

    graph = small(name, SIMILAR, name)
    hit = report(graph, comfy_host.execute(graph))
    assert hit["outcome"] == "hit" and hit["source_prompt"] == FIRST
    assert 0 < hit["looked"] < 1
    # At least one step is saved, or computed for what differs and the tokens beside it only.
    shares = [share for share in hit["token_share"] if 0 < share < 1]
    assert 2 <= hit["step_equivalents"] <= STEPS - 1 + max(shares, default=0.0) + 1e-3 < STEPS


@pytest.mark.parametrize("name", NAMES)
def test_unchanged_graph_does_not_sample_again(name: str, comfy_host: ComfyHost, models: Path) -> None:
    graph = small(name, FIRST, f"{name} again")
    # A second look-up may find once what the first one's run has stored.
    for _ in [node for node in graph.values() if node["class_type"] in LOOKUPS]:
        comfy_host.execute(graph)
    again = comfy_host.execute(graph)
    (cached,) = (set(data["nodes"]) for kind, data in again["status"]["messages"] if kind == "execution_cached")
    assert {key for key, node in graph.items() if node["class_type"].startswith("KSampler")} <= cached
