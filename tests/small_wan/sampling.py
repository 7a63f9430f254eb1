"""The small Wan sampled through ComfyUI's own loader, model patcher and samplers, in this process.

Needs ComfyUI importable. One prompt and one seed a batch row, so a row equals the same graph run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import architecture, text_encoder

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

SHIFT = 5.0
SAMPLER = "euler"
SCHEDULER = "simple"
CFG = 3.0  # the best of 1 to 4, see docs/small_wan.md
LATENT_SHAPE = (16, 4, 12, 12)


def load(model_file: Path, lora_file: Path | None = None, lora_strength: float = 1.0) -> ModelPatcher:
    """The model as UNETLoader, LoraLoaderModelOnly and ModelSamplingSD3 would hand it to a sampler."""
    architecture.use_available_device()
    import comfy.sd
    import comfy.utils
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = comfy.sd.load_diffusion_model(str(model_file))
    if lora_file is not None:
        lora = comfy.utils.load_torch_file(str(lora_file), safe_load=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, lora, lora_strength, 0.0)
    return ModelSamplingSD3().patch(model, SHIFT)[0]


def sigmas(model: ModelPatcher, steps: int) -> torch.Tensor:
    """The host's noise levels, [steps + 1], from 1 to 0."""
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), SCHEDULER, steps)


def noise(seeds: Sequence[int]) -> torch.Tensor:
    """[N, 16, 4, 12, 12]: what the host draws for an empty latent of one video at each seed."""
    import comfy.sample

    empty = torch.zeros(1, *LATENT_SHAPE)
    return torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])


def sample(
    model: ModelPatcher,
    texts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    cfg: float = 1.0,
    callback: Callable[[int, torch.Tensor, torch.Tensor, int], None] | None = None,
) -> torch.Tensor:
    """LATENT [N, 16, 4, 12, 12] for N prompts with the empty negative prompt, in one batch.

    `callback(step, denoised, x, steps)` sees [N, …] in model space before each step.
    """
    import comfy.sample

    positive = torch.cat([text_encoder.encode(text) for text in texts])
    negative = text_encoder.encode("")
    latent = torch.zeros(len(texts), *LATENT_SHAPE)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise(seeds),
            steps,
            cfg,
            SAMPLER,
            SCHEDULER,
            [[positive, {}]],
            [[negative, {}]],
            latent,
            callback=callback,
            disable_pbar=True,
            seed=seeds[0],
        )
