"""What can go wrong in the cache, worded for the person at the screen.

Every error here means "treat this as a miss and show the message"; none of them should end a render.
"""

from __future__ import annotations

import errno
from pathlib import Path

from ..messages import Message, say

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class CacheError(Exception):
    """Base of all cache errors: a caller that catches this one can go on without the cache."""


class SaidError(CacheError):
    """A cache error whose text is a message."""

    @property
    def said(self) -> Message:
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.said)


class EntryMissing(SaidError):
    """The entry, or the tensor asked for, is not there (any more)."""

    def __init__(self, entry_id: str, reason: Message | None = None):
        reason = reason or say("reason.gone")
        super().__init__(entry_id, reason)
        self.entry_id = entry_id
        self.reason = reason

    @property
    def said(self) -> Message:
        return say("fault.missing", entry=self.entry_id, reason=self.reason)


class EntryDamaged(SaidError):
    """The entry's bytes are not the bytes that were stored; it has been quarantined."""

    def __init__(self, entry_id: str, path: Path | str, reason: Message | str):
        super().__init__(entry_id, path, reason)
        self.entry_id = entry_id
        self.path = path
        self.reason = reason

    @property
    def said(self) -> Message:
        return say("fault.damaged", entry=self.entry_id, reason=self.reason, file=self.path)


class EntryTooLarge(SaidError):
    """The entry alone is larger than the whole cache may be. Sizes in bytes."""

    def __init__(self, entry_bytes: int, max_bytes: int):
        super().__init__(entry_bytes, max_bytes)
        self.entry_bytes = entry_bytes
        self.max_bytes = max_bytes

    @property
    def said(self) -> Message:
        return say("fault.too_large", bytes=self.entry_bytes, limit=self.max_bytes)


class VectorLengthMismatch(SaidError):
    """A vector's length is not that of its embedder's other vectors, so no score can be given."""

    def __init__(self, embedder: str, length: int, kept: int):
        super().__init__(embedder, length, kept)
        self.embedder = embedder
        self.length = length
        self.kept = kept

    @property
    def said(self) -> Message:
        return say("fault.vectors", embedder=self.embedder, kept=self.kept, length=self.length)


class CacheUnavailable(SaidError):
    """The cache cannot be read or written now: locked, disk full, no permission, made by a newer Chorus."""

    def __init__(self, path: Path | str, reason: Message | str, advice: Message):
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    @classmethod
    def of_disk(cls, path: Path | str, error: OSError) -> CacheUnavailable:
        """From an OSError. A full disk and missing permissions have messages of their own."""
        if error.errno in _FULL:
            return cls(path, say("reason.disk_full", error=error), say("advice.space"))
        if error.errno in _FORBIDDEN:
            return cls(path, say("reason.not_permitted", error=error), say("advice.permissions"))
        return cls(path, str(error), say("advice.disk"))

    @property
    def said(self) -> Message:
        return say("fault.unavailable", place=self.path, reason=self.reason, advice=self.advice)
