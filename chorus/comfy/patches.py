"""What other nodes have put on a MODEL beside LoRAs: found by where it lies, never read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from .sampling.guidance import STEP_CACHES

KEY = "chorus"

# What does not change which video a model stands for, so that requests with and without it may share states: this
# pack's own parts, step caches and context windows of the host, compiled forms of the same network, and the shift of
# its schedule.
_WINDOWS = {"ContextWindows_prepare_sampling", "ContextWindows_sampler_sample"}
_NEUTRAL_KEYS = {KEY, "torch.compile"} | STEP_CACHES | _WINDOWS
_NEUTRAL_OPTIONS = {"context_handler", "torch_compile_kwargs", "to_load_options", "transformer_options"}
_NEUTRAL_OBJECTS = {"model_sampling"}


def foreign_patches(patcher: Any) -> tuple[str, ...]:
    """Where other nodes' patches lie on a `ModelPatcher`, and which code they are, in a fixed order.

    Two clones with the same patches give the same answer. Parameters of the patches are not in it: these are told
    apart by the graph's signature.
    """
    return tuple(sorted(_found(patcher)))


def _found(patcher: Any) -> Iterator[str]:
    for name in patcher.object_patches:
        if name not in _NEUTRAL_OBJECTS:
            yield f"object {name}={_code(patcher.object_patches[name])}"
    for name in patcher.weight_wrapper_patches:
        yield f"weight wrapper {name}"
    for name, injections in patcher.injections.items():
        yield f"injection {name} ×{len(injections)}"
    for name in patcher.additional_models:
        yield f"model {name}"
    for name in patcher.attachments:
        yield f"attachment {name}"
    if patcher.hook_patches:
        yield "hooks"
    yield from _keyed("wrapper", patcher.wrappers)
    yield from _keyed("callback", patcher.callbacks)
    options = patcher.model_options
    for name, value in options.items():
        if name not in _NEUTRAL_OPTIONS:
            yield f"option {name}={_code(value)}"
    for name, value in options.get("transformer_options", {}).items():
        if name in ("wrappers", "callbacks"):
            yield from _keyed(name, value)
        elif name not in _NEUTRAL_KEYS and not (isinstance(value, dict | list | tuple) and not value):
            yield f"transformer option {name}={_code(value)}"


def _keyed(what: str, held: dict[str, dict[Any, list[Any]]]) -> Iterator[str]:
    for kind, by_key in held.items():
        for key, functions in by_key.items():
            if key not in _NEUTRAL_KEYS and functions:
                yield f"{what} {kind}.{key}={_code(functions)}"


def _code(value: Any) -> str:
    """The name of a patch's code and a digest of what it does, of each in a nested collection."""
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{key}:{_code(inner)}" for key, inner in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_code(inner) for inner in value) + "]"
    named = value if hasattr(value, "__qualname__") else type(value)
    function = getattr(value, "__func__", value) if hasattr(value, "__qualname__") else vars(named).get("__call__")
    code = getattr(function, "__code__", None)
    written = "" if code is None else hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest()[:16]
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}{written and ':'}{written}"
