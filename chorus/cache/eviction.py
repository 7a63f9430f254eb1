"""Which entries are deleted first when room is needed: those with the lowest priority, by an index of the catalog.

An entry's priority is computed when it is added, when it is hit, and when its neighbour changes. Of equal ones the
least recently used is deleted first. No priority depends on the system clock, which may jump: uses are counted instead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a cache may keep: bytes of its entries' files, and entries (None: as many as fit)."""

    bytes: int
    entries: int | None = None


# From this cosine on to a source that was added later, a source is redundant, and at 1 fully so: the newer of two equal
# sources serves all requests. Chosen here; the default K1 changes little above it.
ALIKE = 0.9

# What an entry may still save, in seconds. A source: what it saved so far, and half of its own run, about what one hit
# saves, less what its neighbour would save as well. A hit's entry serves identical requests only: a twentieth of it.
_WORTH = f"""(CASE is_source
    WHEN 1 THEN (saved + seconds / 2) * (1 - max(0, likeness - {ALIKE}) / (1 - {ALIKE}))
    ELSE seconds / 20 END)"""

# Name → priority as SQL over `listing`. clock: the priority of the last evicted entry when this one was last used.
POLICIES: dict[str, str] = {
    # Worth per byte, plus a clock by which unused entries age (Greedy-Dual-Size-Frequency: Cherkasova,
    # HPL-98-69R1). In seconds per gigabyte.
    "worth": f"clock + 1e9 * {_WORTH} / max(bytes, 1)",
    # Least recently used: the number of the last use.
    "lru": "tick",
    # NIRVANA's least computational benefit and frequency used (arXiv 2312.04429), of whole entries: an entry's benefit
    # is the time its run took.
    "lcbfu": "(hits + 1) * seconds",
}
DEFAULT = "worth"


def checked(policy: str) -> str:
    """The name of a policy, or "" for the default. ValueError names those there are."""
    if policy and policy not in POLICIES:
        raise ValueError(f"eviction policy {policy!r}: expected one of {', '.join(POLICIES)}")
    return policy


def priority(policy: str) -> str:
    """The SQL of a policy; the default's for one that only a newer Chorus knows."""
    return POLICIES.get(policy, POLICIES[DEFAULT])
