"""The benches against any ComfyUI server that has the pack: real Wan models on somebody's GPU."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tools.client import ComfyClient
from tools.demo_graph import Graph, only

from .systems import TEMPLATES, Request, distilled

_FRAMES = "bench frames"


class Server:
    """A ComfyUI server as a host of the bench. Frames come back as the pictures of a PreviewImage node."""

    def __init__(self, url: str, timeout: float = 7200.0):
        self.client = ComfyClient(url)
        self.timeout = timeout

    def run(self, made: Graph) -> tuple[np.ndarray, dict | None, float]:
        """(frames [T, H, W, 3] in [0, 1], the store node's report if it ran, seconds with the transfer)."""
        preview = {"class_type": "PreviewImage", "inputs": {"images": [only(made, "VAEDecode"), 0]}}
        began = time.perf_counter()
        outputs = self.client.queue({**made, _FRAMES: preview}, timeout=self.timeout)["outputs"]
        seconds = time.perf_counter() - began
        pictures = [Image.open(io.BytesIO(self.client.view(file))) for file in outputs[_FRAMES]["images"]]
        frames = np.stack([np.asarray(p.convert("RGB"), np.float32) / 255 for p in pictures])
        shown = [o["chorus"][0] for o in outputs.values() if "chorus" in o]
        return frames, shown[0] if shown else None, seconds

    def forget_caches(self) -> None:
        """Does nothing: the server keeps its caches."""

    def close(self) -> None:
        """Does nothing: the server keeps running."""


@dataclass(frozen=True)
class RealWan:
    """Wan with the template's nodes; empty names keep the template's."""

    unet: str = ""
    clip: str = ""
    vae: str = ""
    lora: str = ""
    width: int = 832
    height: int = 480
    length: int = 81
    clip_model: str = "ViT-B-32"  # of the CLIP score
    clip_weights: str = "laion2b_s34b_b79k"  # a tag of open_clip, or a file

    side = 48
    files = distillation = ()  # a server says nothing of its models
    templates = TEMPLATES

    def load(self, graph: Graph, request: Request) -> None:
        """Put the model names and the size in the graph."""
        named = [("UNETLoader", "unet_name", self.unet), ("CLIPLoader", "clip_name", self.clip)]
        named += [("VAELoader", "vae_name", self.vae)]
        if distilled(request):
            named.append(("LoraLoaderModelOnly", "lora_name", self.lora))
        for kind, name, value in named:
            if value:
                graph[only(graph, kind)]["inputs"][name] = value
        latent = graph[only(graph, "EmptyHunyuanLatentVideo")]["inputs"]
        latent |= {"width": self.width, "height": self.height, "length": self.length, "batch_size": 1}

    def measured(self, frames: np.ndarray, request: Request) -> dict:
        """The CLIP score of a video."""
        return {"alignment": clip_score(frames, request.prompt, self.clip_model, self.clip_weights)}


@cache
def _clip(model: str, weights: str) -> tuple[Any, Any, Any]:
    import open_clip

    made, _, transform = open_clip.create_model_and_transforms(model, pretrained=weights or None)
    return made.eval(), transform, open_clip.get_tokenizer(model)


def clip_score(frames: np.ndarray, prompt: str, model: str, weights: str, most: int = 16) -> float:
    """100 × cosine of text and picture, mean over at most `most` frames of [T, H, W, 3]; by open_clip."""
    import torch

    network, transform, tokenizer = _clip(model, weights)
    chosen = frames[:: max(1, len(frames) // most)][:most]
    with torch.inference_mode():
        pictures = torch.stack([transform(Image.fromarray((f * 255).round().astype(np.uint8))) for f in chosen])
        seen = torch.nn.functional.normalize(network.encode_image(pictures), dim=-1)
        said = torch.nn.functional.normalize(network.encode_text(tokenizer([prompt])), dim=-1)
    return float(100 * (seen @ said.T).mean())


# (source, target): one or two words changed, as people do between two runs.
PROMPTS: Sequence[tuple[str, str]] = tuple(
    (prompt.format(before), prompt.format(after))
    for prompt, before, after in (
        ("a {} runs through fresh snow at the edge of a pine forest", "red fox", "grey wolf"),
        ("a woman in a {} raincoat walks down a rainy street at night", "yellow", "blue"),
        ("a wooden sailing boat on a {} lake at sunrise", "calm", "stormy"),
        ("a {} sleeps on a green sofa next to a window", "cat", "dog"),
        ("a vintage car drives along a coastal road in {}", "summer", "winter"),
        ("close-up of {} poured into a white cup on a wooden table", "coffee", "tea"),
        ("an astronaut {} on a red desert planet, wide shot", "walks", "dances"),
        ("a {} hovers at a pink flower in a garden", "hummingbird", "butterfly"),
    )
)
