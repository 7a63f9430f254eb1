"""Can the benchmark show a loss? What cold runs lose with half of their steps.

If they lost nothing, "fewer steps" would beat every cache, and no comparison on this model would mean anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .. import metrics, report
from ..pairs import cold_requests
from ..samples import Bench, of
from ..systems import Request

SEED = 41
OTHER_TAKE = 500_000  # added to a seed: the reference is cold videos of the same prompts, with other noise


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by step count: the loss from the full number to half of it, of alignment absolute, of the rest relative."""
    rows = []
    for steps, count in ((50, 32), (20, 96), (4, 128)) if full else ((20, 24), (4, 48)):
        requests = cold_requests(count, SEED, steps)
        whole = [bench.sample(r) for r in requests]
        half = [bench.sample(_with_steps(r, steps // 2)) for r in requests]
        reference = [bench.sample(Request(**{**vars(r), "seed": r.seed + OTHER_TAKE})) for r in requests]
        rows.append(
            {
                "steps": f"{steps} → {steps // 2}",
                "n": count,
                "alignment": report.estimate(of(whole, "alignment")),
                "alignment loss": report.combined(_difference, of(whole, "alignment"), of(half, "alignment")),
                "details loss": _relative(whole, half, "details"),
                "sharpness loss": _relative(whole, half, "sharpness"),
                "flicker rise": _relative(whole, half, "flicker", -1),
                "Fréchet distance": _distances(lambda a, b, c: metrics.frechet_distance(a, c), whole, half, reference),
                "its rise": _distances(_rise, whole, half, reference),
            }
        )
    return report.Result(
        name="can_tell",
        title="What cold runs lose at half the steps",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
    )


def _with_steps(request: Request, steps: int) -> Request:
    return Request(**{**vars(request), "steps": steps})


def _difference(whole: np.ndarray, half: np.ndarray) -> float:
    return float(whole.mean() - half.mean())


def _relative(whole: Sequence[dict], half: Sequence[dict], name: str, sign: int = 1) -> dict:
    return report.combined(lambda a, b: float(sign * (1 - b.mean() / a.mean())), of(whole, name), of(half, name))


def _rise(whole: np.ndarray, half: np.ndarray, reference: np.ndarray) -> float:
    """By what factor the distance grows at half the steps, less 1."""
    return metrics.frechet_distance(half, reference) / metrics.frechet_distance(whole, reference) - 1


def _distances(statistic: Callable[..., float], *samples: Sequence[dict]) -> dict:
    """A statistic of Fréchet distances. Its spread is that over halves of the requests, drawn without doubles:

    half a finite set varies as the set itself does, while the bootstrap's doubles would raise the distance.
    """
    features = [np.array([s["features"] for s in part]) for part in samples]
    value, count = statistic(*features), len(features[0])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(100):
        rows = rng.permutation(count)[: count // 2]
        drawn.append(statistic(*(f[rows] for f in features)))
    half = 1.96 * float(np.std(drawn))
    return {"mean": value, "low": value - half, "high": value + half, "n": count}
