"""The graph that made an entry, kept beside it so that it can be opened again."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import torch

from ..cache import Cache
from ..cache.rules import MOST_WORKFLOW, MOST_WORKFLOW_PARTS, read_workflow, workflow_parts

TENSOR = "workflow"


def packed(workflow: Any | None, prompt: Any | None) -> torch.Tensor | None:
    """A graph as a uint8 tensor: as the frontend saves it, else in API form; None without either.

    None, too, for a graph that is too large to be kept, for example with pictures inside, or that is not JSON.
    """
    graph: dict[str, Any] | None = None
    if workflow:
        graph = {"workflow": workflow}
    elif prompt:
        # The host notes in its own copy what nodes say of their changes, which may be NaN.
        kept = {key: {n: v for n, v in node.items() if n != "is_changed"} for key, node in prompt.items()}
        graph = {"prompt": kept}
    if graph is None:
        return None
    try:
        text = json.dumps(graph, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError):
        return None
    if len(text) > MOST_WORKFLOW or workflow_parts(text) > MOST_WORKFLOW_PARTS:
        return None
    return torch.from_numpy(np.frombuffer(zlib.compress(text, 9), np.uint8).copy())


def load(cache: Cache, entry_id: str) -> dict[str, Any]:
    """{"workflow": …} or {"prompt": …} of an entry. EntryMissing when it was stored without one."""
    return read_workflow(cache.load(entry_id, [TENSOR])[TENSOR].numpy().tobytes())
