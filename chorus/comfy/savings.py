"""The time that a run would have taken without the cache, from the runs in full that the cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from ..cache import Cache, CacheError, Entry, Query, Space
from .sampling.finished import Report

_LATEST = 64  # cold runs looked at; older ones may have run on other hardware


@dataclass(frozen=True)
class ColdTime:
    """Sampling time of a request computed in full, in seconds.

    runs: how many cold runs of the same space, sampler and number of steps it was measured on; 0: an estimate from
    runs with other numbers of steps, or from this run's own pace.
    """

    seconds: float
    runs: int


def cold_time(cache: Cache, space: Space, sampler: str, report: Report) -> ColdTime | None:
    """The time that the request of `report` would have taken in full; None if it is not known. Raises no CacheError."""
    try:
        known = cache.entries(_LATEST, query=Query(weights=space.weights, shape=space.shape, source=True))
    except CacheError:
        known = []
    cold = [e for e in known if e.space == space and e.settings.get("sampler") == sampler and e.seconds > 0]
    same = [e.seconds for e in cold if _steps(e) == report.steps]
    if same:
        return ColdTime(median(same), len(same))
    if cold:
        return ColdTime(report.steps * median(e.seconds / _steps(e) for e in cold), 0)
    if report.step_equivalents > 0:
        return ColdTime(report.sampling_s / report.step_equivalents * report.steps, 0)
    return None


def _steps(entry: Entry) -> int:
    return max(1, len(entry.sigmas) - 1)
