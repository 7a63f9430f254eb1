"""Chains of edits: each request edits the one before and is looked up in what the cache holds by then."""

from __future__ import annotations

import hashlib
import uuid

import numpy as np

from small_wan import scenes

from .. import report
from ..pairs import request
from ..prompts import edited
from ..samples import Bench, code_digest
from ..systems import COLD, Request, System

SEED = 81
DEPTHS = (1, 2, 4, 8)
STEPS = 20
CHAINED = System("Chorus", calibrated_threshold=True)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by depth: the loss against the same request sampled cold, and how often it was a hit."""
    chains = 16 if full else 3
    made = [_chain(bench, index) for index in range(chains)]
    rows = []
    losses = {}
    for depth in (0, *DEPTHS):
        losses[depth] = [c["cold"][depth] - c["alignment"][depth] for c in made]
        rows.append(
            {
                "edits before": depth,
                "n": chains,
                "hits": sum(c["outcome"][depth] == "hit" for c in made),
                "alignment": report.estimate([c["alignment"][depth] for c in made]),
                "alignment loss": report.estimate(losses[depth]),
                "step equivalents": report.estimate([c["step_equivalents"][depth] for c in made]),
            }
        )
    extra = report.combined(lambda eight, one: float(eight.mean() - one.mean()), losses[8], losses[1])
    return report.Result(
        name="chains",
        title="Chains of edits (20 steps)",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        summary={"chain8_extra_loss": extra},
    )


def _chain(bench: Bench, index: int) -> dict:
    """One cache, DEPTHS[-1] edits in a row, every request read and written."""
    code = code_digest(bench.subject, Request("", 0))
    key = hashlib.sha256(f"{SEED} {index} {code}".encode()).hexdigest()[:24]

    def make() -> dict:
        rng = np.random.default_rng([SEED, index])
        caption, cache = scenes.sample_caption(rng, held_out=True, template=0), f"chain-{uuid.uuid4().hex[:12]}"
        kept: dict[str, list] = {"alignment": [], "cold": [], "outcome": [], "step_equivalents": []}
        for depth in range(DEPTHS[-1] + 1):
            asked = request(caption, 10_000 * SEED + 100 * index + depth, STEPS)
            sample = bench.live(asked, CHAINED, cache)
            kept["cold"].append(bench.sample(asked, COLD)["alignment"])
            for name in ("alignment", "outcome", "step_equivalents"):
                kept[name].append(sample[name])
            caption = edited(caption, rng)
        return kept

    return bench.once(f"chain {key}", make)
