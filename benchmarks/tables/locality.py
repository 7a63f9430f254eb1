"""Streams of requests: the mean over all of them, at five levels of similarity and at VidProM's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from chorus.reuse.calibration import calibration_of

from .. import report
from ..pairs import Pair, request
from ..prompts import locality, stream, vectors
from ..rivals import nirvana
from ..samples import Bench, of
from ..systems import CHORUS, COLD, Request, System

SEED = 91
LEVELS = (0.60, 0.70, 0.75, 0.80, 0.90)
NIRVANA_TABLE = ((0.95, 0.5), (0.90, 0.4), (0.85, 0.3), (0.75, 0.2), (0.65, 0.1))  # score above → share skipped
EASYCACHE = 0.05  # reuse threshold of the paper that it comes from; the host's default is 0.2
Choice = Callable[[Pair], System | None]  # None: a miss


@dataclass(frozen=True)
class Step:
    """One request of a stream and the earlier cold one that is most like it."""

    target: Request
    nearest: Request | None
    score: float


def threshold() -> float:
    """The calibrated score below which Chorus does not reuse."""
    return calibration_of("conditioning").threshold


def run_stream(captions: list, seed: int, steps: int, lowest: float, warm: int) -> list[Step]:
    """The stream after its first `warm` requests; who serves whom follows from the scores alone.

    A request at or above `lowest` of a cold one is a hit and no source for later ones, as in the product. The same
    prompt again is another take, which is sampled cold.
    """
    points = vectors(captions)
    requests = [request(c, 10_000 * seed + i, steps) for i, c in enumerate(captions)]
    cold: list[int] = []
    found = []
    for index, asked in enumerate(requests):
        best, score = None, -1.0
        if cold:
            scores = points[cold] @ points[index]
            score = float(scores.max())
            best = requests[cold[int(scores.argmax())]]
        if best is None or score < lowest or best.prompt == asked.prompt:
            cold.append(index)
        if index >= warm:
            found.append(Step(asked, best, score))
    return found


def ours(system: System) -> Choice:
    """Hits at and above the calibrated threshold."""
    return lambda pair: system if pair.score >= threshold() else None


def nirvana_table(steps: int, easycache: float | None = None) -> Choice:
    """NIRVANA's own table of K."""

    def choose(pair: Pair) -> System | None:
        shares = [share for least, share in NIRVANA_TABLE if pair.score > least]
        k = round(shares[0] * steps) if shares else 0
        return replace(nirvana(k), easycache=easycache) if k else None

    return choose


def serve(bench: Bench, steps: list[Step], choose: Choice | None, cold: System = COLD) -> list[dict]:
    """Every request of a stream under one system; misses are sampled cold."""
    served = []
    for step in steps:
        system = None
        if choose is not None and step.nearest is not None and step.nearest.prompt != step.target.prompt:
            system = choose(Pair(step.nearest, step.target, step.score))
        hit = system is not None
        sample = bench.sample(step.target, system or cold, step.nearest if hit else None)
        served.append(sample | {"hit": hit})
    return served


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by level: hit rate, alignment against cold, and cost, over all requests of the stream."""
    rows, summary = [], {}
    steps, count, warm = (20, 32, 200) if full else (4, 24, 100)
    for level in LEVELS if full else (0.60, 0.75, 0.90):
        made = stream(locality(level), count + warm, SEED, warm=warm)
        asked = run_stream([r.caption for r in made], SEED + round(100 * level), steps, threshold(), warm)
        cold = serve(bench, asked, None)
        hits = serve(bench, asked, ours(CHORUS))
        delta = of(hits, "alignment") - of(cold, "alignment")
        rows.append(
            {
                "mean similarity": level,
                "achieved": float(np.mean([r.similarity for r in made[warm:]])),
                "n": count,
                "hit rate": report.estimate(of(hits, "hit")),
                "alignment": report.estimate(of(hits, "alignment")),
                "against cold": report.estimate(delta),
                "speedup in step equivalents": report.combined(
                    lambda ours: float(steps / ours.mean()), of(hits, "step_equivalents")
                ),
            }
        )
        if level == min(LEVELS):
            summary["low_locality_alignment_delta"] = report.estimate(delta)
    return report.Result(
        name="locality",
        title=f"Likeness of the stream ({steps} steps, {warm} earlier requests)",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
        summary=summary,
    )
