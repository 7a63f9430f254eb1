"""What can go wrong in the cache, worded for the person at the screen.

Every error here means "treat this as a miss and show the message"; none of them should end a render.
"""

from __future__ import annotations

from pathlib import Path


class CacheError(Exception):
    """Base of all cache errors: a caller that catches this one can go on without the cache."""


class EntryMissing(CacheError):
    """The entry, or the tensor asked for, is not there (any more)."""

    def __init__(self, entry_id: str, reason: str = "it was evicted or forgotten"):
        super().__init__(entry_id, reason)
        self.entry_id = entry_id
        self.reason = reason

    def __str__(self) -> str:
        return f"Cache entry {self.entry_id} is not available: {self.reason}. The request counts as a miss."


class EntryDamaged(CacheError):
    """The entry's bytes are not the bytes that were stored; it has been quarantined."""

    def __init__(self, entry_id: str, path: Path | str, reason: str):
        super().__init__(entry_id, path, reason)
        self.entry_id = entry_id
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"Cache entry {self.entry_id} is damaged ({self.reason}; file {self.path}). It is in quarantine "
            "and will not be used again. If this happens often, check the disk and the memory."
        )


class EntryTooLarge(CacheError):
    """The entry alone is larger than the whole cache may be. Sizes in bytes."""

    def __init__(self, entry_bytes: int, max_bytes: int):
        super().__init__(entry_bytes, max_bytes)
        self.entry_bytes = entry_bytes
        self.max_bytes = max_bytes

    def __str__(self) -> str:
        return (
            f"An entry of {self.entry_bytes:,} bytes does not fit in a cache of {self.max_bytes:,} bytes. "
            "Raise the cache's size limit, or store fewer or smaller checkpoints."
        )


class VectorLengthMismatch(CacheError):
    """A vector's length is not that of its embedder's other vectors, so no score can be given."""

    def __init__(self, embedder: str, length: int, kept: int):
        super().__init__(embedder, length, kept)
        self.embedder = embedder
        self.length = length
        self.kept = kept

    def __str__(self) -> str:
        return (
            f"The vectors kept for embedder {self.embedder!r} have {self.kept} numbers, this one has {self.length}. "
            "Give another embedder another name, or clear the cache."
        )


class CacheUnavailable(CacheError):
    """The cache cannot be read or written now: locked, disk full, no permission, made by a newer Chorus."""

    def __init__(self, path: Path | str, reason: str, advice: str):
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"The cache at {self.path} is unavailable: {self.reason}. {self.advice}"
