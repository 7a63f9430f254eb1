"""The match score of pooled text encodings.

Mean scores over pairs of captions, for a part common to all tokens of 0, 1 and 4 times their norm; encoders
of the T5 kind have one, the small encoder none:

    what differs      pooled                plain mean of the tokens
    one attribute     0.83 / 0.85 / 0.86    0.92 / 0.99 / 1.00
    two attributes    0.68 / 0.72 / 0.73    0.85 / 0.98 / 1.00
    all four          0.41 / 0.48 / 0.50    0.70 / 0.96 / 1.00
    the template      0.63 / 0.67 / 0.67    0.79 / 0.98 / 1.00
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.prompt.embedding import pool_encoding

from .captions import caption_pairs, encode, with_common_part

# What differs → the mean score's range over all sizes of the common part.
FIGURES = {
    "one attribute": ((1, False), (0.82, 0.90)),
    "two attributes": ((2, False), (0.66, 0.77)),
    "all attributes": ((4, False), (0.38, 0.55)),
    "the template": ((0, True), (0.58, 0.72)),
}


def score(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(pool_encoding(one).vector @ pool_encoding(other).vector)


def mean_score(changed: int, other_template: bool, common: float) -> float:
    return np.mean(
        [
            score(with_common_part(encode(a), common), with_common_part(encode(b), common))
            for a, b in caption_pairs(changed, other_template=other_template)
        ]
    )


@pytest.mark.parametrize("common", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("what", FIGURES)
def test_score_falls_with_the_share_of_words_that_differ_whatever_tokens_have_in_common(what, common):
    pairs, (low, high) = FIGURES[what]
    assert low < mean_score(*pairs, common) < high


def test_the_plain_mean_of_the_tokens_calls_everything_alike():
    def mean(text):
        return with_common_part(encode(text)[0, : len(text.split())], 1.0).mean(dim=0)

    scores = [torch.cosine_similarity(mean(a), mean(b), dim=0).item() for a, b in caption_pairs(4)]
    assert min(scores) > 0.9


@given(
    st.integers(1, 40),
    st.integers(0, 20),
    st.floats(1e-3, 1e3),
    st.sampled_from([torch.float32, torch.float16]),
)
@settings(max_examples=40, deadline=None)
def test_padding_scale_order_and_batch_dimension_leave_the_vector_as_it_is(tokens, padding, scale, dtype):
    generator = torch.Generator().manual_seed(tokens)
    encoding = torch.randn(tokens, 48, generator=generator).to(dtype).float()
    changed = encoding[torch.randperm(tokens, generator=generator)] * scale
    changed = torch.nn.functional.pad(changed, (0, 0, 0, padding))[None]
    assert score(encoding, changed) == pytest.approx(1.0, abs=1e-5)


def test_the_same_text_gives_the_same_vector_of_unit_norm_named_by_its_width():
    one, other = (pool_encoding(encode("a red circle moving left")) for _ in range(2))
    assert np.array_equal(one.vector, other.vector)
    assert one.embedder == "conditioning:256"
    assert one.vector.dtype == np.float32 and one.vector.shape == (1024,)
    assert np.linalg.norm(one.vector) == pytest.approx(1.0, abs=1e-6)


def test_the_vector_of_an_encoding_is_the_same_in_every_version():
    encoding = torch.eye(3, 8)
    assert np.flatnonzero(np.abs(pool_encoding(encoding).vector) > 1e-6).tolist() == [113, 150, 572]


def test_repeated_and_single_tokens_have_a_vector():
    repeated = torch.ones(5, 16)
    assert score(repeated, repeated[:1]) == pytest.approx(1.0, abs=1e-5)


def test_an_encoding_without_tokens_matches_nothing():
    assert score(torch.zeros(1, 32, 16), torch.zeros(1, 32, 16)) == 0.0


def test_encodings_of_several_prompts_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 4, 8\]"):
        pool_encoding(torch.ones(2, 4, 8))
