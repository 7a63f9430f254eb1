"""The caches of this ComfyUI by name, each opened once a process, and entries turned into what a run needs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..cache import Cache, CacheUnavailable, Entry, LocalCache, WriteBehind
from ..cache.local import limits, max_bytes
from ..log import logger
from ..messages import BadInput, Message, said_by, say
from ..reuse.trajectory import Trajectory
from . import users
from .events import not_kept
from .limit import VARIABLE, choose_limit, limit_bytes, limit_is_fixed
from .place import Place, current

log = logger(__name__)

_open: dict[tuple[Place, str], WriteBehind] = {}
_lock = threading.Lock()
_NAME = re.compile(r"[\w][\w .-]{0,63}")


def cache_names(user: str = "") -> list[str]:
    """The caches that exist, by name: of the shared cache if one is set. Raises CacheUnavailable while that is away.

    user: whose, see `users`.
    """
    place = current()
    if place.shared:
        from ..cache.shared import SharedCache

        shared = _at(place, "default").cache  # any name will do: opening makes none
        assert isinstance(shared, SharedCache)
        kept = shared.names()
    else:
        try:
            kept = [folder.name for folder in place.folder.iterdir() if any(folder.glob("catalog-*.sqlite"))]
        except FileNotFoundError:
            kept = []
        except OSError as error:
            raise CacheUnavailable.of_disk(place.folder, error) from error
    names = sorted({users.plain_name(name) for name in kept})
    return [name for name in names if _NAME.fullmatch(name) and users.own_name(name, user) in kept]


def open_cache(name: str, place: Place | None = None) -> Cache:
    """The cache called `name`: the shared one if one is set. Raises CacheUnavailable when it cannot be had.

    name: for the user of the place; a `users.OwnName` is for its own user.
    place: where a request that is under way found it; None takes the place that is set now.
    """
    return _at(place or current(), name)


def cache_folder(name: str, place: Place | None = None) -> Path:
    """The folder of a cache, or of this machine's copies of it. ValueError for a name that is none."""
    place = place or current()
    own = name if isinstance(name, users.OwnName) else users.own_name(name, place.user)
    plain = users.plain_name(own) if isinstance(own, users.OwnName) else own
    if not _NAME.fullmatch(plain) or plain.endswith((".", " ")):
        raise ValueError(f"cache name {plain!r}: use letters, digits, spaces, '.', '_' and '-', at most 64 of them")
    return place.folder / own


def _at(place: Place, name: str) -> WriteBehind:
    folder = cache_folder(name, place)
    where = replace(place, user="")  # the folder's name says whose it is
    with _lock:
        if (where, folder.name) not in _open:
            told = partial(_not_stored, users.plain_name(folder.name))
            _open[where, folder.name] = WriteBehind(_opened(folder, place), folder, told)
        return _open[where, folder.name]


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
    place = replace(current(), user="")
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


def stored_estimates(entry: Entry) -> dict[float, str]:
    """σ → name of the tensors that are estimates of an entry's run."""
    return {float(n.split("/", 1)[1]): n for n in entry.tensor_names if n.startswith("estimate/")}


def load_trajectory(
    cache: Cache,
    entry: Entry,
    into_model_space: Callable[[torch.Tensor], torch.Tensor],
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
    """Say in the log what went wrong and cost no render."""
    log.warning("Chorus: %s", message)
