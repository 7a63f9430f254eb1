"""The cache of finished requests: entries, and where they are kept."""

from .entry import EVERYTHING, SORTS, CacheStats, Entry, Match, ModelStats, NewEntry, Query, Space
from .errors import CacheError, CacheUnavailable, EntryDamaged, EntryMissing, EntryTooLarge, VectorLengthMismatch
from .interface import Cache, every
from .local import LocalCache
from .write_behind import WriteBehind

__all__ = [
    "EVERYTHING",
    "SORTS",
    "Cache",
    "CacheError",
    "CacheStats",
    "CacheUnavailable",
    "Entry",
    "EntryDamaged",
    "EntryMissing",
    "EntryTooLarge",
    "LocalCache",
    "Match",
    "ModelStats",
    "NewEntry",
    "Query",
    "Space",
    "VectorLengthMismatch",
    "WriteBehind",
    "every",
]
