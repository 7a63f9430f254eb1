"""Tells Chorus's own faults from those of the host and of other packs. Its own never cost a render."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from ..messages import BadInput, Message, say
from .caches import warn

_Result = TypeVar("_Result")
_OWN = str(Path(__file__).parents[2]) + os.sep  # as this module was loaded, which may be through a link


class Unsuitable(Exception):
    """Why a run is sampled without Chorus; `why` says it to people."""

    def __init__(self, why: Message):
        super().__init__(str(why))
        self.why = why


def is_own(error: BaseException) -> bool:
    """Whether an error comes from Chorus's own work.

    It does if, of all frames of the traceback that belong to ComfyUI or a pack, the innermost belongs to this pack.
    """
    import comfy.samplers

    host = str(Path(comfy.samplers.__file__).parents[1])
    own, trace = False, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(_OWN):
            own = True
        elif file.startswith(host) or "custom_nodes" in file:
            own = False
        trace = trace.tb_next
    return own


def never_lost(fallback: Callable[..., _Result]) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """For a node's `execute`: after a fault, what `fallback(sentence, **inputs)` returns. BadInput passes as it is."""

    def decorate(execute: Callable[..., _Result]) -> Callable[..., _Result]:
        @wraps(execute)
        def guarded(cls: Any, **inputs: Any) -> _Result:
            try:
                return execute(cls, **inputs)
            except BadInput:
                raise
            except Exception as error:
                fault = say("bypassed.fault", error=f"{type(error).__name__}: {error}")
                warn(str(fault))
                return fallback(fault, **inputs)

        return guarded

    return decorate
