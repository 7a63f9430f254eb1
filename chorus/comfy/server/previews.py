"""An entry's preview as a picture file: animated, or all frames one below the other."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from ...cache import EntryMissing
from ...messages import say
from ..caches import open_cache

_QUALITY = 75
_KEPT = 256  # pictures kept in memory, about 20 kB each


def animation(cache_name: str, entry_id: str) -> bytes:
    """The preview as an animated WebP. Raises CacheError."""
    return _made(_animation, cache_name, entry_id)


def strip(cache_name: str, entry_id: str) -> bytes:
    """The preview's frames one below the other, as a WebP. Raises CacheError."""
    return _made(_strip, cache_name, entry_id)


def drop_pictures() -> None:
    """Let go of every picture in memory: what is forgotten is nowhere."""
    _made.cache_clear()


@lru_cache(_KEPT)
def _made(make: Callable[[str, str], bytes], cache_name: str, entry_id: str) -> bytes:
    return make(cache_name, entry_id)


def _animation(cache_name: str, entry_id: str) -> bytes:
    return open_cache(cache_name).preview(_with_preview(cache_name, entry_id))


def _strip(cache_name: str, entry_id: str) -> bytes:
    frames = _frames(cache_name, entry_id)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames))).save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()


def _frames(cache_name: str, entry_id: str) -> np.ndarray:
    """[F, H, W, 3] uint8."""
    return open_cache(cache_name).load(_with_preview(cache_name, entry_id), ["preview"])["preview"].numpy()


def _with_preview(cache_name: str, entry_id: str) -> str:
    """The id of an entry that has a preview. EntryMissing, with what to do."""
    entry = open_cache(cache_name).get(entry_id)
    if entry is None:
        raise EntryMissing(entry_id)
    if "preview" not in entry.tensor_names:
        raise EntryMissing(entry_id, say("reason.no_frames"))
    return entry_id
