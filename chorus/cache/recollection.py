"""Reads from a catalog that is being replaced how its entries were used; their files do not hold that."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..log import logger

log = logger(__name__)

# Of each version of the catalog: id, used, hits, saved, pinned.
_USES = (
    "SELECT id, used, hits, 0.0, 0 FROM entries",
    "SELECT id, used, hits, saved, pinned FROM listing",
)


@dataclass
class Recollection:
    """What could be read. version: the last change's number, 0 if unknown. uses: id → (used, hits, saved, pinned).

    days: (day, hits, seconds saved). policy: of eviction, by name.
    """

    version: int = 0
    uses: dict[str, tuple[float, int, float, int]] = field(default_factory=dict)
    hits: int = 0
    seconds_saved: float = 0.0
    days: list[tuple[str, int, float]] = field(default_factory=list)
    policy: str = ""


def recollect(path: Path, timeout: float) -> Recollection:
    """All that can be read of a catalog, in whatever state; what is unreadable is left out, without an error."""
    past = Recollection()
    if not path.exists():
        return past
    with closing(sqlite3.connect(path, timeout=timeout)) as db:
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        for statement in _USES:
            for entry_id, *values in _readable(db, statement):
                if _sound(values):
                    past.uses[entry_id] = (values[0], values[1], values[2], values[3])
        for usage in _readable(db, "SELECT hits, seconds_saved FROM usage"):
            if _sound(usage):
                past.hits, past.seconds_saved = usage
        past.days = [row for row in _readable(db, "SELECT * FROM days") if _sound(row[1:])]
        for (policy,) in _readable(db, "SELECT policy FROM eviction"):
            past.policy = str(policy)
        for statement in ("SELECT max(seq) FROM entries", "SELECT max(change) FROM tombstones"):
            for (number,) in _readable(db, statement):
                if _sound([number or 0]):
                    past.version = max(past.version, number or 0)
    return past


def _readable(db: sqlite3.Connection, statement: str) -> list[tuple]:
    """The rows before the first that SQLite cannot read; none where there is no such table."""
    rows = []
    try:
        for row in db.execute(statement):
            rows.append(row)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        log.debug("%s: %s", statement, error)
    return rows


def _sound(values) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 2**62 for value in values)
