"""The host's own sampler, started from a state: the reference for what a hit should give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sampling.graphs import Graph, node

from . import odd_nodes

STEPS = 8


def small(g: Graph) -> Graph:
    """The graph at 64 × 64 pixels and 9 frames, 3 × 4 × 4 tokens, for speed."""
    g["latent"]["inputs"] |= {"width": 64, "height": 64, "length": 9}
    return g


@contextmanager
def evaluations() -> Iterator[list[tuple[float, torch.Tensor]]]:
    """(σ, x) of every evaluation of the model in the block, as the sampler asks for it."""
    import comfy.samplers

    seen: list[tuple[float, torch.Tensor]] = []
    inner = comfy.samplers.CFGGuider.predict_noise

    def watched(self, x, timestep, *args, **kwargs):
        seen.append((float(timestep.flatten()[0]), x.detach().clone()))
        return inner(self, x, timestep, *args, **kwargs)

    comfy.samplers.CFGGuider.predict_noise = watched
    try:
        yield seen
    finally:
        comfy.samplers.CFGGuider.predict_noise = inner


@contextmanager
def sampler_calls() -> Iterator[list[list[float]]]:
    """The σ of every call of a sampler in the block."""
    import comfy.samplers

    calls: list[list[float]] = []
    inner = comfy.samplers.KSAMPLER.sample

    def counted(self, model_wrap, sigmas, *args, **kwargs):
        calls.append([float(s) for s in sigmas])
        return inner(self, model_wrap, sigmas, *args, **kwargs)

    comfy.samplers.KSAMPLER.sample = counted
    try:
        yield calls
    finally:
        comfy.samplers.KSAMPLER.sample = inner


@contextmanager
def block_lengths() -> Iterator[list[int]]:
    """How many tokens every call of a block of Wan is given in the block."""
    import comfy.ldm.wan.model as wan

    lengths: list[int] = []
    inner = wan.WanAttentionBlock.forward

    def counted(self, x, *args, **kwargs):
        lengths.append(x.shape[1])
        return inner(self, x, *args, **kwargs)

    wan.WanAttentionBlock.forward = counted
    try:
        yield lengths
    finally:
        wan.WanAttentionBlock.forward = inner


def patched(g: Graph, apply: Any) -> Graph:
    """The graph on a model to which another pack's node has done `apply(patcher)`, before Chorus sees it."""
    odd_nodes.given["patch"] = apply
    g["patch"] = node("Patched", model=["unet", 0], name="patch")
    g["model"]["inputs"]["model"] = ["patch", 0]
    return g


def state_at(seen: list[tuple[float, torch.Tensor]], sigma: float) -> torch.Tensor:
    """The state that a sampler was in at σ: the last one that it evaluated there."""
    return [x for at, x in seen if abs(at - sigma) < 1e-4][-1]


def resumed(g: Graph, x: torch.Tensor, sigmas: list[float]) -> Graph:
    """The plain request, but sampled by one call of its sampler over `sigmas` from the state x at their first."""
    asked: dict[str, Any] = g["sample"]["inputs"]
    kept = {name: n for name, n in g.items() if not n["class_type"].startswith(("Chorus", "TGAA")) and name != "sample"}
    odd_nodes.given |= {"noise": x / sigmas[0], "sigmas": sigmas}
    positive, negative = asked["positive"], asked["negative"]
    return kept | {
        "noise": node("FixedNoise", name="noise"),
        "guider": node("CFGGuider", model=["model", 0], positive=positive, negative=negative, cfg=asked["cfg"]),
        "sampler": node("KSamplerSelect", sampler_name=asked["sampler_name"]),
        "sigmas": node("FixedSigmas", name="sigmas"),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
        "keep": node("SaveLatent", samples=["sample", 0], filename_prefix="resumed"),
    }
