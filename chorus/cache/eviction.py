"""Which entries go first when room is needed: a priority each, kept in an index of the catalog.

An entry's priority is computed when it comes and when it is hit, never in between, and the lowest goes first; of
equals the least recently used. No priority depends on the wall clock, which may jump: time is told by counting uses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a cache may keep: bytes of its entries' files, and entries (None: as many as fit)."""

    bytes: int
    entries: int | None = None


# Name → priority as SQL over `listing`, with :clock, the priority of the last one that was evicted.
POLICIES: dict[str, str] = {
    # Least recently used: the number of the last use.
    "lru": "tick",
}
DEFAULT = "lru"


def checked(policy: str) -> str:
    """The name of a policy, or "" for the default. ValueError names those there are."""
    if policy and policy not in POLICIES:
        raise ValueError(f"eviction policy {policy!r}: expected one of {', '.join(POLICIES)}")
    return policy


def priority(policy: str) -> str:
    """The SQL of a policy; the default's for one that only a newer Chorus knows."""
    return POLICIES.get(policy, POLICIES[DEFAULT])
