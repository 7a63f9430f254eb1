"""The main table: a stream of requests like VidProM's, under every system, with an empty and a filled cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import metrics, report
from ..prompts import stream, vidprom
from ..samples import Bench, of
from ..systems import CHORUS, COLD, EARLY_START
from .locality import EASYCACHE, nirvana_table, ours, run_stream, serve, threshold

SEED = 101
SETTINGS = {4: (96, False), 20: (32, True), 50: (24, True)}  # requests, and whether EasyCache has steps to skip


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps, earlier requests, system, alone and with the host's EasyCache."""
    rows: list[dict] = []
    summary: dict = {}
    for steps, (count, many) in SETTINGS.items() if full else ((4, (40, False)),):
        for warm in (0, 1000) if full else (100,):
            captions = [r.caption for r in stream(vidprom(), count + warm, SEED, warm=warm)]
            asked = run_stream(captions, SEED + warm, steps, threshold(), warm)
            for cached in (False, True) if many and warm else (False,):
                extra = EASYCACHE if cached else None
                cold_system = replace(COLD, easycache=extra)
                systems = {
                    "cold": None,
                    "NIRVANA": nirvana_table(steps, extra),
                    "early start": ours(replace(EARLY_START, easycache=extra)),
                    "Chorus": ours(replace(CHORUS, easycache=extra)),
                }
                plain = serve(bench, asked, None)
                for name, choose in systems.items():
                    served = serve(bench, asked, choose, cold_system)
                    rows.append(_row(steps, warm, name + (" + EasyCache" if cached else ""), served, plain))
                    if steps == 50 and cached and name == "Chorus":
                        summary |= _bars(served, plain)
    return report.Result(
        name="main",
        title="A stream of requests under every system",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        summary=summary,
    )


def _row(steps: int, warm: int, name: str, served: list[dict], plain: list[dict]) -> dict:
    hits = np.array([s["hit"] for s in served], bool)
    cost = of(served, "step_equivalents")
    reference = np.array([s["features"] for s in plain])
    distance = float("nan") if served is plain else metrics.frechet_distance([s["features"] for s in served], reference)
    return {
        "steps": steps,
        "earlier": warm,
        "system": name,
        "n": len(served),
        "alignment": report.estimate(of(served, "alignment")),
        "alignment loss": report.estimate(of(plain, "alignment") - of(served, "alignment")),
        "details": report.estimate(of(served, "details")),
        "Fréchet distance to cold": distance,
        "step equivalents": report.estimate(cost),
        "speedup": report.combined(lambda c: float(steps / c.mean()), cost),
        "hit speedup": report.combined(lambda c: float(steps / c.mean()), cost[hits]) if hits.any() else "",
        "hit rate": report.estimate(hits.astype(float)),
    }


def _bars(served: list[dict], plain: list[dict]) -> dict:
    hits = np.array([s["hit"] for s in served], bool)
    loss = of(plain, "alignment") - of(served, "alignment")
    return {
        "hit_speedup_50_easycache": report.combined(
            lambda c: float(50 / c.mean()), of(served, "step_equivalents")[hits]
        ),
        "alignment_loss_50_easycache": report.estimate(loss[hits]),
    }
