"""Sampling through the in-process host: run a graph, get its report and its latent."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from .graphs import Graph


@dataclass(frozen=True)
class Result:
    """report: what ChorusCacheStore shows, None without the node; latent: [B, C, T, H, W] of the sampler."""

    report: dict[str, Any] | None
    latent: torch.Tensor
    outputs: dict[str, Any]

    @property
    def summary(self) -> str:
        return self.outputs["store"]["text"][0]


@pytest.fixture
def cache() -> str:
    """The name of a cache that nobody else uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def run(comfy_host):
    """`run(graph)`: every node runs anew, as after a restart of ComfyUI."""

    def execute(g: Graph, *, sampler: str = "sample") -> Result:
        comfy_host.forget_outputs()
        history = comfy_host.execute(g)
        shown = history["outputs"].get("store", {}).get("chorus")
        return Result(shown[0] if shown else None, comfy_host.output(sampler)[0][0]["samples"], history["outputs"])

    return execute


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative root mean square difference."""
    return float((a - b).norm() / b.norm())
