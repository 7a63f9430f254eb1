"""Pairs of prompts for the bench: one named change each, new to the model, and halves that share nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench_wan import judge, scenes
from bench_wan.captions import BACKGROUNDS, Caption
from benchmarks.scene_pairs import (
    CHANGES,
    FROM_AN_IMAGE,
    MOST_CHANGES,
    REPORTED,
    TUNED,
    ScenePair,
    distant_pairs,
    image_pairs,
    scene_pairs,
)

COUNT = 330
CHANGED = {  # which of a caption's attributes a change may touch
    "colour": {"colour"},
    "shape": {"shape"},
    "direction": {"direction"},
    "background": {"background"},
    "second colour": {"second colour"},
    "second shape": {"second shape"},
    "second place": {"second place"},
    "dots": {"dots"},
    "camera": {"pan"},
}
SECOND = {"second colour", "second shape", "second place"}


@pytest.fixture(scope="module", params=[TUNED, REPORTED])
def pairs(request) -> list[ScenePair]:
    return scene_pairs(COUNT, request.param)


def differing(source: Caption, target: Caption) -> set[str]:
    there, here = source.attributes(), target.attributes()
    return {name for name in there | here if there.get(name) != here.get(name)}


def test_every_change_comes_equally_often(pairs):
    counts = {change: sum(pair.change == change for pair in pairs) for change in CHANGES}
    assert sum(counts.values()) == COUNT and set(counts.values()) == {COUNT // len(CHANGES)}


def test_a_pair_differs_in_exactly_what_its_change_names(pairs):
    for pair in pairs:
        changed, there, here = differing(pair.source, pair.target), pair.source.attributes(), pair.target.attributes()
        assert pair.source.text != pair.target.text
        assert pair.source.template == pair.target.template
        if pair.change in ("added", "removed"):
            assert changed in (SECOND, {"dots"}), pair
            less, more = (there, here) if pair.change == "added" else (here, there)
            assert not changed & set(less) and changed <= set(more), pair
        else:
            assert changed == CHANGED[pair.change], pair
        if pair.change not in ("added", "removed", "camera"):
            assert set(there) == set(here), "what is named at all stays the same"


def test_a_camera_may_begin_to_pan_and_stop(pairs):
    pans = {(pair.source.pan is None, pair.target.pan is None) for pair in pairs if pair.change == "camera"}
    assert pans == {(True, False), (False, True), (False, False)}


def test_texts_hold_words_only(pairs):
    for pair in pairs:
        for caption in (pair.source, pair.target):
            assert "None" not in caption.text
            assert all(type(value) is str for value in caption.attributes().values())


def test_no_prompt_is_of_a_combination_that_training_sees_and_all_have_room(pairs):
    assert all(caption.held_out and caption.possible for pair in pairs for caption in (pair.source, pair.target))


def test_no_object_looks_like_the_other(pairs):
    for pair in pairs:
        for caption in (pair.source, pair.target):
            assert caption.second is None or caption.second[0] != caption.colour, pair


def test_the_same_pairs_come_each_time_and_a_shorter_list_is_the_beginning_of_a_longer_one():
    assert scene_pairs(50, TUNED) == scene_pairs(120, TUNED)[:50]


def test_the_halves_share_no_prompt_and_no_seed():
    tuned, reported = scene_pairs(COUNT, TUNED), scene_pairs(COUNT, REPORTED)
    texts = [{caption.text for pair in half for caption in (pair.source, pair.target)} for half in (tuned, reported)]
    assert not texts[0] & texts[1]
    seeds = [[seed for pair in half for seed in (pair.source_seed, pair.target_seed)] for half in (tuned, reported)]
    assert len({*seeds[0], *seeds[1]}) == 4 * COUNT


def test_distant_pairs_differ_in_as_many_attributes_as_they_say():
    pairs = distant_pairs(40, REPORTED)
    assert [pair.change for pair in pairs[:MOST_CHANGES]] == ["1", "2", "3", "4"]
    for pair in pairs:
        assert len(differing(pair.source, pair.target)) == int(pair.change), pair
    assert {pair.source_seed for pair in pairs}.isdisjoint(p.source_seed for p in scene_pairs(COUNT, REPORTED))


def test_both_videos_of_a_pair_with_an_image_begin_with_it_and_show_their_prompts():
    pairs = image_pairs(3 * len(FROM_AN_IMAGE), REPORTED)
    assert [pair.change for pair in pairs] == 3 * list(FROM_AN_IMAGE)
    for pair in pairs:
        assert pair.image is not None and pair.source.text != pair.target.text
        begun = scenes.lay_out([pair.image.caption], pair.image.seed)
        videos = []
        for caption in (pair.source, pair.target):
            layout, shows = scenes.going_on(begun, [caption])
            video = scenes.draw(layout)[0][0].numpy()
            assert bool(shows) and all(judge.correct(video, caption).values()), (pair.change, caption.text)
            videos.append(video)
        assert np.array_equal(videos[0][0], videos[1][0])
        moved = not np.array_equal(videos[0], videos[1])
        assert moved == (pair.change in ("direction", "camera"))


def test_a_scene_that_cannot_go_on_as_a_caption_says_is_told():
    caption = Caption("red", "circle", "right", next(iter(BACKGROUNDS)))
    begun = scenes.lay_out([caption], 3)
    assert bool(scenes.going_on(begun, [caption])[1])
    near_the_edge = replace(begun, place=begun.place + torch.tensor([60.0, 0.0]))
    assert not bool(scenes.going_on(near_the_edge, [caption])[1])
