"""Content digests: of weights, of LoRA patches, of anything that shapes a request's result."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import MethodType
from typing import Any

import numpy as np
import torch

_CHUNK = 1 << 22  # int64 words a pass, so that position weights stay small
_DEPTH = 16  # a tensor in an adapter in a manager in a closure of an injection is at 13
_PLAIN = (bool, int, float, complex, str, bytes, Enum, PurePath, torch.dtype, torch.device)
_SMALL = 1 << 20  # bytes up to which a cryptographic hash costs nothing that anyone would notice

_weights_of: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_patches_of: dict[Any, str] = {}


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hex digest of a tensor's type, shape and every byte.

    Large tensors are reduced where they lie: a position-weighted sum of their 64-bit words, which any single change
    alters, at memory speed. It tells models apart; it is no protection against a forger.
    """
    sha = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    if tensor.is_meta:
        return sha.hexdigest()  # declared but never filled, as a parameter that its checkpoint lacks
    data = tensor.detach().contiguous().flatten()
    size = data.numel() * data.element_size()
    if size <= _SMALL:
        sha.update(data.cpu().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()
    if data.storage_offset() * data.element_size() % 8:
        data = data.clone()  # 64-bit words need an aligned start
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
    if patcher.injections:  # LoRAs that run beside the weights instead of in them
        return digest([patcher.patches, patcher.injections])
    if not patcher.patches:
        return ""
    key = patcher.patches_uuid
    if key not in _patches_of:
        _patches_of[key] = digest(patcher.patches)
        while len(_patches_of) > 64:
            _patches_of.pop(next(iter(_patches_of)))
    return _patches_of[key]


def digest(value: Any) -> str:
    """Digest of nested plain data, tensors and objects, by content.

    Functions count by name, defaults and what they close over, objects by class and attributes, models by their
    weights: enough to tell one patch from another, equal across restarts.
    """
    sha = hashlib.blake2b(digest_size=16)
    _describe(value, sha.update, 0)
    return sha.hexdigest()


def _describe(value: Any, write: Callable[[bytes], Any], depth: int) -> None:
    if depth > _DEPTH:
        return
    below = partial(_describe, write=write, depth=depth + 1)
    if isinstance(value, torch.Tensor):
        write(f"T{tensor_digest(value)}".encode())
    elif isinstance(value, np.ndarray):
        write(f"A{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, _PLAIN):
        write(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, Mapping):
        write(b"{")
        for key in sorted(value, key=repr):
            below(key)
            below(value[key])
        write(b"}")
    elif isinstance(value, list | tuple | set | frozenset):
        write(b"[")
        for item in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            below(item)
        write(b"]")
    elif isinstance(value, partial):
        write(b"P")
        below([value.func, value.args, value.keywords])
    elif isinstance(value, MethodType):
        write(f"M{value.__qualname__};".encode())
        below(value.__self__)
    elif isinstance(value, type):
        write(f"C{value.__module__}.{value.__qualname__};".encode())
    elif hasattr(value, "__code__"):
        write(f"F{value.__module__}.{value.__qualname__};".encode())
        below([value.__defaults__, value.__kwdefaults__])
        for cell in value.__closure__ or ():
            below(_content(cell))
    elif isinstance(value, torch.nn.Module):
        write(f"N{type(value).__qualname__}".encode())
        below({name: tensor_digest(t) for name, t in value.state_dict().items() if isinstance(t, torch.Tensor)})
    elif hasattr(value, "patches_uuid"):
        below([weights_digest(value), patches_digest(value)])
    else:
        write(f"O{type(value).__module__}.{type(value).__qualname__}".encode())
        below(getattr(value, "__dict__", {}))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name not bound yet
        return None
