"""The small Wan's dimensions, and ComfyUI's own `WanModel` built from them.

Needs ComfyUI importable; `training_rope` swaps its rotary kernel, which has no gradient, for plain torch.
"""

from __future__ import annotations

import json

import torch

from . import text_encoder

CONFIG = {
    "dim": 192,
    "ffn_dim": 768,
    "num_layers": 5,
    "num_heads": 3,
    "text_dim": text_encoder.DIM,
    "in_dim": 16,
    "out_dim": 16,
}
# What the host's model detection cannot read from the tensors.
METADATA = {"config": json.dumps({"transformer": {k: CONFIG[k] for k in ("text_dim", "num_heads")}})}


def use_available_device() -> str:
    """Tell the host to run on the CPU where there is no GPU; call before any other import of `comfy`."""
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    return "cpu" if args.cpu else "cuda"


def build(device: str = "cpu") -> torch.nn.Module:
    """A `comfy.ldm.wan.model.WanModel` with fresh weights: Xavier matrices, zero head."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v",
        device=device,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
        **CONFIG,
    )
    for name, p in model.named_parameters():
        if p.ndim >= 2 and "modulation" not in name:
            torch.nn.init.xavier_uniform_(p.view(p.shape[0], -1))
        elif "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(p)
        elif "modulation" in name:
            torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        else:
            torch.nn.init.zeros_(p)
    torch.nn.init.zeros_(model.head.head.weight)
    return model


def training_rope() -> None:
    """Replace the host's rotary kernel by one that has a gradient."""
    import comfy.ldm.wan.model as wan

    def apply_rope1(x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
        pairs = x.float().reshape(*x.shape[:-1], -1, 1, 2)
        out = freqs[..., 0] * pairs[..., 0] + freqs[..., 1] * pairs[..., 1]
        return out.reshape(x.shape).type_as(x)

    wan.apply_rope1 = apply_rope1
