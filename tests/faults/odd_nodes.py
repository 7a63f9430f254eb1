"""Test-only nodes: states and patches that are handed to the host's own nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

given: dict[str, Any] = {}
"""What these nodes take by name: a test puts it here before it runs a graph."""


class _Noise:
    seed = 0

    def __init__(self, noise: torch.Tensor):
        self.noise = noise

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        return self.noise


class FixedNoise:
    """The noise `given[name]`, in model space, for SamplerCustomAdvanced."""

    RETURN_TYPES = ("NOISE",)
    FUNCTION = "make"
    CATEGORY = "testing/faults"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING",)}}

    def make(self, name: str) -> tuple[_Noise]:
        return (_Noise(given[name]),)


class FixedSigmas:
    """The σ in `given[name]`, [N + 1]."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"
    CATEGORY = "testing/faults"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING",)}}

    def make(self, name: str) -> tuple[torch.Tensor]:
        return (torch.tensor(given[name]),)


class Patched:
    """A clone of a MODEL to which `given[name]` has been applied, as another pack's node would."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing/faults"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "name": ("STRING",)}}

    def patch(self, model: Any, name: str) -> tuple[Any]:
        patched = model.clone()
        apply: Callable[[Any], None] = given[name]
        apply(patched)
        return (patched,)


class Conditioned:
    """What `given[name]` makes of a CONDITIONING."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "change"
    CATEGORY = "testing/faults"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "name": ("STRING",)}}

    def change(self, conditioning: list[Any], name: str) -> tuple[list[Any]]:
        return (given[name](conditioning),)


class ListOf:
    """The values `given[name]` one by one, as nodes with lists of outputs give them."""

    RETURN_TYPES = ("*",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "make"
    CATEGORY = "testing/faults"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING",)}}

    def make(self, name: str) -> tuple[list[Any]]:
        return (list(given[name]),)


class FixedLatent:
    """The LATENT `given[name]`."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing/faults"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING",)}}

    def make(self, name: str) -> tuple[dict[str, torch.Tensor]]:
        return (dict(given[name]),)


_NODES = (FixedNoise, FixedSigmas, FixedLatent, Patched, Conditioned, ListOf)
NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in _NODES}
