"""Long prompts in windows that a text encoder of limited context can take."""

from __future__ import annotations

import re
from collections.abc import Callable

# Where a prompt may be cut, best first: after sentences, clauses, words, characters. All match between
# characters only, so the parts put together are the prompt.
_CUTS = (
    re.compile(r"(?<=[.!?]\s)|(?<=[。！？\n])"),
    re.compile(r"(?<=[,;:]\s)|(?<=[，；：、])"),
    re.compile(r"(?<=\s)(?=\S)"),
    re.compile(r"(?<=.)(?=.)", re.DOTALL),
)


def split_prompt(prompt: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """Cut a prompt in windows of at most `limit` tokens; put together they are the prompt.

    `count` gives the number of tokens of a text. A single character over the limit stays whole.
    """
    windows: list[str] = []
    for part in _parts(prompt, limit, count, 0):
        if windows and count(windows[-1] + part) <= limit:
            windows[-1] += part
        else:
            windows.append(part)
    return windows


def _parts(text: str, limit: int, count: Callable[[str], int], level: int) -> list[str]:
    """The text in parts within the limit, cut as coarsely as that allows."""
    if level == len(_CUTS) or count(text) <= limit:
        return [text]
    return [part for piece in _CUTS[level].split(text) if piece for part in _parts(piece, limit, count, level + 1)]
