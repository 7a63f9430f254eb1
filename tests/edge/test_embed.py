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
    assert embedded.encoding.ndim == 2


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
    assert torch.equal(embedded.encoding, text_encoder.encode(OTHER)[0, :count])


def test_padding_is_cut_and_words_are_named(embedding, clip):
    embedded = embedding.embed(PROMPT, "clip socket", clip, None)
    assert len(embedded.encoding) == len(embedded.labels) == len(text_encoder.words(PROMPT))
    assert bool(embedded.encoding.any(1).all())
    assert "red" in embedded.labels


def test_an_empty_prompt_is_no_error(embedding, clip):
    embedded = embedding.embed("", "conditioning", clip, conditioning(""))
    assert embedded.encoding.shape[0] == 0 and embedded.labels == ()


def test_of_a_batch_of_prompts_the_first_counts(embedding):
    first = text_encoder.encode(PROMPT)
    both = [[torch.cat([first, text_encoder.encode(OTHER)]), {}]]
    alone = embedding.embed(PROMPT, "conditioning", None, [[first, {}]])
    assert (embedding.embed(PROMPT, "conditioning", None, both).vector.vector == alone.vector.vector).all()


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("auto", "connect CLIP or the positive CONDITIONING"),
        ("clip socket", "connect CLIP"),
        ("conditioning", "connect the positive CONDITIONING"),
        ("open_clip", "no weights here"),
        ("telepathy", "telepathy"),
    ],
)
def test_a_way_that_is_not_open_says_what_to_do(embedding, without_open_clip, way, message):
    with pytest.raises(ValueError, match=message):
        embedding.embed(PROMPT, way, None, None)
