"""The log of Chorus, whose lines cannot steer the terminal that shows them."""

from __future__ import annotations

import logging


def logger(name: str) -> logging.Logger:
    """The logger called `name`; what its lines hold of control characters is escaped.

    Prompts, file names and texts of a server come from others, and stand in log lines.
    """
    log = logging.getLogger(name)
    if not any(isinstance(known, _Escaping) for known in log.filters):
        log.addFilter(_Escaping())
    return log


def escaped(text: str) -> str:
    """`text` in one line, with every character that is not shown as itself as its escape, such as \\x1b or \\u202e."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class _Escaping(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = escaped(record.getMessage()), None
        if record.exc_info:  # a traceback has lines of its own, whose last is the error's text
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_text = "\n".join(map(escaped, text.split("\n")))
        return True
