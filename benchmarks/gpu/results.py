"""How the tasks write what they found."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(result: Mapping[str, Any], file: Path) -> None:
    """By atomic rename: whoever stops the machine finds the last whole state."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
