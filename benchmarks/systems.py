"""What is sampled and how: a request, a system, and the graph that the host gets for them.

The graphs are the templates that users open, with the widgets set; nothing is sampled past the nodes.
"""

from __future__ import annotations

import copy
import statistics
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from bench_wan import judge as bench_judge
from bench_wan import sampling
from bench_wan import scenes as bench_scenes
from bench_wan.captions import Caption
from bench_wan.export import FROM_IMAGE_FILE, LORA_FILE, MODEL_FILE
from bench_wan.sampling import DISTILLED_STEPS
from chorus.reuse.course import CourseRule
from small_wan import judge, scenes
from tools import demo_graph
from tools.demo_graph import Graph, only, write_text

WORKFLOWS = demo_graph.CHECKOUT / "workflows" / "api"
BOUNDARY = 0.9  # σ from which on, downwards, Wan 2.2's low-noise expert samples image to video
TEMPLATES = ("wan21_t2v_chorus", "wan21_t2v_4steps_chorus")
_SEEDS = {"KSampler": "seed", "KSamplerAdvanced": "noise_seed"}  # how samplers name it
_SHOWING = {"CreateVideo", "SaveVideo", "PreviewImage", "PreviewAny"}  # of no use without eyes


@dataclass(frozen=True)
class Image:
    """The first frame of the scene that `bench_wan.scenes` lays out for a caption and a seed."""

    caption: Caption
    seed: int


@dataclass(frozen=True)
class Request:
    """One prompt, seed and schedule. Four steps use the distilled LoRA without CFG, as its template does."""

    prompt: str
    seed: int
    steps: int = 20
    size: int = 0  # pixels a side, 0: the subject's own
    caption: scenes.Caption | Caption | None = None  # what the prompt names, where a judge can read it back
    full_model: bool = False  # few steps of the model that was not distilled
    image: Image | None = None  # what the video begins with, for a model that is given one


@dataclass(frozen=True)
class System:
    """How a request is sampled. K1 and K2 in steps; None: as calibrated."""

    name: str
    reads: bool = True
    k1: int | None = None
    k2: int | None = None
    start: float | None = None  # where the source's state is taken, as a fraction; 1.0: at K1 itself
    selective: bool = True
    strength: float | None = None  # of TGAA, None: the node's default
    where: str | None = None
    fade: float | None = None
    edit_dilation: int | None = None
    visible_dilation: int | None = None
    source_noise: bool = False  # take the source's noise too, which is its state as it was
    calibrated_threshold: bool = False  # otherwise every source counts as a hit
    precision: str | None = None  # in which the source was kept, None: the node's default
    method: str | None = None  # of stage 1, None: the node's default
    easycache: float | None = None  # reuse threshold of the host's own EasyCache
    rule: CourseRule | None = None  # how look and join goes on after the look, None: as calibrated
    highest: float | None = None  # upper bound of a look's threshold, in channel spreads, None: as calibrated


COLD = System("cold", reads=False)
CHORUS = System("Chorus")
EARLY_START = System("early start", selective=False, strength=0.0, method="early start")


class Subject(Protocol):
    """The model under test: fills the template's loaders, and tells how well a video follows its prompt."""

    side: int  # pixels, at which its videos are measured
    files: tuple[str, ...]  # of the checkout, which its samples depend on beside ComfyUI and Chorus
    distillation: tuple[str, ...]  # those that only samples of few steps depend on, too
    templates: tuple[str, str]  # of workflows/api, without and with a distillation LoRA

    def load(self, graph: Graph, request: Request) -> None: ...

    def measured(self, frames: np.ndarray, request: Request) -> dict: ...


class SmallWan:
    """The small Wan of the tests."""

    name = "small Wan"
    size = demo_graph.SIDE  # pixels a side that are asked for: the host's 8 a cell of the latent
    side = 48
    files: tuple[str, ...] = (
        "tests/small_wan/weights/*",
        *(f"tests/small_wan/{name}.py" for name in ("codec", "export", "judge", "nodes", "scenes", "text_encoder")),
    )
    distillation: tuple[str, ...] = ()
    templates = TEMPLATES

    def load(self, graph: Graph, request: Request) -> None:
        """Put the small Wan's loaders, its size and its CFG in the graph."""
        graph[only(graph, "UNETLoader")]["inputs"] |= {"unet_name": demo_graph.MODEL, "weight_dtype": "default"}
        for kind, loader in (("CLIPLoader", "SmallWanTextEncoderLoader"), ("VAELoader", "SmallWanVAELoader")):
            graph[only(graph, kind)] = {"class_type": loader, "inputs": {}}
        side = request.size or self.size
        latent = graph[only(graph, "EmptyHunyuanLatentVideo")]["inputs"]
        latent |= {"width": side, "height": side, "length": demo_graph.LENGTH, "batch_size": 1}
        if distilled(request):
            lora = graph[only(graph, "LoraLoaderModelOnly")]["inputs"]
            lora["lora_name"] = "small_wan_4step_lora.safetensors"
        else:
            graph[only(graph, "KSampler")]["inputs"]["cfg"] = demo_graph.CFG
            negative = graph[only(graph, "KSampler")]["inputs"]["negative"][0]
            graph[negative]["inputs"]["text"] = ""

    def measured(self, frames: np.ndarray, request: Request) -> dict:
        """Share of the prompt's attributes that the judge reads back, which, and the error of the named objects.

        The error is that of `judge.fidelity`: it still tells where every attribute is read back.
        """
        if request.caption is None:
            return {}
        right = {name: bool(hit) for name, hit in judge.correct(frames, request.caption).items()}
        error = judge.fidelity(frames, request.caption)
        return {"alignment": statistics.mean(right.values()), "right": right, "error": error}


class BenchWan(SmallWan):
    """The small Wan of the bench's scenes, on a finer grid."""

    name = "bench Wan"
    size = 192
    side = 96
    length = 17  # frames that are asked for: the host's four a frame of the latent
    files = (
        *SmallWan.files,
        f"tests/bench_wan/weights/{MODEL_FILE.name}",
        *(f"tests/bench_wan/{name}.py" for name in ("captions", "judge", "scenes")),
    )
    distillation = (f"tests/bench_wan/weights/{LORA_FILE.name}",)

    def load(self, graph: Graph, request: Request) -> None:
        """Put its loaders, its size and its CFG in the graph."""
        super().load(graph, request)
        graph[only(graph, "UNETLoader")]["inputs"]["unet_name"] = "bench_wan_t2v.safetensors"
        graph[only(graph, "SmallWanVAELoader")]["inputs"]["model"] = "bench_wan_t2v"
        graph[only(graph, "EmptyHunyuanLatentVideo")]["inputs"]["length"] = self.length
        if distilled(request):
            graph[only(graph, "LoraLoaderModelOnly")]["inputs"]["lora_name"] = "bench_wan_4step_lora.safetensors"

    def measured(self, frames: np.ndarray, request: Request) -> dict:
        """What the judge reads back, how often an object is there twice, and the error of the named objects."""
        caption = request.caption
        assert isinstance(caption, Caption)
        right = {name: bool(hit) for name, hit in bench_judge.correct(frames, caption).items()}
        return {
            "alignment": statistics.mean(right.values()),
            "right": right,
            "error": bench_judge.fidelity(frames, caption),
            "copies": bench_judge.copies(frames, caption),
        }


class BenchWanFromImage(BenchWan):
    """The small Wan that is given the first frame, through the host's node for that."""

    name = "bench Wan from an image"
    files = (*BenchWan.files, f"tests/bench_wan/weights/{FROM_IMAGE_FILE.name}")

    def load(self, graph: Graph, request: Request) -> None:
        """Put its loaders, its size and CFG, the image and the node that gives it to the model in the graph."""
        super().load(graph, request)
        graph[only(graph, "UNETLoader")]["inputs"]["unet_name"] = FROM_IMAGE_FILE.name
        vae, latent = only(graph, "SmallWanVAELoader"), only(graph, "EmptyHunyuanLatentVideo")
        graph[vae]["inputs"]["model"] = FROM_IMAGE_FILE.stem
        sampler, lookup = graph[only(graph, "KSampler")]["inputs"], graph[only(graph, "ChorusCacheLookup")]["inputs"]
        assert request.image is not None
        graph["image"] = {"class_type": "LoadImage", "inputs": {"image": _written(request.image)}}
        given = {name: sampler[name] for name in ("positive", "negative")}
        given |= {"vae": [vae, 0], "start_image": ["image", 0], **graph[latent]["inputs"]}
        graph[latent] = {"class_type": "WanImageToVideo", "inputs": given}
        sampler |= {"positive": [latent, 0], "negative": [latent, 1], "latent_image": [latent, 2]}
        lookup |= {"positive": [latent, 0], "latent": [latent, 2]}


class BenchWanTwoExperts(BenchWanFromImage):
    """The same in a graph of two experts with four steps: above BOUNDARY the model from an image samples, below it the
    one from text, both under the LoRA, with a sampler each.
    """

    name = "bench Wan of two experts"
    files = (*BenchWanFromImage.files, "tests/bench_wan/sampling.py")
    templates = ("", "image_to_video_wan22_4steps")

    def load(self, graph: Graph, request: Request) -> None:
        """Fill the template's loaders and samplers, its size and its image."""
        assert distilled(request) and request.image is not None
        for expert, file in (("high_noise", FROM_IMAGE_FILE), ("low_noise", MODEL_FILE)):
            graph[_with_file(graph, expert, "unet_name")]["inputs"]["unet_name"] = file.name
            graph[_with_file(graph, expert, "lora_name")]["inputs"]["lora_name"] = LORA_FILE.name
        samplers = [node["inputs"] for node in graph.values() if node["class_type"] == "KSamplerAdvanced"]
        first, second = sorted(samplers, key=lambda inputs: inputs["start_at_step"])
        boundary = sum(sigma >= BOUNDARY for sigma in sampling.sigmas(request.steps)[:-1].tolist())
        first["end_at_step"] = second["start_at_step"] = boundary
        graph[only(graph, "CLIPLoader")] = {"class_type": "SmallWanTextEncoderLoader", "inputs": {}}
        graph[only(graph, "VAELoader")] = {"class_type": "SmallWanVAELoader", "inputs": {"model": FROM_IMAGE_FILE.stem}}
        graph[only(graph, "LoadImage")]["inputs"]["image"] = _written(request.image)
        size = {"width": self.size, "height": self.size, "length": self.length}
        graph[only(graph, "WanImageToVideo")]["inputs"] |= size


def _with_file(graph: Graph, expert: str, name: str) -> str:
    """The node that loads an expert's file, by the name of its input."""
    (key,) = (key for key, node in graph.items() if expert in str(node["inputs"].get(name, "")))
    return key


def _written(image: Image) -> str:
    """The name of the image's file in the host's input folder, written when it is first needed."""
    import folder_paths
    from PIL import Image as Picture

    name = f"scene {zlib.crc32(image.caption.text.encode()):08x} {image.seed}.png"
    file = Path(folder_paths.get_input_directory()) / name
    if not file.is_file():
        video, _ = bench_scenes.draw(bench_scenes.lay_out([image.caption], image.seed))
        frame = (255 * video[0, 0]).round().byte().numpy()
        enlarged = frame.repeat(BenchWan.size // len(frame), 0).repeat(BenchWan.size // len(frame), 1)
        Picture.fromarray(enlarged).save(file)
    return name


def distilled(request: Request) -> bool:
    """Whether the request is sampled with the distillation LoRA."""
    return request.steps <= DISTILLED_STEPS and not request.full_model


def graph(subject: Subject, request: Request, system: System, *, cache: str | None, mode: str) -> Graph:
    """The API graph of a request. cache: its name, None switches Chorus off; mode: the look-up's."""
    made = copy.deepcopy(demo_graph.load_template(WORKFLOWS / f"{subject.templates[distilled(request)]}.json"))
    made = {k: n for k, n in made.items() if n["class_type"] not in _SHOWING}
    subject.load(made, request)
    for node in made.values():
        if (seed := _SEEDS.get(node["class_type"])) is not None:
            node["inputs"] |= {seed: request.seed, "steps": request.steps}
    (lookup,) = (key for key, node in made.items() if node["class_type"] in ("ChorusCacheLookup", "Chorus"))
    write_text(made, lookup, "prompt", request.prompt)
    made[lookup]["inputs"] |= {
        "embedding": "conditioning",
        "mode": "off" if cache is None else mode,
        "cache_name": cache or "unused",
        "threshold": 0.0 if system.calibrated_threshold else 0.01,
    }
    if made[lookup]["class_type"] == "Chorus":
        assert replace(system, name="", reads=True, precision=None) == System(""), "the one node has no such settings"
    else:
        _set_stages(made, request, system)
    if system.precision is not None:
        made[only(made, "ChorusCacheStore")]["inputs"]["precision"] = system.precision
    if system.easycache is not None:
        sampler = made[only(made, "KSampler")]["inputs"]
        made["easycache"] = {
            "class_type": "EasyCache",
            "inputs": {
                "model": sampler["model"],
                "reuse_threshold": system.easycache,
                "start_percent": 0.15,
                "end_percent": 0.95,
                "verbose": False,
            },
        }
        sampler["model"] = ["easycache", 0]
    return made


def _fraction(steps: int, of: int) -> float:
    """A share of the schedule that falls just behind step `steps`, so that rounding cannot fall before it."""
    return min(1.0, (steps + 0.02) / of)


def _set_stages(made: Graph, request: Request, system: System) -> None:
    lookup, masks, tgaa = (only(made, k) for k in ("ChorusCacheLookup", "ChorusSRDMask", "TGAAPatch"))
    stage1, stage3 = only(made, "ChorusStage1Reuse"), only(made, "ChorusStage3Refine")
    if system.k1 is not None:
        made[stage1]["inputs"] |= {"k1": "fixed", "fraction": _fraction(system.k1, request.steps), "maximum": 1.0}
    if system.k2 is not None:
        made[stage3]["inputs"] |= {"k2": "fixed", "fraction": _fraction(system.k2, request.steps)}
    if system.start is not None:
        made[stage1]["inputs"]["start"] = system.start
    if system.method is not None:
        made[stage1]["inputs"]["method"] = system.method
    if system.method == "early start":  # without a look, attention makes the masks
        made[masks]["inputs"] |= {"masks_from": "attention", "edit_dilation": 1, "visible_dilation": 1}
    for node, name, value in (
        (masks, "edit_dilation", system.edit_dilation),
        (masks, "visible_dilation", system.visible_dilation),
        (tgaa, "strength", system.strength),
        (tgaa, "where", system.where),
        (tgaa, "fade", system.fade),
    ):
        if value is not None:
            made[node]["inputs"][name] = value
    if not system.selective:
        made[stage1]["inputs"]["chorus"] = [lookup, 0]
        del made[masks]
    if system.strength == 0.0:
        made[stage3]["inputs"] |= {"model": [stage1, 0], "chorus": [stage1, 1]}
        del made[tgaa]
