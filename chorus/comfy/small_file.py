"""Small JSON files that outlive a restart. A file is replaced as a whole, so that a reader never sees a part."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..cache import CacheUnavailable

_LARGEST = 2**16  # bytes; a larger file is not one of these


def read(file: Path) -> Any:
    """What the file holds; None if it does not exist or cannot be read."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        return json.loads(content) if len(content) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None


def write(file: Path, value: Any) -> None:
    """Make `value` the file's content. CacheUnavailable when the disk or its permissions forbid it."""
    new = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody has: the folder may be another program's, too.
        handle, new = tempfile.mkstemp(prefix=file.name, dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            opened.write(json.dumps(value) + "\n")
        os.replace(new, file)
    except OSError as error:
        with suppress(OSError):
            os.unlink(new)
        raise CacheUnavailable.of_disk(file, error) from error
