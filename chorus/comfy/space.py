"""Which space a request belongs to: what must agree before it may start from another one's states.

Everything that is not understood raises NotUnderstood, and such a request has no space: it is no hit and no source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch

from ..cache.entry import Space
from ..messages import say
from .content import NotUnderstood, digest, tensor_digest
from .faults import Unsuitable
from .networks import Network, network_of
from .networks.weights import lora_digest, weights_digest
from .noise_mask import kept_cells, mask_digest
from .patches import foreign_patches
from .signature import Link, RunningNode
from .text import changers_of_text, inputs_beside_text

# Keys of a conditioning that hold neither text nor an input of the model.
_RANGE = ("start_percent", "end_percent")
_BOOKKEEPING = {"uuid", "model_conds", "guidance", *_RANGE}

_SHOWN = 8  # digits of an input's digest; they tell in words what differs


class Expert(NamedTuple):
    """A model as it is sampled: digests of its weights and LoRAs, and where patches of other nodes lie on it."""

    weights: str
    loras: str
    foreign: tuple[str, ...]


def carried_inputs(cond: list[Any], network: Network) -> str:
    """Digest of what a CONDITIONING carries beside text (start image, audio, control, references); "" when nothing.

    cond: a node's CONDITIONING ([[tensor, options], …]) or a guider's converted one ([options, …]).
    network: says which keys are text; every other must agree. Raises NotUnderstood.
    """
    carried = _carried(cond, network)
    return digest(carried) if any(carried) else ""


def named_inputs(cond: list[Any], network: Network) -> dict[str, str]:
    """The same inputs one by one: name as in `chorus/cache/inputs.py` → digest. Raises NotUnderstood."""
    named: dict[str, list[Any]] = {}
    for carried in _carried(cond, network):
        for name, value in network.named_inputs(carried):
            named.setdefault(name, []).append(value)
    return {name: digest(values) for name, values in named.items()}


def _carried(cond: list[Any], network: Network) -> list[dict[str, Any]]:
    """What each part of a CONDITIONING carries beside text, and for which steps the part applies if it does."""
    text = {"cross_attn"} | network.text_keys | _BOOKKEEPING
    carried = []
    for item in cond:
        options = item[1] if isinstance(item, list | tuple) else item
        more = {key: value for key, value in options.items() if key not in text and value is not None}
        carried.append(more and more | {key: options[key] for key in _RANGE if options.get(key) is not None})
    return carried


def start_latent(latent: torch.Tensor) -> str:
    """Digest of a latent that holds a picture to start from; "" for an empty one."""
    return tensor_digest(latent) if torch.count_nonzero(latent) > 0 else ""


def task_of(
    latent: torch.Tensor,
    kept: torch.Tensor | None,
    image: torch.Tensor | None,
    carried: str,
    named: Mapping[str, str],
) -> str:
    """The task by name: "t2v", "i2v:<digest>;<inputs>" with inputs beside text, "v2v:<digest>" with a start latent.

    kept: the cells of the latent that a noise mask keeps, [T, H, W] bool; None without a mask. Such a mask is an input.
    carried: digest of the inputs of the conditioning; named: of each by its name. A start latent beside inputs counts
        too.
    """
    start, mask = start_latent(latent), mask_digest(kept)
    first = "" if image is None else tensor_digest(image)
    parts = [part for part in (first, carried, mask and f"noise mask {mask}") if part]
    if parts:
        given = _latent_inputs(latent, start, kept)
        if first:
            given["start_image"] = digest([first, given["start_image"]]) if "start_image" in given else first
        given |= named
        listed = ",".join(f"{name}={given[name][:_SHOWN]}" for name in sorted(given))
        return f"i2v:{digest([*parts, start])};{listed}"
    return f"v2v:{start}" if start else "t2v"


def _latent_inputs(latent: torch.Tensor, start: str, kept: torch.Tensor | None) -> dict[str, str]:
    """What a latent brings beside its shape: name as in `chorus/cache/inputs.py` → digest."""
    inputs = {"start_latent": start} if start else {}
    if kept is None:
        return inputs
    if latent.ndim == 5 and bool(kept[0].all()):  # the first frame is kept: a video is made of an image
        inputs = {"start_image": tensor_digest(latent[:, :, :1]), "later_frames": tensor_digest(latent[:, :, 1:])}
    return inputs | {"noise_mask": mask_digest(kept)}


def expert(patcher: Any) -> Expert:
    """A model as it is sampled. Raises NotUnderstood."""
    return Expert(weights_digest(patcher), lora_digest(patcher), foreign_patches(patcher))


def prediction_of(patcher: Any) -> str:
    """ "flow" for rectified flow, the only one whose states Chorus can reuse; else the class that predicts."""
    import comfy.model_sampling

    sampling = patcher.get_model_object("model_sampling")
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    # The second starts from the latent itself, so its states are not noise and picture mixed.
    if isinstance(sampling, comfy.model_sampling.CONST) and "IMG_TO_IMG_FLOW" not in kinds:
        return "flow"
    return type(sampling).__mro__[1].__name__


def models_signed(node: RunningNode, links: Collection[Link], prompt_nodes: Collection[str]) -> list[str]:
    """The signatures of what gives these MODELs, in a fixed order. Raises NotUnderstood."""
    return sorted({node.signature_of(link, prompt_nodes) for link in links})


def space_of(
    patchers: list[Any],
    latent: dict[str, Any],
    image: torch.Tensor | None,
    cond: list[Any] | None,
    node: RunningNode | None,
    model_links: Collection[Link] = (),
    prompt_nodes: Collection[str] = (),
) -> Space:
    """The space of a request. Raises NotUnderstood, Unsuitable, ValueError.

    patchers: its MODELs, one an expert; latent: the LATENT that gives the shape; cond: the positive CONDITIONING.
    node: the running look-up, model_links what is connected to its MODEL inputs: where other nodes have patched the
    model, the graph's signature says with which parameters. prompt_nodes: the nodes that encode the prompt, which
    may differ.
    """
    import comfy.sample

    samples = latent["samples"]
    if samples.is_nested:
        raise Unsuitable(say("bypassed.streams"))
    shaped = comfy.sample.fix_empty_latent_channels(
        patchers[0],
        samples,
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    experts = [expert(patcher) for patcher in patchers]
    patches: list[Any] = [one.loras for one in experts]
    if any(one.foreign for one in experts):
        if node is None:
            raise NotUnderstood("the model carries patches of other nodes, and no graph tells with which settings")
        patches += [[one.foreign for one in experts], models_signed(node, model_links, prompt_nodes)]
        patches.append(node.list_index)
    network = network_of(patchers[0])
    carried = carried_inputs(cond, network) if cond is not None else ""
    named = named_inputs(cond, network) if carried and cond is not None else {}
    if node is not None and (beside := inputs_beside_text(node, prompt_nodes)):
        named["encoder_input"] = digest([node.signature_of(link, ()) for link in beside])
        carried = digest([carried, named["encoder_input"]])
    if node is not None and (changers := changers_of_text(node, node.link("positive"), prompt_nodes)):
        named["style"] = digest(changers)
        carried = digest([carried, named["style"]])
    mask = latent.get("noise_mask")
    kept = None if mask is None else kept_cells(mask, shaped.shape)
    return Space(
        weights=digest([one.weights for one in experts]),
        patches=digest(patches) if any(patches) else "",
        latent_format=type(patchers[0].get_model_object("latent_format")).__name__,
        shape=tuple(shaped.shape),
        task=task_of(samples, kept, image, carried, named),
        prediction=prediction_of(patchers[0]),
    )
