"""The caches of this ComfyUI by name, each opened once a process, and entries turned into what a run needs."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from ..cache import Cache, Entry, LocalCache, WriteBehind
from ..cache.local import limits, max_bytes
from ..messages import BadInput, Message, said_by, say
from ..reuse.trajectory import Trajectory
from .events import not_kept
from .limit import VARIABLE, choose_limit, limit_bytes, limit_is_fixed
from .place import Place, current

_open: dict[tuple[Place, str], WriteBehind] = {}
_lock = threading.Lock()
_NAME = re.compile(r"[\w][\w .-]{0,63}")


def cache_names() -> list[str]:
    """The caches that exist, by name: the fleet's where one is set. Raises CacheUnavailable while that is away."""
    place = current()
    if place.shared:
        from ..cache.shared import SharedCache

        shared = _at(place, "default").cache  # any name will do: opening makes none
        assert isinstance(shared, SharedCache)
        return shared.names()
    try:
        folders = [p for p in place.folder.iterdir() if _NAME.fullmatch(p.name)]
        return sorted(p.name for p in folders if any(p.glob("catalog-*.sqlite")))
    except FileNotFoundError:
        return []


def open_cache(name: str, place: Place | None = None) -> Cache:
    """The cache called `name`, the fleet's where one is set; raises CacheUnavailable when it cannot be had.

    place: where a request that is under way found it; None takes the place that is set now.
    """
    return _at(place or current(), name)


def cache_folder(name: str, place: Place | None = None) -> Path:
    """The folder of a cache, or of this machine's copies of it. ValueError for a name that is none."""
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ValueError(f"cache name {name!r}: use letters, digits, spaces, '.', '_' and '-', at most 64 of them")
    return (place or current()).folder / name


def _at(place: Place, name: str) -> WriteBehind:
    folder = cache_folder(name, place)
    with _lock:
        if (place, name) not in _open:
            _open[place, name] = WriteBehind(_opened(folder, place), folder, partial(_not_stored, name))
        return _open[place, name]


def _opened(folder: Path, place: Place) -> Cache:
    if not place.shared:
        return LocalCache(folder, **limits() | {"max_bytes": limit_bytes(place.folder)})
    settings = place.settings()
    from ..cache.shared import SharedCache

    limit = max_bytes() if limit_is_fixed() else None
    return SharedCache(settings, folder.name, tier=folder / "shared", max_bytes=limit)


def limit_fixed() -> Message | None:
    """Why the limit of the caches cannot be chosen in ComfyUI, if so."""
    if limit_is_fixed():
        return say("route.fixed", variable=VARIABLE)
    return say("route.limit_shared", variable=VARIABLE) if current().shared else None


def limit_caches(gigabytes: float) -> None:
    """Give every local cache of this place, those in use too, another limit. ValueError when it cannot be chosen."""
    if said := limit_fixed():
        raise BadInput(said)
    place = current()
    chosen = choose_limit(place.folder, gigabytes)
    with _lock:
        for (where, _), opened in _open.items():
            if where == place and isinstance(opened.cache, LocalCache):
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


def _not_stored(name: str, entry_id: str, error: Exception) -> None:
    """The run is over by now, so only the pages can still tell."""
    warn(f"entry {entry_id} was not stored: {error}")
    not_kept(name, entry_id, said_by(error))


def warn(message: str) -> None:
    logging.getLogger("chorus").warning("Chorus: %s", message)
