"""A plan and its run as the pages get them: plain data, and sentences in English.

`said` has, under the same name, the message that each sentence comes from, so that a page can translate it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..cache import Entry
from ..messages import to_json
from ..reuse.plan import Plan, Refused
from ..reuse.regions import Regions
from .techniques.selective import regions_of

if TYPE_CHECKING:
    from .store import Stored


def entry_figures(entry: Entry) -> dict[str, Any]:
    """Which entry, and what a page needs to show it."""
    return {"id": entry.id, "prompt": entry.prompt, "preview": "preview" in entry.tensor_names}


def plan_figures(plan: Plan) -> dict[str, Any]:
    """The look-up's answer."""
    return {
        "cache": plan.cache_name,
        "prompt": plan.prompt,
        "outcome": "hit" if plan.hit else "miss" if plan.reads else "unread",
        "reason": str(plan.explanation),
        "said": {"reason": plan.explanation.to_json()},
        "match_score": plan.score if plan.score > -1 else None,
        "threshold": plan.threshold,
        "shape": list(plan.space.shape),
        "source": entry_figures(plan.source.entry) if plan.source else None,
        "nearest": [_refused(refused) for refused in plan.nearest],
    }


def stored_figures(stored: Stored) -> dict[str, Any]:
    """The figures of a run and of storing it. If the run's report and the look-up differ, the report counts."""
    plan, report = stored.plan, stored.report
    figures = plan_figures(plan) | {"entry_id": stored.entry_id}
    if report is None:
        said = {"reason": stored.said.to_json()}
        return figures | {"outcome": "bypassed", "reason": str(stored.said), "said": said}
    said = {
        "reason": to_json(report.reason),
        "notes": to_json(tuple(report.notes)),
        "stored": to_json(stored.said),
    }
    regions = regions_of(plan) if any(share < 1.0 for share in report.token_share) else None
    masks = packed_masks(report.looked or regions)
    return figures | report.figures() | {"stored": str(stored.said), "said": said, "masks": masks}


def _refused(refused: Refused) -> dict[str, Any]:
    entry = refused.entry
    return entry_figures(entry) | {
        "score": refused.score,
        "differs": list(refused.differs),
        "shape": list(entry.space.shape),
    }


def packed_masks(regions: Regions | None) -> dict[str, Any] | None:
    """The SRD masks on the token grid [T, H, W], row by row, eight cells a byte, the highest bit first."""
    if regions is None:
        return None
    edit, visible = regions.edit, regions.visible
    return {"grid": list(edit.shape), "edit": _packed(edit), "visible": _packed(visible)}


def _packed(mask: torch.Tensor) -> str:
    return base64.b64encode(np.packbits(mask.cpu().numpy().reshape(-1)).tobytes()).decode("ascii")
