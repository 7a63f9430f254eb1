"""Real prompts on a real model: hits compared with cold runs, NIRVANA and fewer steps by CLIP score. Needs --server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .. import report
from ..pairs import Pair
from ..rivals import between, nirvana
from ..samples import Bench, of
from ..server import PROMPTS
from ..systems import CHORUS, COLD, EARLY_START, Request

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
        early = [bench.sample(p.target, EARLY_START, p.source) for p in pairs]
        costs = of(hits, "step_equivalents")
        rivals = {
            name: of([between(c, steps, taken(bench, p)) for p, c in zip(pairs, costs, strict=True)], "alignment")
            for name, taken in (("NIRVANA", _nirvana), ("fewer steps", _fewer))
        }
        for name, samples in (("cold", cold), ("early start", early), ("Chorus", hits)):
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


def _fewer(bench: Bench, pair: Pair) -> Callable[[int], dict]:
    return lambda steps: bench.sample(replace(pair.target, steps=steps))


def _nirvana(bench: Bench, pair: Pair) -> Callable[[int], dict]:
    total = pair.target.steps
    return lambda steps: (
        bench.sample(pair.target) if steps == total else bench.sample(pair.target, nirvana(total - steps), pair.source)
    )
