"""Models of many families, each as small as its network allows, with random weights, as files that the host knows.

The host's own class of the network is made with small numbers, and its parameters are written under their own names.
`UNETLoader` then finds the family and the numbers from the file.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

TEXT = 64
"""Width of a text token where a family's file says it."""


@dataclass(frozen=True)
class Tiny:
    """A network to write. network: "module:Class"; numbers: what it is made with.

    told: of these, what the host reads in the file's metadata; it finds the others in the tensors.
    """

    network: str
    numbers: Mapping[str, Any]
    told: tuple[str, ...] = ()
    seed: int = 0
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # tensors that only mark the family

    def write(self, file: Path) -> None:
        """Write it, unless it is there."""
        if file.exists():
            return
        import comfy.ops

        module, _, name = self.network.partition(":")
        made = getattr(importlib.import_module(module), name)(
            **self.numbers, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init
        )
        generator = torch.Generator().manual_seed(self.seed)
        tensors = {key: _values(key, tensor, generator) for key, tensor in made.state_dict().items()}
        tensors |= {key: torch.zeros(shape) for key, shape in self.more.items()}
        told = {key: self.numbers[key] for key in self.told}
        file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, file, {"config": json.dumps({"transformer": told})})


def _values(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values with which text and other inputs have a clear effect and nothing overflows."""
    drawn = torch.randn(tensor.shape, generator=generator)
    if name.endswith(("scale", "norm.weight", "gamma")) or (tensor.ndim == 1 and name.endswith("weight")):
        return 1 + 0.1 * drawn
    if tensor.ndim < 2:
        return 0.1 * drawn
    if tensor.shape[0] == 1:  # modulations and the like
        return 0.5 * drawn
    return (drawn * tensor[0].numel() ** -0.5).contiguous()


def wan(kind: str = "", **numbers: Any) -> Tiny:
    """A Wan of two blocks and one head. kind: of the network's class, "" for the plain one."""
    small = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "text_dim": TEXT, "in_dim": 16, "out_dim": 16}
    place = "comfy.ldm.wan.model_animate" if kind == "Animate" else "comfy.ldm.wan.model"
    name = {"": "WanModel", "S2V": "WanModel_S2V"}.get(kind, f"{kind}WanModel")
    seed = numbers.pop("seed", 0)
    told = ("text_dim", *(key for key in ("audio_dim", "audio_inject_layers") if key in numbers))
    return Tiny(f"{place}:{name}", small | numbers, told, seed)


def hunyuan(**numbers: Any) -> Tiny:
    """A HunyuanVideo of one head; 1.0 with a pooled text vector, 1.5 without."""
    small = {
        "image_model": "hunyuan_video",
        "patch_size": [1, 2, 2],
        "axes_dim": [16, 56, 56],
        "context_in_dim": TEXT,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": True,
        "vec_in_dim": 768,
        "byt5": False,
        "meanflow": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        "meanflow_sum": False,
        "in_channels": 16,
        "out_channels": 16,
    }
    return Tiny("comfy.ldm.hunyuan_video.model:HunyuanVideo", small | numbers)


def hunyuan15(**numbers: Any) -> Tiny:
    small = {
        "patch_size": [1, 1, 1],
        "depth": 2,
        "depth_single_blocks": 0,
        "guidance_embed": False,
        "vec_in_dim": None,
        "byt5": True,
        "use_cond_type_embedding": True,
        "vision_in_dim": 1152,
        "meanflow_sum": True,
        "in_channels": 65,
        "out_channels": 32,
    }
    return hunyuan(**small | numbers)


_LTX = {
    "in_channels": 128,
    "cross_attention_dim": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": TEXT,
    "num_layers": 2,
}


def ltx() -> Tiny:
    return Tiny("comfy.ldm.lightricks.model:LTXVModel", _LTX, tuple(_LTX))


def ltx2() -> Tiny:
    numbers = _LTX | {
        "audio_in_channels": 128,
        "audio_cross_attention_dim": 64,
        "audio_attention_head_dim": 32,
        "audio_num_attention_heads": 2,
        "connector_attention_head_dim": 32,
        "connector_num_attention_heads": 2,
        "connector_num_layers": 1,
    }
    return Tiny("comfy.ldm.lightricks.av_model:LTXAVModel", numbers, tuple(numbers))


def kandinsky() -> Tiny:
    numbers = {
        "model_dim": 128,
        "time_dim": 64,
        "ff_dim": 256,
        "visual_embed_dim": 132,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
    }
    return Tiny("comfy.ldm.kandinsky5.model:Kandinsky5", numbers)


def cosmos() -> Tiny:
    numbers = {
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 256,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "use_adaln_lora": True,
        "extra_per_block_abs_pos_emb": False,
        "rope_enable_fps_modulation": False,
        "num_blocks": 10,
    }
    return Tiny("comfy.ldm.cosmos.predict2:MiniTrainDIT", numbers)


def flux() -> Tiny:
    numbers = {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 64,
        "context_in_dim": TEXT,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    return Tiny("comfy.ldm.flux.model:Flux", numbers)
