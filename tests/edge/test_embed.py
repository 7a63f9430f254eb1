"""How a graph's prompt becomes a vector, and which ways are open."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from small_wan import text_encoder

PROMPT = "a red circle, moving left over a navy background"
OTHER = "a green cross, moving up over a white background"


@pytest.fixture(scope="module")
def embedding(pack_module):
    return pack_module("chorus.comfy.embed")


@pytest.fixture
def without_open_clip(embedding, monkeypatch):
    monkeypatch.setattr(embedding.OpenClipEmbedder, "available", lambda *_: "no weights here")


@pytest.fixture
def clip(comfy_host):
    from small_wan.nodes import load_clip

    return load_clip()


def conditioning(prompt: str) -> list:
    return [[text_encoder.encode(prompt), {}]]


def test_the_encoding_of_the_graph_serves_without_a_download(embedding, without_open_clip):
    embedded = embedding.embed(PROMPT, "auto", None, conditioning(PROMPT))
    assert embedded.vector.embedder.startswith("conditioning:")
    assert np.linalg.norm(embedded.vector.vector) == pytest.approx(1.0, abs=1e-5)


def test_a_clip_socket_serves_without_a_conditioning(embedding, without_open_clip, clip):
    embedded = embedding.embed(PROMPT, "auto", clip, None)
    assert embedded.vector.embedder.startswith("clip:")
    assert embedded.tokens.ndim == 2
    assert torch.equal(embedded.encoded, text_encoder.encode(PROMPT))


def test_scores_of_two_ways_never_mix(embedding, clip):
    names = {embedding.embed(PROMPT, way, clip, conditioning(PROMPT)).vector.embedder for way in embedding.WAYS[2:]}
    assert len(names) == 2


def test_one_text_encoder_has_one_name_and_a_patched_one_another(embedding, clip):
    again = clip.clone()
    patched = clip.clone()
    patched.add_patches({"scale": (torch.ones(1),)}, 1.0)
    names = [embedding.embed(PROMPT, "clip socket", c, None).vector.embedder for c in (clip, again, patched, clip)]
    assert names[0] == names[1] == names[3] != names[2]


def test_other_prompts_have_other_vectors(embedding, clip):
    for way in ("clip socket", "conditioning"):
        one, same, other = (
            embedding.embed(p, way, clip, conditioning(p)).vector.vector for p in (PROMPT, PROMPT, OTHER)
        )
        assert np.array_equal(one, same)
        assert float(one @ other) < 0.9


def test_the_conditioning_is_what_is_compared_word_by_word(embedding, clip):
    embedded = embedding.embed(PROMPT, "clip socket", clip, conditioning(OTHER))
    count = len(text_encoder.words(OTHER))
    assert torch.equal(embedded.tokens, text_encoder.encode(OTHER)[0, :count])


def test_padding_is_cut_and_words_are_named(embedding, clip):
    embedded = embedding.embed(PROMPT, "clip socket", clip, None)
    assert len(embedded.tokens) == len(embedded.labels) == len(text_encoder.words(PROMPT))
    assert bool(embedded.tokens.any(1).all())
    assert "red" in embedded.labels


def test_the_encoding_is_kept_as_it_was_to_know_it_again(embedding):
    given = conditioning(PROMPT)
    assert embedding.embed(PROMPT, "conditioning", None, given).encoded is given[0][0]


def test_a_prompt_without_words_cannot_be_found_and_says_so(embedding, clip):
    for way in ("clip socket", "conditioning"):
        with pytest.raises(embedding.NoText) as refused:
            embedding.embed("", way, clip, conditioning(""))
        assert refused.value.said.code == "text.empty"


def test_a_conditioning_without_any_encoding_is_no_prompt_either(embedding):
    with pytest.raises(embedding.NoText):
        embedding.embed(PROMPT, "conditioning", None, [])


@pytest.mark.parametrize("way", ["conditioning", "clip socket", "open_clip"])
def test_several_prompts_in_one_batch_are_not_understood(embedding, clip, way, pack_module):
    both = [[torch.cat([text_encoder.encode(PROMPT), text_encoder.encode(OTHER)]), {}]]
    with pytest.raises(pack_module("chorus.comfy.content").NotUnderstood, match="several prompts"):
        embedding.embed(PROMPT, way, clip, both)


def test_one_prompt_in_every_row_of_a_batch_is_that_prompt(embedding):
    twice = [[text_encoder.encode(PROMPT).repeat(2, 1, 1), {}]]
    embedded, alone = (embedding.embed(PROMPT, "conditioning", None, c) for c in (twice, conditioning(PROMPT)))
    assert np.array_equal(embedded.vector.vector, alone.vector.vector)
    assert torch.equal(embedded.tokens, alone.tokens)


@pytest.mark.parametrize(
    ("way", "code", "message"),
    [
        ("auto", "text.connect", "connect CLIP or the positive CONDITIONING"),
        ("clip socket", "text.connect", "connect CLIP"),
        ("conditioning", "text.connect_positive", "needs the positive CONDITIONING"),
        ("open_clip", "text.open_clip", "no weights here"),
    ],
)
def test_a_way_that_is_not_open_says_what_to_do(embedding, without_open_clip, way, code, message):
    with pytest.raises(embedding.NoText, match=message) as refused:
        embedding.embed(PROMPT, way, None, None)
    assert refused.value.said.code == code


def test_an_unknown_way_is_refused_by_name(embedding):
    with pytest.raises(ValueError, match="telepathy"):
        embedding.embed(PROMPT, "telepathy", None, None)


# -- the same text ----------------------------------------------------------------------------------------------


def test_one_text_encoded_elsewhere_is_the_same_but_for_rounding(embedding):
    one = text_encoder.encode(PROMPT)
    assert embedding.same_encoding(one, one.clone())
    assert embedding.same_encoding(one, one.half())
    assert embedding.same_encoding(one, one + 1e-3 * one.norm() * torch.ones_like(one) / one.numel() ** 0.5)


@pytest.mark.parametrize("changed", ["a red circle, moving left over a navy sky", "", PROMPT + " slowly"])
def test_another_text_is_not_the_same(embedding, changed):
    one, other = text_encoder.encode(PROMPT), text_encoder.encode(changed)
    assert not embedding.same_encoding(one, other) and not embedding.same_encoding(other, one)


def test_encodings_of_other_shapes_are_not_the_same(embedding):
    one = text_encoder.encode(PROMPT)
    assert not embedding.same_encoding(one, one.repeat(2, 1, 1))
    assert not embedding.same_encoding(one, one[:, :-1])
