"""The techniques of this pack, in the order in which a run asks them."""

from __future__ import annotations

from . import amplify, look_and_join, record, resume, selective
from .base import Technique

ORDER: dict[str, type[Technique]] = {
    look_and_join.NAME: look_and_join.LookAndJoin,
    resume.NAME: resume.Resume,
    selective.NAME: selective.Selective,
    amplify.NAME: amplify.Amplify,
    record.NAME: record.Record,
}
"""By name. A later one sees the path as the earlier ones have left it."""
