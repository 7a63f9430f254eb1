"""One source, or the background's from one and the object's from another (FlexCache's idea), where the object is known."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from small_wan import judge, scenes

from .. import report
from ..pairs import TUNED, request
from ..prompts import edited
from ..samples import Bench, of
from ..systems import System

STEPS, K1 = 20, 10


def measure(bench: Bench, full: bool) -> report.Result:
    rng = np.random.default_rng(TUNED)
    triples = []
    for index in range(32 if full else 6):
        target = scenes.sample_caption(rng, held_out=True, template=0)
        ground = edited(edited(target, rng, ["colour"]), rng, ["shape"])
        thing = edited(target, rng, ["background"])
        triples.append([request(c, 50_000 * TUNED + 3 * index + i, STEPS) for i, c in enumerate((target, ground, thing))])
    cold = of([bench.sample(t[0]) for t in triples], "alignment")
    rows = []
    for name, start in (("as calibrated", None), ("at K1", 1.0)):
        for kind in ("source of the background", "source of the object", "both"):
            samples = []
            for target, ground, thing in triples:
                experiment = ""
                if kind == "both":
                    frames, _, _ = bench._run(thing, System("source", reads=False), None, "off")
                    mask = torch.from_numpy(judge.main_mask(frames, thing.caption))
                    second = bench.cache_of(thing)
                    file = str(bench._kept / f"{second}.pt")
                    torch.save(mask, file)
                    experiment = f"{second}|{file}"
                system = System("stage 1", k1=K1, start=start, selective=False, strength=0.0, experiment=experiment)
                samples.append(bench.sample(target, system, thing if kind == "source of the object" else ground))
            rows.append({"state taken": name, "source": kind, "n": len(samples),
                "alignment loss": report.estimate(cold - of(samples, "alignment")),
                "details": report.estimate(of(samples, "details")),
                "seams": report.estimate(1000 * of(samples, "seams")),
                "error": report.estimate(of(samples, "error"))})
    return report.Result(name="two_sources", title="One source or two", columns=list(rows[0]), rows=rows, seeds=[TUNED])
