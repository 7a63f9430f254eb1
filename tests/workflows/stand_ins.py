"""What stands in for the files that a graph names: tiny models of the same networks, encoders, pictures, sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from families.models import Tiny, hunyuan, hunyuan15, kandinsky, ltx, wan

from tools.templates import Api

FIRST = "a red circle moving right over a navy background"
SIMILAR = "a green circle moving right over a navy background"


@dataclass(frozen=True)
class StandIn:
    """For model files of a name.

    vae: channels, pixels of a cell, frames of a latent frame. text: what `FamilyTextEncoder` makes, unless its usual.
    sight: width of what CLIP vision gives.
    """

    models: tuple[Tiny, ...]
    vae: tuple[int, int, int] = (16, 8, 4)
    text: Mapping[str, Any] = field(default_factory=dict)
    sight: int = 1280

    @property
    def side(self) -> int:
        """Pixels of a small picture."""
        return 64 if self.vae[1] == 8 else 128


def _experts(*kind: str, **numbers: Any) -> StandIn:
    return StandIn((wan(*kind, **numbers), wan(*kind, **numbers, seed=1)))


STAND_INS = {
    "wan2.1_t2v": StandIn((wan(),)),
    "wan2.1_i2v": StandIn((wan(in_dim=36, model_type="i2v"),)),
    "wan2.1_flf2v": StandIn((wan(in_dim=36, model_type="i2v", flf_pos_embed_token_number=514),)),
    "wan2.1_fun_control": StandIn((wan(in_dim=48, model_type="i2v"),)),
    "wan2.1_fun_camera": StandIn((wan("Camera", in_dim=32),)),
    "wan2.1_vace": StandIn((wan("Vace", vace_layers=2, vace_in_dim=96),)),
    "wan2.2_t2v": _experts(),
    "wan2.2_i2v": _experts(in_dim=36),
    "wan2.2_fun_control_high": _experts(in_dim=52, in_dim_ref_conv=16),
    "wan2.2_fun_camera": _experts("Camera", in_dim=36, model_type="camera_2.2"),
    "wan2.2_ti2v_5B": StandIn((wan(in_dim=48, out_dim=48),), (48, 16, 4)),
    "wan2.2_fun_control_5B": StandIn((wan(in_dim=148, out_dim=48, in_dim_ref_conv=48),), (48, 16, 4)),
    "hunyuan_video_t2v": StandIn((hunyuan(),), text={"pooled": 768, "masked": True}),
    "hunyuanvideo1.5": StandIn((hunyuan15(),), (32, 16, 4), sight=1152),
    "kandinsky5": StandIn((kandinsky(),), text={"width": 3584, "pooled": 768}),
    "ltx-video": StandIn((ltx(),), (128, 32, 8), {"masked": True}),
}
"""By the beginning of a model file's name."""


def stand_in(graph: Api) -> tuple[str, StandIn]:
    """(beginning, stand-in) for the graph's model."""
    files = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)]
    return next((name, one) for name, one in STAND_INS.items() if any(file.startswith(name) for file in files))


def write_models(graph: Api, folder: Path) -> None:
    """Write the tiny models that stand in for the graph's; needs a process that runs ComfyUI."""
    name, one = stand_in(graph)
    for index, model in enumerate(one.models):
        model.write(folder / _file(name, index))


def _file(name: str, index: int) -> str:
    return f"tiny_{name}_{index}.safetensors"


def small(graph: Api, cache: str) -> Api:
    """The graph with its stand-ins in a small size, up to its Cache Store nodes."""
    name, one = stand_in(graph)
    graph, passed = copy.deepcopy(graph), {}

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    for key, found in list(graph.items()):
        kind, inputs = found["class_type"], found["inputs"]
        if kind == "UNETLoader":
            index = int("low_noise" in inputs["unet_name"])
            graph[key] = node("UNETLoader", unet_name=_file(name, index), weight_dtype="default")
        elif kind == "CheckpointLoaderSimple":
            graph[key] = node("UNETLoader", unet_name=_file(name, 0), weight_dtype="default")
            graph[f"{key} vae"] = node("FamilyVAE", **dict(zip(("channels", "cell", "every"), one.vae, strict=True)))
            passed[key, 2] = [f"{key} vae", 0]
        elif kind in ("LoraLoader", "LoraLoaderModelOnly"):
            passed |= {(key, 0): inputs["model"], (key, 1): inputs.get("clip")}
        elif kind in ("CLIPLoader", "DualCLIPLoader"):
            graph[key] = node("FamilyTextEncoder", **{"width": 64, "pooled": 0, "masked": False, **one.text})
        elif kind == "VAELoader":
            graph[key] = node("FamilyVAE", **dict(zip(("channels", "cell", "every"), one.vae, strict=True)))
        elif kind == "CLIPVisionEncode":
            graph[key] = node("FamilySight", seed=1, width=one.sight)
        elif kind in ("LoadImage", "GetVideoComponents"):
            frames = 9 if kind == "GetVideoComponents" else 1
            graph[key] = node("FamilyPictures", seed=len(passed) + len(key), frames=frames, size=one.side)
        elif kind == "ChorusCacheStore":
            inputs.pop("frames", None)  # the stand-ins decode nothing
        elif kind == "Chorus":
            inputs |= {"cache_name": cache, "embedding": "conditioning"}
        elif "length" in inputs:
            inputs |= {"width": one.side, "height": one.side, "length": 9}
    for found in graph.values():
        for socket, value in found["inputs"].items():
            while isinstance(value, list) and tuple(value) in passed:
                value = found["inputs"][socket] = passed[tuple(value)]
    return {key: graph[key] for key in _needed(graph)}


def _needed(graph: Api) -> set[str]:
    """The Cache Store nodes and all that they need."""
    needed: set[str] = set()
    at = [key for key, node in graph.items() if node["class_type"] == "ChorusCacheStore"]
    while at:
        needed.add(key := at.pop())
        links = [value for value in graph[key]["inputs"].values() if isinstance(value, list)]
        at += [origin for origin, *_ in links if origin not in needed]
    return needed


def prompts(graph: Api) -> set[str]:
    """The prompts of the graph's Chorus nodes."""
    given = [node["inputs"]["prompt"] for node in graph.values() if node["class_type"] == "Chorus"]
    return {graph[value[0]]["inputs"]["value"] if isinstance(value, list) else value for value in given}


def asking(graph: Api, prompt: str) -> Api:
    """The graph with another prompt, wherever the old one stands."""
    old, graph = prompts(graph), copy.deepcopy(graph)
    for node in graph.values():
        node["inputs"] |= {
            name: prompt for name, value in node["inputs"].items() if isinstance(value, str) and value in old
        }
    return graph


def reports(graph: Api, item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each Cache Store said of its run."""
    stores = [key for key, node in graph.items() if node["class_type"] == "ChorusCacheStore"]
    return [item["outputs"][store]["chorus"][0] for store in stores]
