"""The line between Chorus's own faults and those of everything else: its own never cost a render."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from ..messages import BadInput, Message, say
from .caches import warn

_Result = TypeVar("_Result")


class Unsuitable(Exception):
    """Why Chorus leaves a run alone; `why` says it to people."""

    def __init__(self, why: Message):
        super().__init__(str(why))
        self.why = why


class OwnFault(Exception):
    """An error in Chorus's own work during sampling; the cause is chained."""


@contextmanager
def own_work() -> Iterator[None]:
    """Marks an error in here as Chorus's own. Interrupts and `Unsuitable` pass as they are."""
    try:
        yield
    except (OwnFault, Unsuitable):
        raise
    except Exception as error:
        raise OwnFault(f"{type(error).__name__}: {error}") from error


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
