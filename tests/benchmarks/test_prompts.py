"""Streams of prompts: as alike as asked for, by the very vectors that the nodes compute."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.prompts import (
    LEVELS,
    MOST_STYLE,
    STYLE,
    THRESHOLDS,
    Request,
    Styled,
    achieved,
    edited,
    floor,
    locality,
    nearest_earlier,
    stream,
    vectors,
    vidprom,
    with_repeats,
)
from chorus.comfy.embed import embed
from small_wan import scenes
from small_wan.text_encoder import LENGTH, encode, words

COUNT = 60
LONGEST = scenes.Caption("red", "cross", "left", "navy", ("blue", "cross", "left"), template=2)


@pytest.fixture(scope="module")
def requests():
    return stream(vidprom(), COUNT, seed=3)


@pytest.fixture(scope="module")
def styled():
    return stream(vidprom(), COUNT, seed=3, style=8)


def brute_force(captions: list[scenes.Caption]) -> list[tuple[float, int]]:
    """(similarity, index) of the nearest earlier prompt, one by one, from the second prompt on."""
    points = [embed(c.text, "conditioning", None, [[encode(c.text), {}]]).vector.vector for c in captions]
    found = []
    for i in range(1, len(points)):
        scores = [float(points[i] @ points[j]) for j in range(i)]
        found.append((max(scores), int(np.argmax(scores))))
    return found


# -- the wanted distributions


def test_vidprom_has_the_published_shares_and_mean():
    shares = [100 * vidprom().at_or_above(t) for t in THRESHOLDS]
    assert shares == pytest.approx([92.9, 74.1, 59.6, 42.3, 10.3], abs=0.01)
    assert vidprom()(np.linspace(0, 1, 10_001)).mean() == pytest.approx(0.769, abs=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_a_locality_level_is_the_mean_and_no_similarity_exceeds_one(level):
    quantiles = locality(level)(np.linspace(0, 1, 10_001))
    assert quantiles.mean() == pytest.approx(level, abs=1e-3)
    assert np.all(np.diff(quantiles) > 0) and quantiles[0] > 0 and quantiles[-1] <= 1.0


@given(st.sampled_from([vidprom(), *map(locality, LEVELS)]), st.floats(0.01, 0.99))
def test_shares_invert_the_quantile_function(wanted, share):
    assert 1.0 - wanted.at_or_above(float(wanted(np.array(share)))) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("mean", [0.1, 1.0])
def test_a_mean_that_no_shape_reaches_is_refused(mean):
    with pytest.raises(ValueError, match=str(mean)):
        locality(mean)


# -- streams


def test_vectors_are_those_that_the_node_gives_the_prompt():
    captions = [LONGEST, Styled(**vars(LONGEST), style=("moody", "neon"))]
    for caption, vector in zip(captions, vectors(captions), strict=True):
        embedded = embed(caption.text, "conditioning", None, [[encode(caption.text), {}]])
        assert np.array_equal(vector, embedded.vector.vector)


@pytest.mark.parametrize("which", ["requests", "styled"])
def test_similarities_are_those_to_the_nearest_earlier_prompt(which, request):
    made = request.getfixturevalue(which)
    assert made[0].nearest is None
    expected = brute_force([r.caption for r in made])
    assert [r.similarity for r in made[1:]] == pytest.approx([score for score, _ in expected], abs=1e-5)
    points = vectors([r.caption for r in made])
    for number, r in enumerate(made[1:], start=1):
        assert r.nearest is not None and r.nearest < number
        assert float(points[number] @ points[r.nearest]) == pytest.approx(r.similarity, abs=1e-5)


@pytest.mark.parametrize("which", ["requests", "styled"])
def test_achieved_likeness_is_near_the_wanted_one(which, request):
    figures = achieved(request.getfixturevalue(which))
    assert figures["mean"]["wanted"] == pytest.approx(0.769, abs=0.01)
    assert figures["mean"]["achieved"] == pytest.approx(figures["mean"]["wanted"], abs=0.01)
    for threshold in THRESHOLDS:
        share = figures[f"share ≥ {threshold:.2f}"]
        assert share["achieved"] == pytest.approx(share["wanted"], abs=0.06), threshold


def test_levels_differ_as_wanted():
    means = [achieved(stream(locality(level), COUNT, seed=3))["mean"]["achieved"] for level in (0.70, 0.80, 0.90)]
    assert means == pytest.approx([0.70, 0.80, 0.90], abs=0.03)


def test_style_words_allow_what_the_grammar_does_not():
    plain, styled = (achieved(stream(locality(0.60), COUNT, seed=3, style=n))["mean"]["achieved"] for n in (0, 8))
    assert styled == pytest.approx(0.60, abs=0.004)
    assert plain > 0.605


def test_a_seed_gives_the_same_stream_and_another_one_another():
    one, again, other = (stream(vidprom(), 15, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert [r.caption for r in one] != [r.caption for r in other]


def test_held_out_prompts_and_trained_ones_do_not_mix(requests, styled):
    assert all(r.caption.held_out for r in [*requests, *styled])
    assert not any(r.caption.held_out for r in stream(vidprom(), 15, seed=3, held_out=False))


def test_without_style_every_prompt_is_of_the_grammar(requests):
    assert {type(r.caption) for r in requests} == {scenes.Caption}


def test_after_the_warm_up_the_whole_distribution_comes_again():
    made = stream(vidprom(), COUNT, seed=3, warm=40)
    assert np.mean([r.wanted for r in made[40:]]) == pytest.approx(0.769, abs=0.01)


def test_counts_out_of_range_are_refused():
    with pytest.raises(ValueError, match="30"):
        stream(vidprom(), 20, seed=1, warm=30)
    with pytest.raises(ValueError, match=str(MOST_STYLE + 1)):
        stream(vidprom(), 20, seed=1, style=MOST_STYLE + 1)


def test_the_text_encoder_reads_every_style_word_and_none_means_anything():
    text = Styled(**vars(LONGEST), style=tuple(STYLE[:MOST_STYLE])).text
    assert words(text)[-1] == STYLE[MOST_STYLE - 1]
    assert len(words(text)) <= LENGTH
    named = {w for c in (LONGEST, replace(LONGEST, template=0), replace(LONGEST, template=1)) for w in words(c.text)}
    for values in (scenes.COLOURS, scenes.BACKGROUNDS, scenes.SHAPES, scenes.DIRECTIONS, scenes.SIDES):
        named |= set(values)
    assert not named & set(STYLE)
    assert len(set(STYLE)) == len(STYLE)


def test_the_floor_is_what_the_greedy_choice_gives():
    corners = np.eye(3, dtype=np.float32)
    points = np.vstack([corners, (corners[0] + corners[1]) / np.sqrt(2), corners[:1]]).astype(np.float32)
    assert floor(points, 4) == pytest.approx([0.0, 0.0, np.sqrt(0.5), 1.0], abs=1e-6)


# -- repeats


@pytest.mark.parametrize("recent", [False, True])
def test_repeats_come_back_to_earlier_prompts(requests, recent):
    made = with_repeats(requests, 0.4, seed=1, edits=0.0, recent=recent)
    assert len(made) == round(COUNT / 0.6)
    texts = [r.caption.text for r in made]
    assert list(dict.fromkeys(texts)) == list(dict.fromkeys(r.caption.text for r in requests))
    assert sum(text in texts[:i] for i, text in enumerate(texts)) >= len(made) - COUNT
    expected = brute_force([r.caption for r in made])
    assert [r.similarity for r in made[1:]] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_edited_repeats_differ_in_one_attribute(requests):
    made = with_repeats(requests, 0.4, seed=1, edits=1.0)
    known = {r.caption for r in requests}
    new = [r.caption for r in made if r.caption not in known]
    assert len(new) > 0.3 * len(made)
    assert all(r.caption.held_out for r in made)
    for caption in new:
        assert any(differences(caption, other) == 1 for other in known)


def test_a_prompt_whose_edits_are_all_trained_on_comes_back_as_it_is():
    lonely = next(c for c in single_objects() if c.held_out and not any(n.held_out for n in neighbours(c)))
    made = with_repeats([Request(lonely, -1.0, None, 0.7)] * 2, 0.5, seed=1, edits=1.0)
    assert [r.caption for r in made] == [lonely] * 4


def single_objects() -> list[scenes.Caption]:
    every = product(scenes.COLOURS, scenes.SHAPES, scenes.DIRECTIONS, scenes.BACKGROUNDS)
    return [scenes.Caption(*attributes) for attributes in every]


def neighbours(caption: scenes.Caption) -> list[scenes.Caption]:
    return [other for other in single_objects() if differences(caption, other) == 1]


def test_popular_prompts_come_back_more_often_than_others(requests):
    made = with_repeats(requests, 0.8, seed=1, edits=0.0, exponent=1.2)
    counts = sorted(np.unique([r.caption.text for r in made], return_counts=True)[1], reverse=True)
    flat = with_repeats(requests, 0.8, seed=1, edits=0.0, exponent=0.0)
    flat_counts = sorted(np.unique([r.caption.text for r in flat], return_counts=True)[1], reverse=True)
    assert sum(counts[:5]) > 1.3 * sum(flat_counts[:5])


def test_recent_prompts_come_back_sooner(requests):
    def gap(recent: bool) -> float:
        texts = [r.caption.text for r in with_repeats(requests, 0.5, seed=1, edits=0.0, recent=recent)]
        return float(np.median([i - texts.index(t) for i, t in enumerate(texts) if t in texts[:i]]))

    assert gap(recent=True) < 0.7 * gap(recent=False)


def test_a_stream_of_nothing_but_repeats_is_refused(requests):
    with pytest.raises(ValueError, match="repeats"):
        with_repeats(requests, 1.0, seed=1)


def test_the_first_prompt_has_no_earlier_one():
    scores, nearest = nearest_earlier(np.eye(2, dtype=np.float32)[[0, 1, 0]])
    assert scores.tolist() == [-1.0, 0.0, 1.0]
    assert nearest.tolist() == [0, 0, 0]


# -- edits


def differences(one: scenes.Caption, other: scenes.Caption) -> int:
    a, b = one.attributes(), other.attributes()
    return sum(a.get(name) != b.get(name) for name in a.keys() | b.keys())


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_an_edit_changes_one_attribute_that_the_caption_names(seed):
    rng = np.random.default_rng(seed)
    caption = scenes.sample_caption(rng)
    changed = edited(caption, rng)
    assert differences(caption, changed) == 1
    assert changed.attributes().keys() == caption.attributes().keys()
    assert changed.second is None or changed.second[0] != changed.colour


@pytest.mark.parametrize("name", LONGEST.attributes())
def test_an_edit_changes_the_attribute_that_was_chosen(name):
    rng = np.random.default_rng(0)
    seen = {edited(LONGEST, rng, (name,)).attributes()[name] for _ in range(60)}
    assert LONGEST.attributes()[name] not in seen
    assert len(seen) >= 3
    assert all(differences(LONGEST, edited(LONGEST, rng, (name,))) == 1 for _ in range(5))


def test_an_attribute_that_the_caption_lacks_cannot_be_edited():
    with pytest.raises(ValueError, match="second side"):
        edited(replace(LONGEST, second=None), np.random.default_rng(0), ("second side",))


def test_a_styled_caption_keeps_its_style_through_edits():
    caption = Styled(**vars(LONGEST), style=("moody",))
    assert edited(caption, np.random.default_rng(0)).text.endswith(", moody")
