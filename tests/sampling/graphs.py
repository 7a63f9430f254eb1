"""Graphs of the small Wan in API form, for tests that sample through the real host."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]

RED = "a red circle moving right over a navy background"
GREEN = "a green circle moving right over a navy background"
UNLIKE = "a video of a pink cross moving up and a small cyan square on the left in front of a olive background"


def graph(
    prompt: str = RED,
    *,
    cache: str,
    seed: int = 1,
    steps: int = 8,
    cfg: float = 1.0,
    sampler: str = "euler",
    k1: float | None = None,
    k2: float | None = None,
    start: float = 1.0,
    method: str = "look and join",
    masks: bool = False,
    tgaa: bool = False,
    mode: str = "read and write",
    precision: str = "fp32",
    batch: int = 1,
    width: int = 96,
) -> Graph:
    """Look-up, the wanted stages, KSampler and store; k1, k2: fractions, None for auto.

    start: 1 is an early start from K1's own state; 0 with the default method begins with a look.
    """
    g: Graph = {
        "unet": node("UNETLoader", unet_name="small_wan_t2v.safetensors", weight_dtype="default"),
        "clip": node("SmallWanTextEncoderLoader"),
        "model": node("ModelSamplingSD3", model=["unet", 0], shift=5.0),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=prompt),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "latent": node("EmptyHunyuanLatentVideo", width=width, height=96, length=13, batch_size=batch),
        "lookup": node(
            "ChorusCacheLookup",
            model=["model", 0],
            latent=["latent", 0],
            prompt=prompt,
            threshold=0.0,
            mode=mode,
            cache_name=cache,
            embedding="conditioning",
            clip=["clip", 0],
            positive=["positive", 0],
        ),
        "stage1": node(
            "ChorusStage1Reuse",
            model=["model", 0],
            chorus=["lookup", 0],
            k1="auto" if k1 is None else "fixed",
            fraction=k1 or 0.0,
            maximum=1.0,
            start=start,
            method=method,
        ),
        "stage3": node(
            "ChorusStage3Refine",
            model=["stage1", 0],
            chorus=["stage1", 1],
            k2="auto" if k2 is None else "fixed",
            fraction=k2 or 0.0,
        ),
        "sample": node(
            "KSampler",
            model=["stage3", 0],
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler,
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
        ),
        "store": node("ChorusCacheStore", latent=["sample", 0], chorus=["stage3", 1], keep=1.0, precision=precision),
    }
    if masks:
        g["srd"] = node(
            "ChorusSRDMask", chorus=["lookup", 0], masks_from="attention", edit_dilation=1, visible_dilation=1
        )
        g["stage1"]["inputs"]["chorus"] = ["srd", 0]
    if tgaa:
        g["tgaa"] = node(
            "TGAAPatch", model=["stage1", 0], chorus=["stage1", 1], strength=1.0, where="outputs", fade=0.5
        )
        g["stage3"]["inputs"] |= {"model": ["tgaa", 0], "chorus": ["tgaa", 1]}
    return g


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def plain(g: Graph) -> Graph:
    """The same request without any Chorus node."""
    kept = {name: n for name, n in g.items() if not n["class_type"].startswith(("Chorus", "TGAA"))}
    kept["sample"] = node(**{"class_type": "KSampler"}, **{**kept["sample"]["inputs"], "model": ["model", 0]})
    kept["keep"] = node("SaveLatent", samples=["sample", 0], filename_prefix="plain")
    return kept
