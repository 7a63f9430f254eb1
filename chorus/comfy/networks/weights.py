"""Which weights a MODEL samples with: by the file they were loaded from, else by the parameters themselves."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Iterator
from typing import Any

import torch

from ..content import NotUnderstood, digest, new_hash, stored_parts, tensor_digest
from ..files import file_digests

_PROBED = 8  # values of each parameter that are compared with what the file's own loading gave

_digests: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_patches: dict[Any, str] = {}
_PATCHES_KEPT = 64


def weights_digest(patcher: Any) -> str:
    """Digest of the base weights of a `ModelPatcher` as they are sampled, without LoRA patches.

    Computed once for each loaded model. Where the host says which file the model was loaded from, and how, that is
    the file's content with the options of its loading (for example fp8, and its fast form). Otherwise it is every
    parameter and buffer of the model, quantised ones as they lie in memory.

    Raises NotUnderstood where a parameter is a placeholder, and OSError where the file cannot be read.
    """
    model = patcher.model
    if model not in _digests:
        _digests[model] = digest([_kind(model), _origin(patcher) or _parameters(patcher)])
    return _digests[model]


def lora_digest(patcher: Any) -> str:
    """Digest of the LoRA patches on a `ModelPatcher` and their strengths; "" when there are none.

    Raises NotUnderstood for a patch of an unknown kind.
    """
    if not patcher.patches:
        return ""
    # The host gives another id with every change of its own; a pack may write into the patches itself.
    held = frozenset((name, *map(id, patches)) for name, patches in patcher.patches.items())
    key = (patcher.patches_uuid, held)
    if key not in _patches:
        _patches[key] = digest({name: [_plain_patch(p) for p in patches] for name, patches in patcher.patches.items()})
        while len(_patches) > _PATCHES_KEPT:
            _patches.pop(next(iter(_patches)))
    return _patches[key]


def _kind(model: Any) -> list[Any]:
    """What a model is beside its numbers: its class and those of its layers."""
    network = model.diffusion_model
    return [type(model).__qualname__, type(network).__qualname__, [type(m).__qualname__ for m in network.modules()]]


def _origin(patcher: Any) -> list[Any] | None:
    """The file a model was loaded from and the options of its loading.

    None where the host does not say, or where the file may have been replaced since.
    """
    init = patcher.cached_patcher_init
    if not init:
        return None
    load, arguments, *_ = init
    path = arguments[0] if arguments else None
    if not isinstance(path, str | os.PathLike) or not os.path.isfile(path):
        return None
    if not load.__module__.startswith("comfy.") or not file_digests().is_as_loaded(path):
        return None
    try:
        options = digest([argument for argument in arguments[1:] if isinstance(argument, dict)])
    except NotUnderstood:  # operations of a pack's own
        return None
    return [load.__qualname__, options, file_digests().of(path), _probe(patcher)]


def _probe(patcher: Any) -> str:
    """Digest of the parameters' types and shapes, and of a few values of each, so that other types of loading and
    most changes in memory give another one. No values of a model whose parameters the host moves in and out of memory.
    """
    hashed = new_hash()
    for name, value in (part for held in _tensors(patcher) for part in _in_memory(*held)):
        hashed.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        flat = value.detach().as_subclass(torch.Tensor).reshape(-1)
        if patcher.is_dynamic() or flat.is_meta or not flat.is_contiguous():
            continue
        few = flat[:: max(1, flat.numel() // _PROBED)][:_PROBED]
        hashed.update(few.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return hashed.hexdigest(length=16)


def _in_memory(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor by its name; of a quantised one its parts, since its values would have to be unpacked first."""
    parts = stored_parts(tensor)
    for part in parts:
        yield from _in_memory(f"{name}.{part}", parts[part])
    if not parts:
        yield name, tensor


def _parameters(patcher: Any) -> str:
    hashed = new_hash()
    for name, value in _tensors(patcher):
        hashed.update(f"{name}={tensor_digest(value)};".encode())
    return hashed.hexdigest(length=16)


def _tensors(patcher: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the network by name: parameters, buffers (also those outside the state dict), and attributes.

    While a LoRA is patched into a weight in place, the original lies in the patcher's backup.
    """
    network = patcher.model.diffusion_model
    for prefix, module in sorted(network.named_modules()):
        held = {**module.__dict__, **module._parameters, **module._buffers}
        for attribute in sorted(held):
            value = held[attribute]
            if not isinstance(value, torch.Tensor):
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            backup = patcher.backup.get(f"diffusion_model.{name}")
            yield name, value if backup is None else backup.weight


def _plain_patch(patch: Any) -> Any:
    """A LoRA patch as plain data: adapters of the host are their class and attributes."""
    import comfy.weight_adapter

    if isinstance(patch, list | tuple):
        return [_plain_patch(part) for part in patch]
    if isinstance(patch, comfy.weight_adapter.WeightAdapterBase):
        held = {name: value for name, value in vars(patch).items() if name != "loaded_keys"}
        return [type(patch).__qualname__, _plain_patch(list(held.items()))]
    if inspect.isfunction(patch) and patch.__module__.startswith("comfy."):  # how a merged model's weight is converted
        return f"{patch.__module__}.{patch.__qualname__}"
    return patch
