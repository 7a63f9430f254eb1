"""Wall time of hits relative to their limit, step equivalents × a cold step, on a grid where attention dominates."""

from __future__ import annotations

import statistics

import numpy as np

from small_wan import scenes

from .. import report
from ..prompts import edited
from ..samples import Bench
from ..systems import Request, System

SEED = 111
SIZE = 416  # pixels a side: 2704 tokens, of which attention costs about twice what the matrices do
STEPS = 8


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by variant, timed in turns within one run; the model was not trained at this size, which time ignores."""
    rng = np.random.default_rng(SEED)
    source_caption = scenes.sample_caption(rng, held_out=True, two_objects=0.0, template=0)
    target_caption = edited(source_caption, rng, ("colour",))

    def asked(caption: scenes.Caption, seed: int) -> Request:
        return Request(caption.text, seed, STEPS, size=SIZE)

    source = asked(source_caption, SEED)
    variants = {
        "stage 1": System("stage 1 only", k1=2, selective=False, strength=0.0, method="early start"),
        "stage 1 + TGAA": System("stage 1 + TGAA", k1=2, selective=False, method="early start"),
        "early start": System("early start", k1=2, k2=6, edit_dilation=0, visible_dilation=1, method="early start"),
        "Chorus": System("Chorus", edit_dilation=0, visible_dilation=0),
    }
    cold_runs: list[dict] = []
    misses: list[dict] = []
    hits: dict[str, list[dict]] = {name: [] for name in variants}
    bench.timed(source, System("warm-up", reads=False), None)
    for turn in range(6 if full else 2):
        target = asked(target_caption, SEED + 10 + turn)
        cold_runs.append(bench.timed(target, System("cold", reads=False), None))
        misses.append(bench.timed(target, System("miss", calibrated_threshold=True), None))
        for name, system in variants.items():
            hits[name].append(bench.timed(target, system, source))
    ratios = {
        name: [_over_limit(hit, cold) for hit, cold in zip(found, cold_runs, strict=True)]
        for name, found in hits.items()
    }
    rows = [
        {
            "variant": name,
            "n": len(found),
            "step equivalents": statistics.mean(h["step_equivalents"] for h in found),
            "share of tokens": statistics.mean([x for h in found for x in h["token_share"]] or [1.0]),
            "graph, s": report.estimate([h["seconds"] for h in found]),
            "of it Chorus, s": report.estimate([h["chorus_s"] for h in found]),
            "wall / limit": report.estimate(ratios[name]),
        }
        for name, found in hits.items()
    ]
    miss = [m["seconds"] / c["seconds"] for m, c in zip(misses, cold_runs, strict=True)]
    for name, found in (("cold", cold_runs), ("miss, looked up and stored", misses)):
        rows.append(
            {
                "variant": name,
                "n": len(found),
                "step equivalents": float(STEPS),
                "share of tokens": 1.0,
                "graph, s": report.estimate([f["seconds"] for f in found]),
                "of it Chorus, s": report.estimate([f.get("chorus_s") or 0.0 for f in found]),
                "wall / limit": report.estimate(miss) if found is misses else 1.0,
            }
        )
    return report.Result(
        name="wall",
        title=f"Wall time of hits against their limit ({SIZE} × {SIZE}, {STEPS} steps)",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        summary={
            "wall_over_limit": report.estimate(ratios["Chorus"]),
            "low_locality_wall_ratio": report.estimate(miss),
        },
    )


def _over_limit(hit: dict, cold: dict) -> float:
    """What a hit's sampling took beside what Chorus reports of itself, over step equivalents × a cold step.

    What the graph does besides sampling, decoding above all, is the same in both and taken off.
    """
    besides = cold["seconds"] - cold["sampler_seconds"]
    limit = hit["step_equivalents"] * cold["sampler_seconds"] / STEPS
    return float((hit["seconds"] - besides - hit["chorus_s"]) / limit)
