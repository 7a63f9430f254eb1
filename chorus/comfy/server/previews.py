"""An entry's preview as a picture file: animated, or all frames one below the other.

Each request asks the cache first, so that a picture is served only while its entry is there. The pictures in memory
only save the work of making them again.
"""

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


def require(cache_name: str, entry_id: str) -> None:
    """EntryMissing, with what to do, unless the entry is there and has a preview."""
    entry = open_cache(cache_name).get(entry_id)
    if entry is None:
        raise EntryMissing(entry_id)
    if "preview" not in entry.tensor_names:
        raise EntryMissing(entry_id, say("reason.no_frames"))


def drop_pictures() -> None:
    """Drop every picture in memory, so that a forgotten entry's picture is not kept."""
    _kept.cache_clear()


def _made(make: Callable[[str, str], bytes], cache_name: str, entry_id: str) -> bytes:
    try:
        require(cache_name, entry_id)
    except EntryMissing:
        drop_pictures()
        raise
    return _kept(make, cache_name, entry_id)


@lru_cache(_KEPT)
def _kept(make: Callable[[str, str], bytes], cache_name: str, entry_id: str) -> bytes:
    return make(cache_name, entry_id)


def _animation(cache_name: str, entry_id: str) -> bytes:
    return open_cache(cache_name).preview(entry_id)


def _strip(cache_name: str, entry_id: str) -> bytes:
    frames = open_cache(cache_name).load(entry_id, ["preview"])["preview"].numpy()  # [F, H, W, 3] uint8
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames))).save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()
