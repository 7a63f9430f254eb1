"""Graphs of the small Wan with patches, inputs and files of many kinds, and everything in them that can be changed.

A `Case` is a graph that samples in well under a second. `changes()` lists, for each case, one change of every widget
and of some links and files above its sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Graph = dict[str, dict[str, Any]]
Link = list[Any]

RED = "a red circle moving right over a navy background"
GREEN = "a green circle moving right over a navy background"

MODEL = "small_wan_t2v.safetensors"
OTHER_MODEL = "one_weight_changed.safetensors"
MERGED_MODEL = "lora_merged.safetensors"
LORA = "small_wan_4step_lora.safetensors"
OTHER_LORA = "one_factor_changed.safetensors"
QUANTISED, QUANTISED_MERGED = "small_wan.gguf", "small_wan_merged.gguf"
PICTURE, OTHER_PICTURE = "picture.png", "other_picture.png"
LATENT, OTHER_LATENT = "start.latent", "other_start.latent"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def is_link(value: Any) -> bool:
    return isinstance(value, list)


# -- one request --------------------------------------------------------------------------------------------------


def request(
    chain: Mapping[str, dict[str, Any]] | None = None,
    *,
    prompt: str = RED,
    asked: str | Link | None = None,
    seed: int = 1,
    steps: int = 4,
    cfg: float = 3.0,
    threshold: float = 0.0,
    k1: float = 0.5,
    loader: dict[str, Any] | None = None,
    extra: Mapping[str, dict[str, Any]] | None = None,
) -> Graph:
    """Look-up, stages 1 and 3, KSampler, store.

    chain: the nodes that patch the model, in their order, without their `model` input; None: the shift alone.
    asked: the look-up's prompt where it is not the sampled one. extra: further nodes, which may replace these.
    """
    g: Graph = {
        "unet": loader or node("UNETLoader", unet_name=MODEL, weight_dtype="default"),
        "clip": node("SmallWanTextEncoderLoader"),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=prompt),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="blurry"),
        "latent": node("EmptyHunyuanLatentVideo", width=96, height=96, length=13, batch_size=1),
    }
    last = "unet"
    for name, patch in (chain or {"shift": node("ModelSamplingSD3", shift=5.0)}).items():
        model = {"model1" if "model2" in patch["inputs"] else "model": [last, 0]}
        g[name] = node(patch["class_type"], **model, **copy.deepcopy(patch["inputs"]))
        last = name
    g["lookup"] = node(
        "ChorusCacheLookup",
        model=[last, 0],
        latent=["latent", 0],
        prompt=prompt if asked is None else asked,
        threshold=threshold,
        mode="read and write",
        cache_name="",
        embedding="conditioning",
        clip=["clip", 0],
        positive=["positive", 0],
        take="keep the match's composition",
    )
    g["stage1"] = node(
        "ChorusStage1Reuse",
        model=[last, 0],
        chorus=["lookup", 0],
        k1="fixed",
        fraction=k1,
        maximum=1.0,
        start=1.0,
        method="look and join",
    )
    g["stage3"] = node("ChorusStage3Refine", model=["stage1", 0], chorus=["stage1", 1], k2="fixed", fraction=k1)
    g["sample"] = node(
        "KSampler",
        model=["stage3", 0],
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        denoise=1.0,
    )
    g["store"] = node("ChorusCacheStore", latent=["sample", 0], chorus=["stage3", 1], keep=1.0, precision="fp32")
    return {**g, **copy.deepcopy(dict(extra or {}))}


def in_cache(g: Graph, cache: str) -> Graph:
    """The same graph with its look-up in the cache of that name."""
    g = copy.deepcopy(g)
    g["lookup"]["inputs"]["cache_name"] = cache
    return g


def plain(g: Graph) -> Graph:
    """The same graph without the Chorus nodes."""
    g = copy.deepcopy(g)
    ours = {name for name, n in g.items() if n["class_type"].startswith(("Chorus", "TGAA"))}

    def before(link: Link) -> Link:
        while is_link(link) and link[0] in ours:
            link = g[link[0]]["inputs"]["model"]
        return link

    for name, n in g.items():
        if name not in ours:
            n["inputs"] = {key: before(value) if is_link(value) else value for key, value in n["inputs"].items()}
    kept = {name: n for name, n in g.items() if name not in ours}
    kept["keep"] = node("SaveLatent", samples=["sample", 0], filename_prefix="plain")
    return kept


def above_the_sampler(g: Graph) -> list[str]:
    """The sampler's node and all its ancestors."""
    found, waiting = [], ["sample"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += [value[0] for value in g[name]["inputs"].values() if is_link(value)]
    return sorted(found)


# -- changes ------------------------------------------------------------------------------------------------------

_OTHER_CHOICE: dict[str, Any] = {
    MODEL: OTHER_MODEL,
    OTHER_MODEL: MERGED_MODEL,
    LORA: OTHER_LORA,
    QUANTISED: QUANTISED_MERGED,
    PICTURE: OTHER_PICTURE,
    LATENT: OTHER_LATENT,
    "default": "fp8_e4m3fn",  # weight_dtype
    "fp8_e4m3fn": "fp8_e4m3fn_fast",
    "euler": "dpmpp_2m",
    "simple": "sgm_uniform",
    "fixed": "auto",
    "conditioning": "clip socket",
    "fp16": "fp8",  # sage attention
    "wan2.1_t2v_1.3B": "wan2.1_t2v_14B",
    "red": "green",  # channel of a mask
    "multiply": "default",
    "keys": "outputs",
    "read and write": "read only",
    "keep the match's composition": "another take",
    "look and join": "early start",
}


def other(value: Any) -> Any:
    """Another value for a widget, near the present one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return round(value * 0.8, 4) if value else 0.25
    return _OTHER_CHOICE.get(value, value.replace("red", "green") if "red" in value else f"{value} yellow")


@dataclass(frozen=True)
class Case:
    """A graph and what may be changed in it.

    values: `node.input` → the other value, where `other` gives none that fits.
    links: `node.input` → the other link.
    kept: `node.input` that no request shares latents across: weights, and inputs that lie on the MODEL.
    without_effect: changes that leave the plain result as it is.
    only: nodes, and single `node.input`s, whose widgets are changed; None: all above the sampler.
    """

    graph: Callable[[], Graph]
    values: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    without_effect: frozenset[str] = frozenset()
    only: frozenset[str] | None = None


@dataclass(frozen=True)
class Change:
    """One input of one node of a case with another value."""

    case: str
    place: str  # node.input
    value: Any

    def __str__(self) -> str:
        return f"{self.case}-{self.place}" + (f"={self.value[0]}" if is_link(self.value) else "")

    def applied(self) -> Graph:
        g = CASES[self.case].graph()
        name, _, key = self.place.partition(".")
        g[name]["inputs"][key] = self.value
        return g

    @property
    def may_hit(self) -> bool:
        return self.place not in CASES[self.case].kept

    @property
    def has_effect(self) -> bool:
        return self.place not in CASES[self.case].without_effect


def changes() -> Iterator[Change]:
    for name, case in CASES.items():
        g = case.graph()
        for n in above_the_sampler(g):
            for key, value in g[n]["inputs"].items():
                place = f"{n}.{key}"
                wanted = case.only is None or n in case.only or place in case.only
                if wanted and not is_link(value) and place != "lookup.cache_name":
                    yield Change(name, place, case.values.get(place, other(value)))
        for place, link in case.links.items():
            yield Change(name, place, link)


# -- the cases ----------------------------------------------------------------------------------------------------

SHIFT = node("ModelSamplingSD3", shift=5.0)
OURS = frozenset({"lookup.threshold", "lookup.mode", "lookup.embedding", "lookup.prompt", "lookup.take"})
STAGES = frozenset(
    {f"stage1.{name}" for name in ("k1", "fraction", "maximum", "start", "method")} | {"stage3.k2", "stage3.fraction"}
)


def _sampler() -> Case:
    return Case(
        lambda: request({"shift": SHIFT, "lora": node("LoraLoaderModelOnly", lora_name=LORA, strength_model=0.6)}),
        values={"latent.width": 112, "latent.height": 112, "latent.length": 17, "latent.batch_size": 2},
        links={
            "sample.positive": ["negative", 0],
            "sample.negative": ["positive", 0],
            "sample.model": ["lora", 0],
            "lora.model": ["unet", 0],
            "stage1.model": ["unet", 0],
            "lookup.positive": ["negative", 0],
        },
        kept=frozenset(
            {
                "unet.unet_name",
                "unet.weight_dtype",
                "lora.lora_name",
                "lora.strength_model",
                "latent.width",
                "latent.height",
                "latent.length",
                "latent.batch_size",
                "stage1.model",
            }
        ),
        without_effect=OURS | STAGES | {"lookup.positive", "sample.model"},
    )


def _guidance() -> Case:
    slg = {"double_layers": "1", "single_layers": "", "scale": 2.0, "start_percent": 0.0, "end_percent": 1.0}
    return Case(
        lambda: request(
            {
                "shift": SHIFT,
                "apg": node("APG", eta=0.9, norm_threshold=5.0, momentum=0.3),
                "fresca": node("FreSca", scale_low=1.1, scale_high=1.25, freq_cutoff=3),
                "slg": node("SkipLayerGuidanceDiT", **slg, rescaling_scale=0.5),
            }
        ),
        values={"slg.double_layers": "2", "slg.start_percent": 0.3, "slg.end_percent": 0.4},
        links={"fresca.model": ["shift", 0], "slg.model": ["apg", 0], "apg.model": ["unet", 0]},
        without_effect=frozenset({"slg.single_layers"}),
        only=frozenset({"apg", "fresca", "slg"}),
    )


def _normalised() -> Case:
    return Case(
        lambda: request(
            {
                "shift": SHIFT,
                "zero_star": node("CFGZeroStar"),
                "rescale": node("RescaleCFG", multiplier=0.7),
                "norm": node("CFGNorm", strength=0.9, pre_cfg=False),
                "tcfg": node("TCFG"),
                "eps": node("Epsilon Scaling", scaling_factor=1.1),
                "easy": node("EasyCache", reuse_threshold=0.5, start_percent=0.1, end_percent=0.9, verbose=False),
            },
            steps=6,
        ),
        values={"easy.reuse_threshold": 0.01, "easy.start_percent": 0.7, "easy.end_percent": 0.3},
        links={"rescale.model": ["shift", 0], "tcfg.model": ["zero_star", 0], "easy.model": ["norm", 0]},
        without_effect=frozenset({"easy.verbose"}),
        only=frozenset({"zero_star", "rescale", "norm", "tcfg", "eps", "easy"}),
    )


def _kjnodes() -> Case:
    return Case(
        lambda: request(
            {
                "shift": SHIFT,
                "nag": node("WanVideoNAG", conditioning=["nag_text", 0], nag_scale=8.0, nag_alpha=0.5, nag_tau=2.5),
                "enhance": node("WanVideoEnhanceAVideoKJ", latent=["latent", 0], weight=4.0),
                "sage": node("PathchSageAttentionKJ", sage_attention="fp16"),
            },
            cfg=1.0,
            extra={"nag_text": node("CLIPTextEncode", clip=["clip", 0], text="a red square")},
        ),
        links={"nag.conditioning": ["negative", 0], "enhance.model": ["shift", 0]},
        kept=frozenset({"nag_text.text", "nag.conditioning"}),
        only=frozenset({"nag", "nag_text", "enhance", "sage"}),
    )


def _teacache() -> Case:
    tea = {"model_type": "wan2.1_t2v_1.3B", "rel_l1_thresh": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    return Case(
        lambda: request({"shift": SHIFT, "tea": node("TeaCache", **tea)}, steps=6),
        values={"tea.rel_l1_thresh": 0.01, "tea.start_percent": 0.6, "tea.end_percent": 0.2},
        links={"sample.model": ["tea", 0]},
        without_effect=frozenset({"sample.model"}),
        only=frozenset({"tea"}),
    )


def _quantised() -> Case:
    return Case(
        lambda: request(
            {"shift": SHIFT, "lora": node("LoraLoaderModelOnly", lora_name=LORA, strength_model=0.6)},
            loader=node("UnetLoaderGGUF", unet_name=QUANTISED),
        ),
        links={"lora.model": ["unet", 0]},
        kept=frozenset({"unet.unet_name", "lora.lora_name", "lora.strength_model"}),
        only=frozenset({"unet", "lora"}),
    )


def _speech() -> Case:
    return Case(
        lambda: request(
            {
                "shift": SHIFT,
                "talk": node(
                    "SpeechToVideo",
                    model_patch=["speech_network", 0],
                    audio_encoder_output=["speech", 0],
                    audio_scale=0.5,
                    previous_frames=["previous", 0],
                ),
            },
            extra={
                "speech_network": node("OddModelPatchLoader", model=["unet", 0], columns=32, seed=0),
                "speech": node("SpeechFeatures", seed=0, frames=4),
                "other_speech": node("SpeechFeatures", seed=7, frames=4),
                "previous": node("LoadLatent", latent=LATENT),
            },
        ),
        links={"talk.audio_encoder_output": ["other_speech", 0], "talk.model": ["unet", 0]},
        kept=frozenset({"speech_network.seed", "speech.seed", "previous.latent", "talk.audio_encoder_output"}),
        without_effect=frozenset({"speech.frames"}),
        only=frozenset({"talk", "speech_network.seed", "speech", "previous"}),
    )


def _control() -> Case:
    return Case(
        lambda: request(
            {
                "shift": SHIFT,
                "control": node("ControlPicture", model_patch=["network", 0], image=["picture", 0], strength=0.7),
            },
            extra={
                "network": node("OddModelPatchLoader", model=["unet", 0], columns=3, seed=0),
                "picture": node("LoadImage", image=PICTURE),
                "other_picture": node("LoadImage", image=OTHER_PICTURE),
            },
        ),
        links={"control.image": ["other_picture", 0]},
        kept=frozenset({"network.seed", "picture.image", "control.image"}),
        only=frozenset({"control", "network.seed", "picture"}),
    )


def _conditioning() -> Case:
    return Case(
        lambda: request(
            extra={
                "background": node("CLIPTextEncode", clip=["clip", 0], text="a small red square on the left"),
                "mask_file": node("LoadImageMask", image=PICTURE, channel="red"),
                "masked": node(
                    "ConditioningSetMask",
                    conditioning=["positive", 0],
                    mask=["mask_file", 0],
                    strength=0.9,
                    set_cond_area="default",
                ),
                "ranged": node("ConditioningSetTimestepRange", conditioning=["background", 0], start=0.0, end=0.5),
                "both": node("ConditioningCombine", conditioning_1=["masked", 0], conditioning_2=["ranged", 0]),
                "sample": node(
                    "KSampler",
                    model=["stage3", 0],
                    seed=1,
                    steps=4,
                    cfg=3.0,
                    sampler_name="euler",
                    scheduler="simple",
                    positive=["both", 0],
                    negative=["negative", 0],
                    latent_image=["latent", 0],
                    denoise=1.0,
                ),
            }
        ),
        values={"ranged.start": 0.3},
        links={"masked.conditioning": ["background", 0], "ranged.conditioning": ["positive", 0]},
        kept=frozenset({"mask_file.image", "mask_file.channel"}),
        # The host itself fails with "mask bounds" on a video.
        only=frozenset({"background", "mask_file", "masked.strength", "ranged"}),
    )


def _start_latent() -> Case:
    return Case(
        lambda: request(
            extra={
                "latent": node("LoadLatent", latent=LATENT),
                "sample": node(
                    "KSampler",
                    model=["stage3", 0],
                    seed=1,
                    steps=4,
                    cfg=3.0,
                    sampler_name="euler",
                    scheduler="simple",
                    positive=["positive", 0],
                    negative=["negative", 0],
                    latent_image=["latent", 0],
                    denoise=0.8,
                ),
            }
        ),
        kept=frozenset({"latent.latent"}),
        only=frozenset({"latent", "sample", "positive", "negative"}),
    )


def _parts() -> Case:
    """The sampler in parts, as SamplerCustomAdvanced has them."""
    return Case(
        lambda: request(
            extra={
                "noise": node("RandomNoise", noise_seed=1),
                "guider": node(
                    "CFGGuider",
                    model=["stage3", 0],
                    positive=["positive", 0],
                    negative=["negative", 0],
                    cfg=3.0,
                ),
                "solver": node("SamplerEulerAncestral", eta=0.8, s_noise=0.9),
                "sigmas": node("BasicScheduler", model=["stage3", 0], scheduler="simple", steps=4, denoise=1.0),
                "sample": node(
                    "SamplerCustomAdvanced",
                    noise=["noise", 0],
                    guider=["guider", 0],
                    sampler=["solver", 0],
                    sigmas=["sigmas", 0],
                    latent_image=["latent", 0],
                ),
            }
        ),
        links={"guider.negative": ["positive", 0], "sigmas.model": ["unet", 0]},
        only=frozenset({"noise", "guider", "solver", "sigmas"}),
    )


def _rounded() -> Case:
    return Case(
        lambda: request(
            {"shift": SHIFT, "lora": node("LoraLoaderModelOnly", lora_name=LORA, strength_model=0.6)},
            loader=node("UNETLoader", unet_name=MODEL, weight_dtype="fp8_e4m3fn"),
        ),
        kept=frozenset({"unet.unet_name", "unet.weight_dtype", "lora.lora_name", "lora.strength_model"}),
        without_effect=frozenset({"unet.weight_dtype"}),  # on a CPU both sample alike
        only=frozenset({"unet", "lora"}),
    )


def _windows() -> Case:
    windows = {"context_length": 9, "context_overlap": 4, "context_schedule": "standard_uniform", "context_stride": 1}
    return Case(
        lambda: request(
            {
                "shift": SHIFT,
                "windows": node(
                    "WanContextWindowsManual",
                    **windows,
                    closed_loop=False,
                    fuse_method="pyramid",
                    freenoise=False,
                    retain_first_frame=False,
                    split_conds_to_windows=False,
                ),
            },
            extra={"latent": node("EmptyHunyuanLatentVideo", width=96, height=96, length=21, batch_size=1)},
        ),
        values={
            "windows.context_length": 13,
            "windows.context_overlap": 8,
            "windows.context_schedule": "standard_static",
            "windows.fuse_method": "flat",
        },
        without_effect=frozenset(
            {f"windows.{key}" for key in ("closed_loop", "retain_first_frame", "split_conds_to_windows")}
        ),
        only=frozenset({"windows"}),
    )


def _merge() -> Case:
    return Case(
        lambda: request(
            {"shift": SHIFT, "merge": node("ModelMergeSimple", model2=["second", 0], ratio=0.5)},
            extra={"second": node("UNETLoader", unet_name=OTHER_MODEL, weight_dtype="default")},
        ),
        kept=frozenset({"merge.ratio", "second.unet_name", "second.weight_dtype"}),
        only=frozenset({"merge", "second"}),
    )


def _two_files() -> Case:
    return Case(
        lambda: request(
            loader=node("DiffusionModelLoaderKJ", model_name=MODEL, extra_state_dict=OTHER_MODEL),
        ),
        values={"unet.model_name": MERGED_MODEL, "unet.extra_state_dict": MODEL},
        kept=frozenset({"unet.model_name", "unet.extra_state_dict"}),
        only=frozenset({"unet"}),
    )


ODD_WAYS = (
    "weight wrapper",
    "module attribute",
    "non-persistent buffer",
    "slots",
    "no dict",
    "numpy scalar",
    "one name",
    "deep",
    "logger",
    "binds the network",
    "counts its calls",
    "model function wrapper",
    "diffusion model wrapper",
    "block replacement",
    "callback",
    "injection",
)


_LIKE_WEIGHTS = ("weight wrapper", "module attribute", "non-persistent buffer", "injection")


def _odd(way: str) -> Case:
    return Case(
        lambda: request({"shift": SHIFT, "odd": node("OddPatch", way=way, gain=1.05)}, cfg=1.0),
        values={"odd.gain": 1.2},
        kept=frozenset({"odd.gain"} if way in _LIKE_WEIGHTS else ()),
        only=frozenset({"odd.gain"}),
    )


CASES: dict[str, Case] = {
    "sampler": _sampler(),
    "guidance": _guidance(),
    "normalised": _normalised(),
    "kjnodes": _kjnodes(),
    "teacache": _teacache(),
    "quantised": _quantised(),
    "speech": _speech(),
    "control": _control(),
    "conditioning": _conditioning(),
    "start latent": _start_latent(),
    "parts": _parts(),
    "rounded": _rounded(),
    "windows": _windows(),
    "merge": _merge(),
    "two files": _two_files(),
    **{way: _odd(way) for way in ODD_WAYS},
}
