"""The cache of finished requests: entries, and where they are kept."""

from .entry import CacheStats, Entry, Match, NewEntry, Space
from .errors import CacheError, CacheUnavailable, EntryDamaged, EntryMissing, EntryTooLarge, VectorLengthMismatch
from .interface import Cache
from .local import LocalCache

__all__ = [
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
    "NewEntry",
    "Space",
    "VectorLengthMismatch",
]
