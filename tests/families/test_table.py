"""docs/models.md and the counts in the summary are what a run over all families gives."""

from __future__ import annotations

import pytest

from . import table
from .catalog import FAMILIES


@pytest.mark.parametrize("file", ["page", "summary"])
def test_what_is_written_about_the_families_is_what_was_tried(tried, file: str, pytestconfig) -> None:
    written = {"page": table.PAGE, "summary": table.SUMMARY}[file]
    found = getattr(table, file)([tried(family) for family in FAMILIES])
    if pytestconfig.getoption("--write-tables"):
        written.write_text(found, encoding="utf-8")
    given = written.read_text(encoding="utf-8") if written.exists() else ""
    assert given == found, f"{written.name} is out of date: {table.COMMAND}"
