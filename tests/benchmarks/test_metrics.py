"""Every measure of quality reacts to the damage it is there for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from benchmarks import metrics
from small_wan import scenes


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [scenes.render(scenes.sample_caption(rng), rng).video for _ in range(120)]


def blurred(video: np.ndarray) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(video, (0, 1.0, 1.0, 0))


def seamed(video: np.ndarray) -> np.ndarray:
    """A rectangle one shade brighter, as where recomputed and reused tokens do not meet."""
    out = video.copy()
    out[:, 8:40, 16:40] = np.clip(out[:, 8:40, 16:40] + 0.08, 0, 1)
    return out


def flickering(video: np.ndarray) -> np.ndarray:
    shades = np.array([0.0, 0.04, -0.04, 0.04])[:, None, None, None]
    return np.clip(video + shades, 0, 1).astype(np.float32)


def bare(video: np.ndarray) -> np.ndarray:
    """The white dots painted over with the background."""
    out = video.copy()
    out[video.min(-1) > 0.5] = np.median(video.reshape(-1, 3), 0)
    return out


def mean(measure, videos) -> float:
    return float(np.mean([measure(v) for v in videos]))


def test_sharpness_sees_blur(videos):
    assert mean(metrics.sharpness, map(blurred, videos)) < 0.7 * mean(metrics.sharpness, videos)


def test_flicker_sees_flicker_and_not_motion(videos):
    assert mean(metrics.flicker, videos) < 0.003  # objects move in every one of them
    assert mean(metrics.flicker, map(flickering, videos)) > 0.04


def test_seams_sees_seams(videos):
    assert abs(mean(metrics.seams, videos)) < 0.002
    assert mean(metrics.seams, map(seamed, videos)) > 0.005


def test_details_sees_dots_go(videos):
    assert mean(metrics.details, videos) > 2.0
    assert mean(metrics.details, map(bare, videos)) < 0.1


@pytest.mark.parametrize("damage", [blurred, seamed, flickering, bare])
def test_frechet_distance_sees_every_damage(videos, damage):
    """Against fresh videos, so that the finite-sample floor is beaten, not zero."""
    half = [metrics.features(v) for v in videos[:60]]
    others = [metrics.features(v) for v in videos[60:]]
    hurt = [metrics.features(damage(v)) for v in videos[60:]]
    assert metrics.frechet_distance(hurt, half) > 1.2 * metrics.frechet_distance(others, half)


def test_frechet_distance_of_a_set_to_itself_is_nothing(videos):
    same = [metrics.features(v) for v in videos]
    assert abs(metrics.frechet_distance(same, same)) < 1e-3
    with pytest.raises(ValueError, match="at least 8"):
        metrics.frechet_distance(same[:4], same)


def test_measures_do_not_depend_on_the_decoders_size(videos):
    video = videos[0]
    large = video.repeat(2, axis=1).repeat(2, axis=2)
    for measure in (metrics.sharpness, metrics.flicker, metrics.seams, metrics.details):
        assert measure(large) == pytest.approx(measure(video), abs=1e-6)
    assert np.allclose(metrics.features(large), metrics.features(video), atol=1e-6)
