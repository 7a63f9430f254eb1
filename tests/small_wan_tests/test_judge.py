"""The judge is held to the scenes' ground truth, raw and through the codec; planted damage shows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from small_wan import codec, judge, scenes

COUNT = 300


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    rng = np.random.default_rng(7)
    return [scenes.render(scenes.sample_caption(rng), rng) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def decoded(drawn: list[scenes.Scene]) -> list[np.ndarray]:
    fitted = codec.fit(np.stack([scene.video for scene in drawn]))
    return [fitted.decode(fitted.encode(torch.from_numpy(scene.video))).numpy() for scene in drawn]


def accuracies(videos: list[np.ndarray], drawn: list[scenes.Scene]) -> dict[str, float]:
    outcomes = defaultdict(list)
    for video, scene in zip(videos, drawn, strict=True):
        for name, hit in judge.correct(video, scene.caption).items():
            outcomes[name].append(hit)
    return {name: float(np.mean(hits)) for name, hits in outcomes.items()}


def blurred(video: np.ndarray) -> np.ndarray:
    padded = np.pad(video, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 3


def test_true_videos_read_back(drawn):
    scores = accuracies([scene.video for scene in drawn], drawn)
    assert len(scores) == 7
    assert min(scores.values()) >= 0.99, scores


def test_codec_leaves_every_attribute_readable(drawn, decoded):
    scores = accuracies(decoded, drawn)
    assert min(scores.values()) >= 0.99, scores


def test_larger_frames_read_the_same(drawn):
    for scene in drawn[:20]:
        large = scene.video.repeat(2, axis=1).repeat(2, axis=2)
        two = scene.caption.second is not None
        assert judge.read(large, two_objects=two) == judge.read(scene.video, two_objects=two)


def test_reversed_video_moves_the_other_way(drawn):
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for scene in drawn[:20]:
        two = scene.caption.second is not None
        assert judge.read(scene.video[::-1], two_objects=two)["direction"] == opposite[scene.caption.direction]


def test_recoloured_object_fails_only_its_colour(drawn):
    single = next(s for s in drawn if s.caption.second is None and s.caption.colour == "red")
    video = single.video.copy()
    video[single.main_mask] = scenes.COLOURS["cyan"]
    outcome = judge.correct(video, single.caption)
    assert [name for name, hit in outcome.items() if not hit] == ["colour"]


def test_empty_scene_reads_only_its_background():
    video = np.broadcast_to(np.float32(scenes.BACKGROUNDS["teal"]), (4, 48, 48, 3))
    found = judge.read(video, two_objects=True)
    assert found.pop("background") == "teal"
    assert len(found) == 6 and set(found.values()) == {None}


def test_noise_is_judged_without_an_error(drawn):
    noise = np.random.default_rng(0).random((4, 48, 48, 3), np.float32)
    for scene in drawn[:10]:
        clean = judge.fidelity(scene.video, scene.caption)
        assert judge.correct(noise, scene.caption)["shape"] in (True, False)
        assert judge.fidelity(noise, scene.caption) > 3 * clean


def test_fidelity_of_true_videos_is_near_zero(drawn):
    assert np.mean([judge.fidelity(scene.video, scene.caption) for scene in drawn]) < 0.04


def test_fidelity_grows_with_each_damage(drawn, decoded):
    def mean(videos):
        return np.mean([judge.fidelity(v, s.caption) for v, s in zip(videos, drawn[:60], strict=True)])

    raw = mean([s.video for s in drawn[:60]])
    coded = mean(decoded[:60])
    once = mean([blurred(s.video) for s in drawn[:60]])
    twice = mean([blurred(blurred(s.video)) for s in drawn[:60]])
    assert raw < coded
    assert raw < once < twice


@pytest.mark.parametrize("field, other", [("colour", "pink"), ("shape", "cross"), ("background", "olive")])
def test_fidelity_to_a_wrong_caption_is_worse(drawn, field, other):
    cases = [s for s in drawn[:80] if getattr(s.caption, field) != other and s.caption.second is None]
    right = [judge.fidelity(s.video, s.caption) for s in cases]
    wrong = [judge.fidelity(s.video, replace(s.caption, **{field: other})) for s in cases]
    assert np.all(np.asarray(wrong) > np.asarray(right))
