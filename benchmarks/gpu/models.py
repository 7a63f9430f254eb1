"""Models of the true sizes with random weights, in the host's own classes, and what they are asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chorus.comfy.caches import close_caches
from chorus.reuse.regions import Regions, build
from tools import comfyui

SHIFT = 5.0
SEED = 7  # of weights and prompts
DILATION = 1  # tokens, of the edit and of the visible mask, as ChorusSRDMask starts with
WORDS, CHANGED_WORDS = 24, 3  # tokens of a prompt, and how many the target's differ in


@dataclass(frozen=True)
class Size:
    """A model to build.

    config: as the host detects it from a checkpoint; latent: [C, T, H, W]; text: tokens × width of the encoding;
    cell: pixels a side of a latent cell.
    memory: the share of the free GPU memory that keys and values of left-out tokens may take, None for Chorus's own.
    """

    config: Mapping[str, Any]
    latent: tuple[int, int, int, int]
    text: tuple[int, int]
    cell: int
    memory: float | None = None


def _wan(dim: int, ffn: int, layers: int, heads: int, text: int = 4096) -> dict[str, Any]:
    return {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "patch_size": (1, 2, 2),
        "dim": dim,
        "ffn_dim": ffn,
        "num_layers": layers,
        "num_heads": heads,
        "text_dim": text,
        "freq_dim": 256,
        "in_dim": 16,
        "out_dim": 16,
    }


def _hunyuan(hidden: int, depth: int, heads: int, text: int = 3584) -> dict[str, Any]:
    return {
        "image_model": "hunyuan_video",
        "patch_size": [1, 1, 1],
        "in_channels": 65,
        "out_channels": 32,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": heads,
        "depth": depth,
        "depth_single_blocks": 0,
        "context_in_dim": text,
        "vec_in_dim": None,
        "vision_in_dim": 1152,
        "axes_dim": [16, 56, 56],
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": False,
        "byt5": True,
        "use_cond_type_embedding": True,
        "meanflow": False,
        "meanflow_sum": True,
    }


_480P_WAN, _480P_HUNYUAN = (16, 21, 60, 104), (32, 21, 30, 52)  # 81 frames of 832×480, 32,760 tokens either way

SIZES = {
    ("wan-1.3b", "full"): Size(_wan(1536, 8960, 30, 12), _480P_WAN, (512, 4096), 8),
    # Its keys and values take 27 GB beside 29 GB of weights, more than Chorus allows itself on 80 GB.
    ("wan-14b", "full"): Size(_wan(5120, 13824, 40, 40), _480P_WAN, (512, 4096), 8, memory=0.65),
    ("hunyuan-1.5", "full"): Size(_hunyuan(2048, 54, 16), _480P_HUNYUAN, (128, 3584), 16),
    ("wan-1.3b", "small"): Size(_wan(256, 512, 3, 2, 64), (16, 2, 28, 28), (64, 64), 8),
    ("wan-14b", "small"): Size(_wan(256, 512, 4, 2, 64), (16, 2, 28, 28), (64, 64), 8, memory=0.65),
    ("hunyuan-1.5", "small"): Size(_hunyuan(256, 2, 2, 64), (32, 2, 14, 14), (64, 64), 16),
}
MODELS = tuple(dict.fromkeys(model for model, _ in SIZES))


def import_comfyui(cpu: bool) -> None:
    """Make ComfyUI's modules importable; a ComfyUI that is there already stays as it is."""
    if "comfy.cli_args" in sys.modules:
        return
    sys.path.insert(0, str(comfyui.find()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    # No server and no graph run here. Their modules need packages that sampling does not, so they are not imported:
    # the state of progress is made before anything asks for it, and there is no page to tell anything.
    import comfy_execution.progress

    comfy_execution.progress.reset_progress_state("", None)
    none = types.ModuleType("server")
    none.PromptServer = None  # type: ignore[attr-defined]
    sys.modules.setdefault("server", none)


def build_patcher(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """The host's patcher around its own model, with random weights."""
    import comfy.model_detection
    import comfy.model_management
    import comfy.model_patcher

    model_config = comfy.model_detection.model_config_from_unet_config(dict(config))
    if model_config is None:
        raise ValueError(f"this ComfyUI knows no model of the configuration {dict(config)}")
    model_config.sampling_settings["shift"] = SHIFT  # what ModelSamplingSD3 sets
    model_config.set_inference_dtype(dtype, None, device=device)
    model = model_config.get_model({}, "", device=device)
    model.diffusion_model.to(device)
    fill(model.diffusion_model)
    patcher = comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())
    patcher.load(device, full_load=True)  # moves nothing; it tells the host that the weights are loaded
    return patcher


FILLED_HERE = 50_000_000  # parameters of a model whose weights are drawn on the CPU, the same for every device


@torch.no_grad()
def fill(network: torch.nn.Module) -> None:
    """Random weights under which activations keep their size: matrices 1/√inputs, norms 1, biases 0."""
    small = sum(p.numel() for p in network.parameters()) < FILLED_HERE
    generator: torch.Generator | None = None
    for name, parameter in network.named_parameters():
        if generator is None:
            generator = torch.Generator("cpu" if small else parameter.device).manual_seed(SEED)
        if parameter.ndim > 1:
            drawn = parameter.cpu() if small else parameter
            drawn.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            parameter.copy_(drawn)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def encodings(length: int, width: int) -> dict[str, list]:
    """CONDITIONING of the source, the target and the negative prompt, zero-padded as UMT5's is."""
    generator = torch.Generator().manual_seed(SEED)
    source, other, negative = (torch.zeros(1, length, width) for _ in range(3))
    source[:, :WORDS] = torch.randn(1, WORDS, width, generator=generator)
    other[:, :WORDS] = torch.randn(1, WORDS, width, generator=generator)
    negative[:, :WORDS] = torch.randn(1, WORDS, width, generator=generator)
    target = source.clone()
    target[:, :CHANGED_WORDS] = other[:, :CHANGED_WORDS]
    named = {"source": source, "target": target, "negative": negative}
    return {name: [[rows, {"pooled_output": None}]] for name, rows in named.items()}


def regions_around(grid: tuple[int, int, int], share: float) -> Regions:
    """Masks around a centred rectangle in the frame's proportions, with nearest to `share` of the tokens visible."""
    _, height, width = grid

    def around(h: int, w: int) -> Regions:
        base = torch.zeros(grid, dtype=torch.bool)
        top, left = (height - h) // 2, (width - w) // 2
        base[:, top : top + h, left : left + w] = True
        return build(base, DILATION, DILATION)

    def grown(side: int, most: int) -> float:
        return min(most, side + 4 * DILATION) / most

    sides = [(h, w) for h in range(1, height + 1) for w in range(1, width + 1)]
    near = [(h, w) for h, w in sides if abs(h / height - w / width) <= 0.1]
    h, w = min(near, key=lambda s: abs(grown(s[0], height) * grown(s[1], width) - share))
    return around(h, w)


@contextmanager
def caches_in(folder: Path) -> Iterator[None]:
    """Chorus keeps its caches in `folder`."""
    before = os.environ.get("CHORUS_CACHE_DIR")
    os.environ["CHORUS_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        close_caches()
        if before is None:
            del os.environ["CHORUS_CACHE_DIR"]
        else:
            os.environ["CHORUS_CACHE_DIR"] = before


def device_and_type(small: bool) -> tuple[torch.device, torch.dtype]:
    """Where a model of this size runs, and in which type. ComfyUI must be imported."""
    if small:
        return torch.device("cpu"), torch.float32
    import comfy.model_management

    return comfy.model_management.get_torch_device(), torch.bfloat16


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.system()}, CPU"


def commit() -> str:
    """The checkout's commit, "" outside git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


def circumstances(device: torch.device) -> dict[str, Any]:
    """What every result says of the machine and the software. ComfyUI must be imported."""
    import comfy.ldm.modules.attention
    import comfyui_version

    return {
        "commit": commit(),
        "machine": machine(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "attention": comfy.ldm.modules.attention.optimized_attention.__name__,
    }
