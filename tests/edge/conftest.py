"""The host's own Wan with random weights, small enough for every test to run it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

TEXT_DIM = 24


class TokenMoves(TorchDispatchMode):
    """Inside it, each gather and put of tokens is noted: `gathered` and `put` hold the [B, L, C] of the whole ones."""

    _GATHERS = ("index_select", "index", "gather", "take_along_dim")
    _PUTS = ("index_copy", "index_copy_", "index_put", "index_put_", "scatter", "scatter_")

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.gathered: list[tuple[int, ...]] = []
        self.put: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim == 3 and args[0].shape[-1] == self.width:
            if name in self._GATHERS:
                self.gathered.append(tuple(args[0].shape))
            elif name in self._PUTS:
                self.put.append(tuple(args[0].shape))
        return func(*args, **kwargs or {})


@pytest.fixture(scope="session")
def networks(pack_module) -> ModuleType:
    return pack_module("chorus.comfy.networks")


def _filled(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with random weights, such that each of its inputs counts in its output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        spread = 1.0 if "norm" in name else 0.3 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
        parameter.data = (torch.randn(parameter.shape, generator=generator) * spread).to(parameter.dtype)
    return model.requires_grad_(False).eval()


def _wan(dtype: torch.dtype = torch.float32, seed: int = 0, kind: str = "WanModel", **changes) -> torch.nn.Module:
    import comfy.ops
    from comfy.ldm.wan import model as host
    from comfy.ldm.wan import model_animate

    config = {"dim": 48, "ffn_dim": 96, "num_layers": 3, "num_heads": 2, "freq_dim": 32}
    config |= {"text_dim": TEXT_DIM, "in_dim": 16, "out_dim": 16}
    made = getattr(host, kind, None) or getattr(model_animate, kind)
    return _filled(made(dtype=dtype, device="cpu", operations=comfy.ops.disable_weight_init, **config | changes), seed)


@pytest.fixture(scope="session")
def make_wan(comfy_host) -> Callable[..., torch.nn.Module]:
    """`make_wan(**changes)`: a Wan of the host with three blocks. kind: the name of its class."""
    return _wan


@pytest.fixture(scope="session")
def wan(make_wan) -> torch.nn.Module:
    return make_wan()


def _hunyuan(dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> torch.nn.Module:
    import comfy.ops
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    config = {"patch_size": [1, 2, 2], "axes_dim": [8, 8, 8], "context_in_dim": TEXT_DIM, "hidden_size": 48}
    config |= {"mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "theta": 256, "qkv_bias": True}
    config |= {"guidance_embed": True, "vec_in_dim": 20, "byt5": False, "meanflow": False, "meanflow_sum": False}
    config |= {"use_cond_type_embedding": False, "vision_in_dim": None, "in_channels": 16, "out_channels": 16}
    operations = comfy.ops.disable_weight_init
    model = HunyuanVideo(dtype=dtype, device="cpu", operations=operations, **config | changes)
    return _filled(model, seed)


@pytest.fixture(scope="session")
def hunyuan(comfy_host) -> torch.nn.Module:
    """A HunyuanVideo 1.0: two double blocks and two single ones."""
    return _hunyuan()


@pytest.fixture(scope="session")
def hunyuan15(comfy_host) -> torch.nn.Module:
    """A HunyuanVideo 1.5: three double blocks, quoted words, an image as a vision encoder sees it."""
    changes = {"patch_size": [1, 1, 1], "depth": 3, "depth_single_blocks": 0, "guidance_embed": False}
    changes |= {"vec_in_dim": None, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 40}
    return _hunyuan(**changes)
