"""How large a cache may grow, and who says so."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from ..cache.local import max_bytes
from ..messages import BadInput, say

GIGABYTE = 2**30
LEAST, MOST = 0.1, 100_000.0  # GB that may be chosen
VARIABLE = "CHORUS_CACHE_GB"


def limit_bytes(root: Path) -> int:
    """The limit of each cache below `root`: `CHORUS_CACHE_GB`, else what was chosen in ComfyUI, else 20 GB."""
    chosen = None if VARIABLE in os.environ else _chosen(root)
    return max_bytes() if chosen is None else int(chosen * GIGABYTE)


def limit_is_fixed() -> bool:
    """Whether the environment sets the limit, so that it cannot be chosen in ComfyUI."""
    return VARIABLE in os.environ


def choose_limit(root: Path, gigabytes: float) -> int:
    """Keep the limit for every start to come; returns it in bytes. ValueError for one that is none."""
    if not (math.isfinite(gigabytes) and LEAST <= gigabytes <= MOST):
        raise BadInput(say("route.limit", limit=str(gigabytes), least=LEAST, most=MOST))
    root.mkdir(parents=True, exist_ok=True)
    file = _file(root)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"limit_gb": gigabytes}) + "\n", encoding="utf-8")
    os.replace(new, file)
    return int(gigabytes * GIGABYTE)


def _file(root: Path) -> Path:
    return root / "settings.json"


def _chosen(root: Path) -> float | None:
    try:
        gigabytes = float(json.loads(_file(root).read_text(encoding="utf-8"))["limit_gb"])
    except (OSError, ValueError, TypeError, KeyError):  # never chosen, or not readable: the usual limit
        return None
    return gigabytes if LEAST <= gigabytes <= MOST else None
