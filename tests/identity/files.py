"""The model files, pictures and latents that the graphs name, written into a base directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import safetensors
import safetensors.torch
import torch

from .graphs import (
    LATENT,
    LORA,
    MERGED_MODEL,
    MODEL,
    OTHER_LATENT,
    OTHER_LORA,
    OTHER_MODEL,
    OTHER_PICTURE,
    PICTURE,
    QUANTISED,
    QUANTISED_MERGED,
)

WEIGHTS = Path(__file__).resolve().parent.parent / "small_wan" / "weights"
PREFIX = "diffusion_model."


def read(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata."""
    with safetensors.safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


def write(tensors: dict[str, torch.Tensor], metadata: dict[str, str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata)


def changed_model(file: Path) -> None:
    """The small Wan with one row of one matrix multiplied."""
    tensors, metadata = read(WEIGHTS / MODEL)
    tensors["blocks.1.ffn.2.weight"][3] *= 1.5
    write(tensors, metadata, file)


def changed_lora(file: Path) -> None:
    tensors, metadata = read(WEIGHTS / LORA)
    tensors[min(tensors)] *= 0.5
    write(tensors, metadata, file)


def merged() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The small Wan's weights with its LoRA merged into them."""
    tensors, metadata = read(WEIGHTS / MODEL)
    lora, _ = read(WEIGHTS / LORA)
    names = {name.rsplit(".lora_", 1)[0] for name in lora if ".lora_" in name}
    for name in names:
        up, down = lora[f"{name}.lora_B.weight"], lora[f"{name}.lora_A.weight"]
        key = f"{name.removeprefix(PREFIX)}.weight"
        scale = float(lora.get(f"{name}.alpha", torch.tensor(float(down.shape[0])))) / down.shape[0]
        tensors[key] = (tensors[key].float() + scale * up.float() @ down.float()).to(tensors[key].dtype)
    return tensors, metadata


def _picture(file: Path, seed: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = np.full((96, 96, 3), 40, dtype=np.uint8)
    left, top = rng.integers(0, 48, 2)
    pixels[top : top + 48, left : left + 48] = rng.integers(100, 255, 3)
    Image.fromarray(pixels).save(file)


def _latent(file: Path, seed: int) -> None:
    samples = torch.randn(1, 16, 4, 12, 12, generator=torch.Generator().manual_seed(seed))
    write({"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}, {}, file)


def _quantising() -> ModuleType:
    """The test pack's module as a plain one, for its `write`; the host has loaded the very same code."""
    folder = Path(__file__).resolve().parent.parent / "packs" / "gguf"
    spec = importlib.util.spec_from_file_location("chorus_test_gguf_files", folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_all(base: Path) -> None:
    """Write every file that the graphs name beyond those that each base directory has."""
    models, inputs = base / "models", base / "input"
    changed_model(models / "diffusion_models" / OTHER_MODEL)
    write(*merged(), models / "diffusion_models" / MERGED_MODEL)
    changed_lora(models / "loras" / OTHER_LORA)
    quantising = _quantising()
    for name, content in ((QUANTISED, read(WEIGHTS / MODEL)), (QUANTISED_MERGED, merged())):
        file = models / "diffusion_models" / name
        if file.exists():
            file.write_bytes(file.read_bytes())  # safetensors puts the metadata in another order each time
        else:
            quantising.write(*_ordered(content, file))
    for seed, name in enumerate((PICTURE, OTHER_PICTURE)):
        _picture(inputs / name, seed)
    for seed, name in enumerate((LATENT, OTHER_LATENT)):
        _latent(inputs / name, seed)


def _ordered(content: tuple[dict[str, torch.Tensor], dict[str, str]], file: Path):
    tensors, metadata = content
    return tensors, file, metadata


def small_hunyuan(file: Path) -> None:
    """Write a HunyuanVideo 1.5 with one block, one head and random weights, as core's loader knows it."""
    import comfy.ops
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    torch.manual_seed(0)
    network = HunyuanVideo(
        image_model="hunyuan_video",
        in_channels=65,
        out_channels=32,
        patch_size=[1, 1, 1],
        vec_in_dim=None,
        axes_dim=[16, 56, 56],
        context_in_dim=_text_width(),
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=1,
        depth=1,
        depth_single_blocks=0,
        theta=256,
        qkv_bias=True,
        byt5=True,
        guidance_embed=False,
        use_cond_type_embedding=True,
        vision_in_dim=1152,
        meanflow=False,
        meanflow_sum=True,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    for parameter in network.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn(parameter.shape) * spread
    write(dict(network.state_dict()), {}, file)


def _text_width() -> int:
    tensors, _ = read(WEIGHTS / MODEL)
    return tensors["text_embedding.0.weight"].shape[1]
