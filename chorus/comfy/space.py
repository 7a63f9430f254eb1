"""Which space a model and a latent belong to, and what of their conditioning is not text."""

from __future__ import annotations

from typing import Any

import torch

from ..cache.entry import Space
from .digest import digest, patches_digest, tensor_digest, weights_digest

# Keys of a conditioning's options that are not about an image or another model input.
_NOT_TASK = {
    "pooled_output",
    "start_percent",
    "end_percent",
    "uuid",
    "guidance",
    "attention_mask",
    "attention_mask_img_shape",
}


def image_conditioning(cond: list) -> str:
    """Digest of what a CONDITIONING carries beside text (start image, clip vision, references); "" when nothing.

    Takes a node's CONDITIONING ([[tensor, options], …]) or a guider's converted one ([options, …]).
    """
    carried = []
    for item in cond:
        options = item[1] if isinstance(item, list | tuple) else item
        kept = {
            k: v
            for k, v in options.items()
            if k not in _NOT_TASK and k != "cross_attn" and k != "model_conds" and v is not None
        }
        carried.append(kept)
    return digest(carried) if any(carried) else ""


def task_of(latent: torch.Tensor, image: torch.Tensor | None, cond: list | None) -> str:
    """The task by name: "t2v", "i2v:<digest>" with image conditioning, "v2v:<digest>" with a start latent.

    A start latent beside an image counts too.
    """
    parts, start = [], start_latent(latent)
    if image is not None:
        parts.append(tensor_digest(image))
    if cond is not None and (carried := image_conditioning(cond)):
        parts.append(carried)
    if parts:
        return f"i2v:{digest([*parts, start])}"
    return f"v2v:{start}" if start else "t2v"


def start_latent(latent: torch.Tensor) -> str:
    """Digest of a latent that holds a picture to start from; "" for an empty one."""
    return tensor_digest(latent) if torch.count_nonzero(latent) > 0 else ""


def expert(patcher: Any) -> tuple[str, str]:
    """A model as it is sampled: digests of its weights and of its LoRAs."""
    return weights_digest(patcher), patches_digest(patcher)


def prediction_of(patcher: Any) -> str:
    """ "flow" for rectified flow, the only one whose states Chorus can reuse; else the class that predicts."""
    import comfy.model_sampling

    sampling = patcher.get_model_object("model_sampling")
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    # The second starts from the latent itself, so its states are not noise and picture mixed.
    if isinstance(sampling, comfy.model_sampling.CONST) and "IMG_TO_IMG_FLOW" not in kinds:
        return "flow"
    return type(sampling).__mro__[1].__name__


def space_of(patchers: list[Any], latent: dict, image: torch.Tensor | None, cond: list | None) -> Space:
    """The space of a request. patchers: its MODELs, one an expert; latent: the LATENT that gives the shape."""
    import comfy.sample

    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError("this latent holds several streams (audio and video): Chorus reuses single video latents")
    shaped = comfy.sample.fix_empty_latent_channels(
        patchers[0],
        samples,
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    experts = [expert(p) for p in patchers]
    return Space(
        weights="+".join(weights for weights, _ in experts),
        patches="+".join(patches for _, patches in experts) if any(patches for _, patches in experts) else "",
        latent_format=type(patchers[0].get_model_object("latent_format")).__name__,
        shape=tuple(shaped.shape),
        task=task_of(samples, image, cond),
        prediction=prediction_of(patchers[0]),
    )
