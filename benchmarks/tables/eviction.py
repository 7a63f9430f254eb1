"""Which entries to evict: hits and saved steps by policy of `LocalCache`, at several capacities.

The requests, the capacities and what a hit saves are those of the table `capacity`; a step counts as a second. `lru`
evicts the least recently used, `lcbfu` is NIRVANA's rule for whole entries, `worth` weighs saved time, size, age and
redundancy (docs/cache.md). The seeds differ from those with which the policies were compared during development.
"""

from __future__ import annotations

import numpy as np

from chorus.cache.eviction import POLICIES

from .. import report
from ..prompts import stream, vectors, vidprom, with_repeats
from ..samples import Bench
from .capacity import REPEATS, STYLE, proportion, serve_with_chorus


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows for every policy at every capacity, on the same streams. Needs no sampling: `bench` is not asked.

    A row's hit rate comes with Wilson's 95 % interval, its saved share of all steps with a bootstrap one; both take
    requests for independent. Policies see the same requests, so their difference is surer than that.
    """
    seeds = (3, 4, 5) if full else (3,)
    count, capacities = (800, (25, 50, 100)) if full else (160, (10, 40))
    streams = []
    for recent in (False, True):
        for seed in seeds:
            requests = with_repeats(stream(vidprom(), count, seed, style=STYLE), REPEATS, seed, recent=recent)
            streams.append((requests, vectors([request.caption for request in requests])))
    rows = []
    summary: dict[str, dict] = {policy: {} for policy in POLICIES}
    for capacity in capacities:
        saved = {
            policy: np.concatenate([serve_with_chorus(*one, capacity, policy) for one in streams])
            for policy in POLICIES
        }
        for policy, shares in saved.items():
            summary[policy][str(capacity)] = proportion(shares > 0)
            rows.append(
                {
                    "capacity": capacity,
                    "policy": policy,
                    "n": len(shares),
                    "hit rate": summary[policy][str(capacity)],
                    "steps saved": report.estimate(shares.tolist()),
                    "saved beyond lru": report.combined(lambda a, b: float((a - b).mean()), shares, saved["lru"]),
                }
            )
    return report.Result(
        "eviction",
        "Eviction policies, capacity in cold runs",
        list(rows[0]),
        rows,
        seeds,
        {"eviction_hit_rate": summary},
        summary_file="cache.json",
    )
