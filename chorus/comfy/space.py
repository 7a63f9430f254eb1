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
    """ "t2v", "i2v:<digest>" with a start image or image conditioning, "v2v:<digest>" with a start latent."""
    parts = []
    if image is not None:
        parts.append(tensor_digest(image))
    if cond is not None and (carried := image_conditioning(cond)):
        parts.append(carried)
    if parts:
        return f"i2v:{digest(parts)}"
    if torch.count_nonzero(latent) > 0:
        return f"v2v:{tensor_digest(latent)}"
    return "t2v"


def prediction_of(patcher: Any) -> str:
    """ "flow" for rectified flow, the only one whose states Chorus can reuse; else the class that predicts."""
    import comfy.model_sampling

    sampling = patcher.get_model_object("model_sampling")
    return "flow" if isinstance(sampling, comfy.model_sampling.CONST) else type(sampling).__mro__[1].__name__


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
    return Space(
        weights="+".join(dict.fromkeys(weights_digest(p) for p in patchers)),
        patches="+".join(dict.fromkeys(filter(None, (patches_digest(p) for p in patchers)))),
        latent_format=type(patchers[0].get_model_object("latent_format")).__name__,
        shape=tuple(shaped.shape),
        task=task_of(samples, image, cond),
        prediction=prediction_of(patchers[0]),
    )
