"""Which tokens of a prompt another prompt lacks.

Distances of the small encoder's tokens in units of the spread, over pairs of captions in which one attribute
differs: the changed word 0.46 to 0.96, its neighbours up to 0.34, words two away up to 0.08, others 0. A word
between two changed ones reaches 0.5 and counts as new.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.cache import codec
from chorus.prompt.tokens import label_tokens, real_tokens, token_difference
from small_wan.text_encoder import words

from .captions import caption_pairs, encode, with_common_part


def named(target: str, source: str) -> tuple[dict[str, float], dict[str, float]]:
    difference = token_difference(encode(target), encode(source))
    return (
        dict(zip(words(target), difference.new.tolist(), strict=False)),
        dict(zip(words(source), difference.gone.tolist(), strict=False)),
    )


@pytest.mark.parametrize("common", [0.0, 1.0, 4.0])
def test_a_changed_word_stands_out_from_its_neighbours(common):
    for target, source in caption_pairs(1):
        new = token_difference(with_common_part(encode(target), common), with_common_part(encode(source), common)).new
        for word, other, weight in zip(words(target), words(source), new.tolist(), strict=False):
            assert weight >= 0.8 if word != other else weight <= 0.3, (target, source, word)


@pytest.mark.parametrize("outlier", [0.0, 30.0, 300.0])
@pytest.mark.parametrize("common", [0.0, 4.0])
def test_words_kept_in_eight_bits_differ_as_the_words_do(common, outlier):
    """As a stored entry's do, also where a channel of all tokens is far above the others, as in T5-like encoders."""
    for target, source in caption_pairs(1):
        here, there = (with_common_part(encode(text), common) for text in (target, source))
        here[..., 3] += outlier * real_tokens(here)
        there[..., 3] += outlier * real_tokens(there)
        there = there[0, real_tokens(there)].half()
        kept = there
        if codec.fitting(there, "rows") == "rows":
            kept = codec.decode(codec.encode(there, "rows"), codec.Coded.of(there, "rows"))
        assert (kept is there) == (outlier == 300.0)
        assert torch.equal(real_tokens(kept), real_tokens(there))
        plain, coded = token_difference(here, there), token_difference(here, kept)
        assert (plain.new - coded.new).abs().max() < 0.1
        assert (plain.gone - coded.gone).abs().max() < 0.1


def test_the_word_that_came_and_the_word_that_went_are_found_on_their_sides():
    new, gone = named("a red circle moving left", "a blue circle moving left")
    assert max(new, key=new.get) == "red"
    assert max(gone, key=gone.get) == "blue"


def test_a_word_put_in_early_does_not_mark_the_words_after_it():
    new, gone = named("a bright red circle moving left over black", "a red circle moving left over black")
    assert new.pop("bright") == 1.0
    assert max(new.values()) <= 0.3
    assert max(gone.values()) <= 0.3


encodings = st.builds(
    lambda tokens, seed: torch.randn(tokens, 24, generator=torch.Generator().manual_seed(seed)),
    st.integers(1, 30),
    st.integers(0, 2**31),
)
quick = settings(max_examples=40, deadline=None)


@given(encodings)
@quick
def test_the_same_text_differs_in_nothing(encoding):
    difference = token_difference(encoding, encoding.clone())
    assert not difference.new.any() and not difference.gone.any()


@given(encodings, encodings)
@quick
def test_weights_lie_between_0_and_1_and_swap_with_the_prompts(target, source):
    difference, swapped = token_difference(target, source), token_difference(source, target)
    assert difference.new.min() >= 0 and difference.new.max() <= 1
    torch.testing.assert_close(difference.new, swapped.gone)
    torch.testing.assert_close(difference.gone, swapped.new)


@given(encodings, encodings, st.integers(0, 9), st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
@quick
def test_padding_scale_and_order_of_the_source_change_nothing(target, source, padding, scale, random):
    order = random.sample(range(len(source)), len(source))
    plain = token_difference(target, source)
    changed = token_difference(
        torch.nn.functional.pad(target, (0, 0, 0, padding)) * scale,
        torch.nn.functional.pad(source[order], (0, 0, 0, padding))[None],
    )
    torch.testing.assert_close(changed.new[: len(target)], plain.new, atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.gone[: len(source)], plain.gone[order], atol=1e-5, rtol=0)
    assert not changed.new[len(target) :].any() and not changed.gone[len(source) :].any()


def test_against_an_empty_prompt_every_word_is_new():
    difference = token_difference(torch.eye(3), torch.zeros(2, 3))
    assert difference.new.tolist() == [1, 1, 1]
    assert difference.gone.tolist() == [0, 0]


def test_real_tokens_are_the_rows_that_are_not_padding():
    assert real_tokens(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])).tolist() == [True, False]


def test_labels_are_the_pieces_else_the_words_else_numbers():
    assert label_tokens("a cat", 3, ["▁a", "▁ca", "t"]) == ["▁a", "▁ca", "t"]
    assert label_tokens("a cat", 2) == ["a", "cat"]
    assert label_tokens("a cat", 3, ["▁a"]) == ["a", "cat", "end"]
    assert label_tokens("a caterpillar", 4) == ["token 1", "token 2", "token 3", "token 4"]
