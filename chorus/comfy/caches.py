"""The caches of this ComfyUI by name, each opened once a process, and entries turned into what a run needs."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from ..cache import Cache, Entry, LocalCache
from ..cache.local import limits
from ..reuse.trajectory import Trajectory
from .limit import choose_limit, limit_bytes

_open: dict[Path, Cache] = {}
_lock = threading.Lock()
_NAME = re.compile(r"[\w][\w .-]{0,63}")


def caches_root() -> Path:
    """The folder of all caches: `CHORUS_CACHE_DIR`, else ComfyUI's private user folder."""
    import folder_paths

    return Path(os.environ.get("CHORUS_CACHE_DIR") or folder_paths.get_system_user_directory("chorus"))


def cache_names() -> list[str]:
    """The caches that exist, by name."""
    try:
        folders = [p for p in caches_root().iterdir() if _NAME.fullmatch(p.name)]
        return sorted(p.name for p in folders if any(p.glob("catalog-*.sqlite")))
    except FileNotFoundError:
        return []


def cache_folder(name: str) -> Path:
    """The folder of a cache, below `caches_root`. ValueError for a name that is none."""
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ValueError(f"cache name {name!r}: use letters, digits, spaces, '.', '_' and '-', at most 64 of them")
    return caches_root() / name


def open_cache(name: str) -> Cache:
    """The cache called `name`; raises CacheUnavailable when it cannot be had."""
    folder = cache_folder(name)
    with _lock:
        if folder not in _open:
            _open[folder] = LocalCache(folder, **limits() | {"max_bytes": limit_bytes(folder.parent)})
        return _open[folder]


def limit_caches(gigabytes: float) -> None:
    """Give every cache, those in use too, another limit. ValueError when it cannot be chosen."""
    chosen = choose_limit(caches_root(), gigabytes)
    with _lock:
        for cache in _open.values():
            if isinstance(cache, LocalCache):
                cache.limit_to(chosen)


def close_caches() -> None:
    """Close every open cache of this process."""
    with _lock:
        while _open:
            _open.popitem()[1].close()


def load_trajectory(cache: Cache, entry: Entry, into_model_space: Callable, noise: torch.Tensor | None) -> Trajectory:
    """The states of an entry down to σ = 0, around the target's own noise. Raises CacheError.

    into_model_space: the model's `process_latent_in`, for the final latent; noise: ε of the target, in model space.
    The clean component is the source's and the noise the target's, so that another seed makes another video.
    """
    names = [n for n in entry.tensor_names if n.startswith("checkpoint/") or n == "final"]
    tensors = cache.load(entry.id, names)
    kept = {0.0: into_model_space(tensors.pop("final"))}
    kept |= {float(n.split("/", 1)[1]): t for n, t in tensors.items()}
    return Trajectory(None if entry.settings["noise_drawn"] else noise, kept)


def warn(message: str) -> None:
    logging.getLogger("chorus").warning("Chorus: %s", message)
