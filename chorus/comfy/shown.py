"""What the pages are given to show of a plan and its run: plain data, and sentences in English.

Beside each sentence, under its name in `said`, lies the message it comes from, so that a page can translate it.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch

from ..cache import Entry
from ..messages import Message, to_json
from ..reuse.plan import Plan, Refused
from .sampling.finished import Report
from .techniques.selective import regions_of


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


def run_figures(plan: Plan, report: Report, stored: Message) -> dict[str, Any]:
    """The look-up's answer with what became of it; `report` has the last word where they differ.

    stored: what became of storing it.
    """
    return (
        plan_figures(plan)
        | report.figures()
        | {
            "stored": str(stored),
            "said": {
                "reason": to_json(report.reason),
                "notes": to_json(tuple(report.notes)),
                "stored": to_json(stored),
            },
            "masks": _masks(plan) if report.token_share else None,
        }
    )


def unrun_figures(plan: Plan, why: Message) -> dict[str, Any]:
    """The look-up's answer where no run came of it that could be stored."""
    return plan_figures(plan) | {"outcome": "bypassed", "reason": str(why), "said": {"reason": why.to_json()}}


def _refused(refused: Refused) -> dict[str, Any]:
    entry = refused.entry
    return entry_figures(entry) | {
        "score": refused.score,
        "differs": list(refused.differs),
        "shape": list(entry.space.shape),
    }


def _masks(plan: Plan) -> dict[str, Any] | None:
    """The SRD masks on the token grid [T, H, W], row by row, eight cells a byte, the highest bit first."""
    regions = regions_of(plan)
    if regions is None:
        return None
    edit, visible = regions.edit, regions.visible
    return {"grid": list(edit.shape), "edit": _packed(edit), "visible": _packed(visible)}


def _packed(mask: torch.Tensor) -> str:
    return base64.b64encode(np.packbits(mask.cpu().numpy().reshape(-1)).tobytes()).decode("ascii")
