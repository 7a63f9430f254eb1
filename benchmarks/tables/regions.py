"""SRD: cost and loss by the radii of the masks, and how well masks from recorded attention find the changed object."""

from __future__ import annotations

import numpy as np

from small_wan import scenes

from .. import report
from ..pairs import request
from ..prompts import edited
from ..samples import Bench, of
from ..systems import COLD, System

SEED = 71
STEPS = 20
K1, K2 = 6, 13
RADII = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 1))
CHANGED = ("colour", "shape")  # attributes of one object, so that there is a region to find


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by radii; the summary has the masks' intersection over union with the judge's object."""
    rng = np.random.default_rng(SEED)
    pairs = []
    for index in range(32 if full else 6):
        source = scenes.sample_caption(rng, held_out=True, template=0)
        target = edited(source, rng, CHANGED)
        first = 10_000 * SEED + 2 * index
        pairs.append((request(source, first, STEPS), request(target, first + 1, STEPS)))
    cold = of([bench.sample(target, COLD) for _, target in pairs], "alignment")
    rows = []
    settings: list[tuple[str, System]] = [
        (f"none, {k} steps skipped", System("full", k1=k, selective=False, method="early start"))
        for k in (K1, K1 + 2, K1 + 4)
    ]
    for edit, visible in RADII if full else ((0, 0), (1, 1)):
        system = System("Chorus", k1=K1, k2=K2, edit_dilation=edit, visible_dilation=visible, method="early start")
        settings.append((f"({edit}, {visible})", system))
    for name, system in settings:
        samples = [bench.sample(target, system, source) for source, target in pairs]
        shares = [np.mean(s["token_share"][1:]) if s["token_share"] else 1.0 for s in samples]
        rows.append(
            {
                "radii": name,
                "n": len(pairs),
                "share of tokens": report.estimate(shares),
                "step equivalents": report.estimate(of(samples, "step_equivalents")),
                "alignment loss": report.estimate(cold - of(samples, "alignment")),
                "seams": report.estimate(1000 * of(samples, "seams")),
                "details": report.estimate(of(samples, "details")),
            }
        )
    overlaps = [bench.overlap(target, source) for source, target in pairs]
    known = [o for o in overlaps if o is not None]
    return report.Result(
        name="regions",
        title=f"Selective steps {K1 + 2} to {K2} of 20, or more steps skipped (seams in thousandths)",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        summary={"mask_iou": report.estimate(known)},
    )
