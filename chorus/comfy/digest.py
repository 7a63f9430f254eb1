"""Content digests: of weights, of LoRA patches, of anything that shapes a request's result."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from typing import Any

import torch

_CHUNK = 1 << 22  # int64 words a pass, so that position weights stay small
_SMALL = 1 << 20  # bytes up to which a cryptographic hash costs nothing that anyone would notice

_weights_of: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_patches_of: dict[Any, str] = {}


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hex digest of a tensor's type, shape and every byte.

    Large tensors are reduced where they lie: a position-weighted sum of their 64-bit words, which any single change
    alters, at memory speed. It tells models apart; it is no protection against a forger.
    """
    sha = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    data = tensor.detach().contiguous().flatten()
    size = data.numel() * data.element_size()
    if size <= _SMALL:
        sha.update(data.cpu().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()
    data = data.view(torch.uint8)
    whole = size // 8 * 8
    sha.update(data[whole:].cpu().numpy().tobytes())
    words = data[:whole].view(torch.int64)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        odd = torch.arange(1, 2 * len(part), 2, dtype=torch.int64, device=part.device)
        sha.update(f"{int(part.sum())} {int((part * odd).sum())}".encode())
    return sha.hexdigest()


def weights_digest(patcher: Any) -> str:
    """Digest of the base weights of a `ModelPatcher`, without LoRA patches; computed once a loaded model.

    A LoRA is patched into the weights in place while the model is loaded; the originals are then in `backup`.
    """
    model = patcher.model
    if model not in _weights_of:
        sha = hashlib.blake2b(digest_size=16)
        for name, value in sorted(patcher.model_state_dict(filter_prefix="diffusion_model.").items()):
            if name in patcher.backup:
                value = patcher.backup[name].weight
            sha.update(f"{name}={tensor_digest(value)};".encode())
        _weights_of[model] = sha.hexdigest()
    return _weights_of[model]


def patches_digest(patcher: Any) -> str:
    """Digest of the LoRA patches on a `ModelPatcher` and their strengths; "" when there are none."""
    if not patcher.patches and not patcher.injections:
        return ""
    key = patcher.patches_uuid
    if key not in _patches_of:
        described = {name: patcher.patches[name] for name in sorted(patcher.patches)}
        _patches_of[key] = digest([described, sorted(patcher.injections)])
        while len(_patches_of) > 64:
            _patches_of.pop(next(iter(_patches_of)))
    return _patches_of[key]


def digest(value: Any) -> str:
    """Digest of nested plain data, tensors and objects, by content.

    Functions count by name and by what they close over, objects by class and their plain attributes: enough to tell
    one patch from another, equal across restarts.
    """
    sha = hashlib.blake2b(digest_size=16)
    _describe(value, sha.update, 0)
    return sha.hexdigest()


def _describe(value: Any, write: Callable[[bytes], Any], depth: int) -> None:
    if depth > 8:
        return
    if isinstance(value, torch.Tensor):
        write(f"T{tensor_digest(value)}".encode())
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        write(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, dict):
        write(b"{")
        for key in sorted(value, key=repr):
            _describe(key, write, depth + 1)
            _describe(value[key], write, depth + 1)
        write(b"}")
    elif isinstance(value, list | tuple | set | frozenset):
        write(b"[")
        for item in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            _describe(item, write, depth + 1)
        write(b"]")
    elif callable(value) and hasattr(value, "__qualname__"):
        write(f"F{value.__module__}.{value.__qualname__};".encode())
        for cell in getattr(value, "__closure__", None) or ():
            _describe_attribute(cell.cell_contents, write, depth + 1)
        _describe_attribute(getattr(value, "__self__", None), write, depth + 1)
    else:
        write(f"O{type(value).__module__}.{type(value).__qualname__}".encode())
        for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
            if not name.startswith("_"):
                write(name.encode())
                _describe_attribute(attribute, write, depth + 1)


def _describe_attribute(value: Any, write: Callable[[bytes], Any], depth: int) -> None:
    """Attributes and closures: modules and models are named, not walked."""
    if isinstance(value, torch.nn.Module) or hasattr(value, "patches_uuid"):
        write(f"M{type(value).__qualname__}".encode())
    else:
        _describe(value, write, depth)
