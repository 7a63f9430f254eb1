"""Real prompts on a real model: hits compared with cold runs, NIRVANA and fewer steps by CLIP score. Needs --server."""

from __future__ import annotations

from .. import report
from ..pairs import Pair
from ..rivals import at_cost
from ..samples import Bench, of
from ..server import PROMPTS
from ..systems import CHORUS, COLD, STAGE_1, Request

SEED = 131


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps and system; `seconds` is the whole graph with the transfer of the frames."""
    rows = []
    for steps in (4, 20, 50) if full else (4,):
        pairs = [
            Pair(Request(a, SEED + 2 * i, steps), Request(b, SEED + 2 * i + 1, steps), 0.0)
            for i, (a, b) in enumerate(PROMPTS if full else PROMPTS[:2])
        ]
        cold = [bench.sample(p.target, COLD) for p in pairs]
        hits = [bench.sample(p.target, CHORUS, p.source) for p in pairs]
        stage_1 = [bench.sample(p.target, STAGE_1, p.source) for p in pairs]
        costs = of(hits, "step_equivalents")
        rivals = {
            name: of([at_cost(bench, p, c, name == "NIRVANA") for p, c in zip(pairs, costs, strict=True)], "alignment")
            for name in ("NIRVANA", "fewer steps")
        }
        for name, samples in (("cold", cold), ("stage 1 only", stage_1), ("Chorus", hits)):
            rows.append(
                {
                    "steps": steps,
                    "system": name,
                    "n": len(samples),
                    "alignment": report.estimate(of(samples, "alignment")),
                    "step equivalents": report.estimate(of(samples, "step_equivalents")),
                    "sharpness": report.estimate(of(samples, "sharpness")),
                    "flicker": report.estimate(of(samples, "flicker")),
                    "seconds": report.estimate(of(samples, "seconds")),
                }
            )
        for name, values in rivals.items():
            rows.append(
                {
                    "steps": steps,
                    "system": f"{name} at Chorus's cost",
                    "n": len(values),
                    "alignment": report.estimate(values),
                    "step equivalents": report.estimate(costs),
                    "sharpness": "",
                    "flicker": "",
                    "seconds": "",
                }
            )
    return report.Result("real", "Real prompts on a server's model", list(rows[0]), rows, seeds=[SEED])
