"""Digests by content: BLAKE3 over every byte of plain data and tensors. What is not understood raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import blake3
import numpy as np
import torch

_CHUNK = 1 << 26  # bytes copied from a device at once


class NotUnderstood(Exception):
    """A part of a request cannot be told apart from another by its content. The message names the part."""


class Counter:
    """Bytes that were read for digests, so that tests and benchmarks can count them."""

    def __init__(self) -> None:
        self.bytes = 0


counter = Counter()


def new_hash() -> blake3.blake3:
    """A hash that uses all cores for large inputs."""
    return blake3.blake3(max_threads=blake3.blake3.AUTO)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Hex digest of a tensor's type, shape and every byte. Raises NotUnderstood where there are no bytes to read."""
    hashed = new_hash()
    _write_tensor(tensor, hashed.update)
    return hashed.hexdigest(length=16)


def stored_parts(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors in memory that a quantised one consists of, by name; none for a plain tensor."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return {}
    names, _ = tensor.__tensor_flatten__()
    return {name: getattr(tensor, name) for name in names}


def digest(value: Any) -> str:
    """Hex digest of nested plain data and tensors. Equal across processes and machines.

    Understood are: None, numbers, texts, bytes, enums, paths, dtypes, devices, NumPy arrays and scalars, tensors;
    mappings, lists, tuples and sets of these; and objects of ComfyUI's own classes with plain attributes.
    Raises NotUnderstood for NaN, which equals nothing, for data that holds itself, and for everything else.
    """
    hashed = new_hash()
    try:
        _describe(value, hashed.update, "")
    except RecursionError as error:
        raise NotUnderstood("data that holds itself, or is nested too deeply") from error
    return hashed.hexdigest(length=16)


def _describe(value: Any, write: Callable[[bytes], Any], where: str) -> None:
    if isinstance(value, torch.Tensor):
        _write_tensor(value, write)
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise NotUnderstood(f"{where}: an array of Python objects")
        write(f"A{value.dtype.str}{value.shape};".encode())
        write(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # longdouble gives itself
        _describe(value.item(), write, where)
    elif isinstance(value, float | complex):
        if math.isnan(abs(value)):
            raise NotUnderstood(f"{where}: NaN, which says that the value is never the same")
        write(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, Enum):
        write(f"E{type(value).__qualname__}.{value.name};".encode())
    elif value is None or isinstance(value, bool | int | torch.dtype | torch.device | PurePath):
        write(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, str | bytes | bytearray):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
        write(f"{type(value).__name__}{len(content)}:".encode() + content)
    elif isinstance(value, Mapping):
        write(f"D{len(value)}{{".encode())
        for key, inner in sorted(((digest(key), key) for key in value), key=lambda pair: pair[0]):
            write(key.encode())
            _describe(value[inner], write, f"{where}.{inner}")
    elif isinstance(value, list | tuple):
        write(f"L{len(value)}[".encode())
        for index, inner in enumerate(value):
            _describe(inner, write, f"{where}[{index}]")
    elif isinstance(value, set | frozenset):
        write(f"S{len(value)}[".encode())
        for inner in sorted(digest(inner) for inner in value):
            write(inner.encode())
    elif _is_record(value):
        write(f"O{type(value).__module__}.{type(value).__qualname__}".encode())
        _describe(vars(value), write, f"{where}.{type(value).__name__}")
    else:
        raise NotUnderstood(f"{where}: an object of {type(value).__module__}.{type(value).__qualname__}")


def _is_record(value: Any) -> bool:
    """Whether an object is no more than its attributes: one of ComfyUI's own, such as a CLIP vision output."""
    plain = type(value).__module__.startswith(("comfy.", "comfy_api.")) and not hasattr(type(value), "__slots__")
    return plain and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, torch.nn.Module)


def _write_tensor(tensor: torch.Tensor, write: Callable[[bytes], Any]) -> None:
    if tensor.is_nested or tensor.is_sparse:
        raise NotUnderstood(f"a tensor of layout {tensor.layout}")
    if stored := stored_parts(tensor):
        write(f"Q{type(tensor).__qualname__}{tuple(tensor.shape)}".encode())
        for part in stored.values():
            _write_tensor(part, write)
        write(repr(tensor.__tensor_flatten__()[1]).encode())  # type: ignore[attr-defined]
        return
    if tensor.is_meta:
        raise NotUnderstood(f"a placeholder of shape {tuple(tensor.shape)} without content")
    write(f"T{tensor.dtype}{tuple(tensor.shape)};".encode())
    # A subclass may show other values than it holds; its bytes are what counts.
    data = tensor.detach().as_subclass(torch.Tensor).contiguous().reshape(-1).view(torch.uint8)
    counter.bytes += data.numel()
    for start in range(0, data.numel(), _CHUNK):
        chunk: Any = memoryview(data[start : start + _CHUNK].cpu().numpy())  # type: ignore[arg-type]
        write(chunk)
