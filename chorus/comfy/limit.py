"""How large a cache may grow: by the environment, or as chosen in ComfyUI."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..cache.local import max_bytes
from ..messages import BadInput, say
from . import small_file

GIGABYTE = 2**30
LEAST, MOST = 0.1, 100_000.0  # GB that may be chosen
VARIABLE = "CHORUS_CACHE_GB"
# A chosen folder may belong to another program, too, and many programs have a file of the former name.
_FILE, _FORMER_FILE = "chorus-limit.json", "settings.json"


def limit_bytes(root: Path) -> int:
    """The limit of each cache below `root`: `CHORUS_CACHE_GB`, else what was chosen in ComfyUI, else 20 GB."""
    chosen = None if VARIABLE in os.environ else _chosen(root)
    return max_bytes() if chosen is None else int(chosen * GIGABYTE)


def limit_is_fixed() -> bool:
    """Whether the environment sets the limit, so that it cannot be chosen in ComfyUI."""
    return VARIABLE in os.environ


def choose_limit(root: Path, gigabytes: float) -> int:
    """Keep the limit for every start to come; returns it in bytes.

    BadInput for a limit out of range, or where another program has a file of that name; CacheUnavailable when the
    limit cannot be written.
    """
    if not (math.isfinite(gigabytes) and LEAST <= gigabytes <= MOST):
        raise BadInput(say("route.limit", limit=str(gigabytes), least=LEAST, most=MOST))
    file = root / _FILE
    if file.exists() and not _is_ours(small_file.read(file)):
        raise BadInput(say("route.limit_file", file=file))
    small_file.write(file, {"limit_gb": gigabytes})
    former = root / _FORMER_FILE
    if _is_ours(small_file.read(former)):
        with suppress(OSError):  # it is not read any more
            former.unlink()
    return int(gigabytes * GIGABYTE)


def _chosen(root: Path) -> float | None:
    for name in (_FILE, _FORMER_FILE):
        kept = small_file.read(root / name)
        if _is_ours(kept):
            gigabytes = float(kept["limit_gb"])
            return gigabytes if LEAST <= gigabytes <= MOST else None
    return None  # never chosen, or not readable: the default limit


def _is_ours(kept: Any) -> bool:
    """Whether a file holds what `choose_limit` writes, and nothing else."""
    return isinstance(kept, dict) and kept.keys() == {"limit_gb"} and type(kept["limit_gb"]) in (int, float)
