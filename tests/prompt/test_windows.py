from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chorus.prompt.windows import split_prompt


def count(text: str) -> int:
    return len(text.split())


def test_a_prompt_within_the_limit_is_one_window():
    assert split_prompt("A cat. A dog.", 4, count) == ["A cat. A dog."]


def test_cuts_fall_between_sentences_before_clauses_before_words():
    assert split_prompt("A cat sits. A dog runs. It rains.", 6, count) == [
        "A cat sits. A dog runs. ",
        "It rains.",
    ]
    assert split_prompt("a cat sits, a dog runs, it rains", 4, count) == [
        "a cat sits, ",
        "a dog runs, ",
        "it rains",
    ]
    assert split_prompt("a cat sits here", 3, count) == ["a cat sits ", "here"]


def test_text_without_spaces_is_cut_between_characters():
    assert split_prompt("一只猫坐在垫子上", 3, len) == ["一只猫", "坐在垫", "子上"]


@given(st.text(alphabet="ab ,.\n。", max_size=60), st.integers(1, 12))
def test_nothing_is_lost_and_no_window_is_over_the_limit(prompt, limit):
    windows = split_prompt(prompt, limit, len)
    assert "".join(windows) == prompt
    assert all(len(window) <= limit for window in windows)
