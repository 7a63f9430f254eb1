"""Log lines cannot steer the terminal that shows them."""

from __future__ import annotations

import ast
import io
import logging
from pathlib import Path

from chorus.log import escaped, logger

CHECKOUT = Path(__file__).resolve().parents[2]
HOSTILE = "a \x1b]0;owned\x07 fox\r\nERROR forged \x9b31m\u202e\u2028\ud800 日本 é\x7f"


def test_what_would_steer_a_terminal_is_escaped_and_the_rest_stays() -> None:
    assert escaped(HOSTILE) == r"a \x1b]0;owned\x07 fox\r\nERROR forged \x9b31m\u202e\u2028\ud800 日本 é\x7f"


def test_no_line_of_the_log_has_a_control_character() -> None:
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    log = logger("chorus.test")
    log.addHandler(handler)
    try:
        logger("chorus.test").warning("%s: %s", "entry", HOSTILE)
        log.error(HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            log.exception("failed with %r", [HOSTILE])
    finally:
        log.removeHandler(handler)
    lines = shown.getvalue().splitlines()
    assert lines[0] == f"entry: {escaped(HOSTILE)}" and lines[1] == escaped(HOSTILE)
    assert "Traceback" in shown.getvalue()
    assert all(character.isprintable() for line in shown.getvalue().split("\n") for character in line)


def test_every_module_logs_through_it() -> None:
    for file in [*(CHECKOUT / "chorus").rglob("*.py"), *(CHECKOUT / "nodes").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                assert file.name == "log.py" or ast.unparse(node) == "logging.getLogger('psycopg.pool')", file
