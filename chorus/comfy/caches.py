"""The caches of this ComfyUI by name, each opened once a process, and entries turned into what a run needs."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import torch

from ..cache import Cache, CacheUnavailable, Entry, LocalCache, WriteBehind
from ..cache.local import limits, max_bytes
from ..reuse.trajectory import Trajectory
from .limit import choose_limit, limit_bytes

_open: dict[Path, WriteBehind] = {}
_lock = threading.Lock()
_COPIES = "shared"  # folder of a fleet's cache on this machine
_NAME = re.compile(r"[\w][\w .-]{0,63}")


def caches_root() -> Path:
    """The folder of all caches: `CHORUS_CACHE_DIR`, else ComfyUI's private user folder."""
    import folder_paths

    return Path(os.environ.get("CHORUS_CACHE_DIR") or folder_paths.get_system_user_directory("chorus"))


def cache_names() -> list[str]:
    """The caches that exist, by name; of a fleet's, those that this machine has used."""
    mark = _COPIES if _of_fleet() else "catalog-*.sqlite"
    try:
        folders = [p for p in caches_root().iterdir() if _NAME.fullmatch(p.name)]
        return sorted(p.name for p in folders if any(p.glob(mark)))
    except FileNotFoundError:
        return []


def cache_folder(name: str) -> Path:
    """The folder of a cache, below `caches_root`. ValueError for a name that is none."""
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ValueError(f"cache name {name!r}: use letters, digits, spaces, '.', '_' and '-', at most 64 of them")
    return caches_root() / name


def open_cache(name: str) -> Cache:
    """The cache called `name`, the fleet's where one is set; raises CacheUnavailable when it cannot be had."""
    folder = cache_folder(name)
    with _lock:
        if folder not in _open:
            _open[folder] = WriteBehind(_opened(name, folder), folder, _not_stored)
        return _open[folder]


def _opened(name: str, folder: Path) -> Cache:
    if not _of_fleet():
        return LocalCache(folder, **limits() | {"max_bytes": limit_bytes(folder.parent)})
    try:  # here: what it imports costs a local cache nothing
        from ..cache.shared import SharedCache, from_environment
    except ImportError as error:
        advice = "In ComfyUI's Python: pip install -r requirements.txt"
        raise CacheUnavailable("CHORUS_CACHE_URL", f"a package is missing ({error})", advice) from error
    limit = max_bytes() if "CHORUS_CACHE_GB" in os.environ else None
    shared = SharedCache(from_environment(), name, tier=folder / _COPIES, max_bytes=limit)
    with suppress(OSError):  # where no copies can be kept, the cache serves all the same
        (folder / _COPIES).mkdir(parents=True, exist_ok=True)
    return shared


def _of_fleet() -> bool:
    return bool(os.environ.get("CHORUS_CACHE_URL", "").strip())


def limit_caches(gigabytes: float) -> None:
    """Give every local cache, those in use too, another limit. ValueError when it cannot be chosen."""
    chosen = choose_limit(caches_root(), gigabytes)
    with _lock:
        for opened in _open.values():
            if isinstance(opened.cache, LocalCache):
                opened.cache.limit_to(chosen)


def close_caches() -> None:
    """Close every open cache of this process."""
    with _lock:
        while _open:
            _open.popitem()[1].close()


def stored_states(entry: Entry) -> dict[float, str]:
    """σ → name of the tensors that are an entry's states; the final latent is the one at σ = 0."""
    return {0.0: "final"} | {float(n.split("/", 1)[1]): n for n in entry.tensor_names if n.startswith("checkpoint/")}


def load_trajectory(
    cache: Cache,
    entry: Entry,
    into_model_space: Callable,
    noise: torch.Tensor | None,
    sigmas: Collection[float] | None = None,
) -> Trajectory:
    """The states of an entry (at all kept σ, or these), around the target's own noise. Raises CacheError.

    into_model_space: the model's `process_latent_in`, for the final latent; noise: ε of the target, in model space.
    The clean component is the source's and the noise the target's, so that another seed makes another video.
    """
    names = {s: name for s, name in stored_states(entry).items() if sigmas is None or s in sigmas}
    tensors = cache.load(entry.id, names.values())
    kept = {s: into_model_space(tensors[name]) if name == "final" else tensors[name] for s, name in names.items()}
    return Trajectory(None if entry.settings["noise_drawn"] else noise, kept)


def _not_stored(entry_id: str, error: Exception) -> None:
    warn(f"entry {entry_id} was not stored: {error}")


def warn(message: str) -> None:
    logging.getLogger("chorus").warning("Chorus: %s", message)
