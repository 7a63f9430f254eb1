"""What people are told: each sentence once, by a code that the pages know in every language."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chorus.cache import CacheUnavailable
from chorus.messages import TEXTS, Message, said_by, say, to_json

from .test_locales import CHECKOUT, flat, places, read


def said() -> Iterator[tuple[str, ast.Call]]:
    """(where, call) of every `say(…)` in the pack."""
    for file in [*(CHECKOUT / "chorus").rglob("*.py"), *(CHECKOUT / "nodes").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say":
                yield f"{file.relative_to(CHECKOUT)}:{node.lineno}", node


def test_every_message_said_has_a_text_and_all_its_values_and_none_is_left_over() -> None:
    calls = list(said())
    for where, call in calls:
        (code,) = call.args
        assert isinstance(code, ast.Constant) and code.value in TEXTS, f"{where}: no text for {ast.unparse(code)}"
        assert sorted(str(value.arg) for value in call.keywords) == places(TEXTS[code.value]), where
    assert {call.args[0].value for _, call in calls} == set(TEXTS)  # type: ignore[attr-defined]


def test_the_english_of_the_pages_is_the_table() -> None:
    assert dict(flat(read("en", "main")["chorus"]["said"])) == TEXTS  # that others have the same keys: test_locales


def test_messages_have_no_sentence_of_their_own_in_the_table() -> None:
    assert len(set(TEXTS.values())) == len(TEXTS)


def test_a_message_is_data_with_its_english_beside_it() -> None:
    error = CacheUnavailable(Path("/cache"), say("reason.locked", seconds=2.0), say("advice.tried_again"))
    message = say("lookup.unreadable", error=said_by(error))
    text = "the cache could not be read: The cache at /cache is unavailable: another process kept it locked for more "
    assert str(message) == text + "than 2 s. It is tried again with the next request."
    data = json.loads(json.dumps(message.to_json(), allow_nan=False))
    assert data["code"] == "lookup.unreadable" and data["text"] == str(message)
    inner = data["values"]["error"]
    assert (inner["code"], inner["values"]["place"]) == ("fault.unavailable", "/cache")
    assert inner["values"]["reason"]["values"] == {"seconds": 2.0}


def test_lists_of_messages_stay_lists() -> None:
    near = [say("miss.near", score=0.5, prompt="a {ball}", why=[say("differs.weights"), say("differs.task")])] * 2
    message = say("miss.nearest", nearest=near)
    each = "0.50 'a {ball}': other weights; other task"
    assert str(message) == f"no entry to start from; nearest: {each}; {each}"
    assert [one["values"]["score"] for one in to_json(message)["values"]["nearest"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (20_000, "20,000"), (0.05, "0.05"), (2.0, "2"), (1e5, "100,000"), ("1e5", "1e5")]
)
def test_numbers_in_english(value: object, text: str) -> None:
    assert str(say("reason.locked", seconds=value)) == f"another process kept it locked for more than {text} s"


def test_an_error_without_a_code_says_its_text() -> None:
    assert said_by(ValueError("as it is")) == "as it is"
    assert isinstance(said_by(CacheUnavailable("x", "y", say("advice.reopen"))), Message)


def test_placeholders_are_names_only() -> None:
    for code, text in TEXTS.items():
        assert re.sub(r"\{\w+\}", "", text).count("{") == 0, code
