"""The judge reads true scenes right, raw and through the codec, and each planted damage shows in its own measure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch

from bench_wan import judge, scenes
from bench_wan.captions import BACKGROUNDS, COLOURS, COUNTS, PANS, PLACES, SHAPES
from benchmarks import metrics

FEW = 40


def accuracies(videos, captions) -> dict[str, float]:
    outcomes = defaultdict(list)
    for video, caption in zip(videos, captions, strict=True):
        for name, hit in judge.correct(video, caption).items():
            outcomes[name].append(hit)
    return {name: float(np.mean(hits)) for name, hits in outcomes.items()}


def changed(layout: scenes.Layout, **parts) -> np.ndarray:
    """Videos of a layout with other values: each of `parts` gets a copy of the layout's tensor and changes it."""
    new = {}
    for name, change in parts.items():
        new[name] = getattr(layout, name).clone()
        change(new[name])
    return scenes.draw(replace(layout, **new))[0].numpy()


def wrong(videos, captions) -> list[set[str]]:
    """By video, the attributes that are not right."""
    return [
        {name for name, hit in judge.correct(video, caption).items() if not hit}
        for video, caption in zip(videos, captions, strict=True)
    ]


def mean_fidelity(videos, captions) -> float:
    return float(np.mean([judge.fidelity(v, c) for v, c in zip(videos, captions, strict=False)]))


@pytest.fixture(scope="module")
def few(drawn) -> tuple[list, scenes.Layout]:
    return drawn.captions[:FEW], drawn.layout[:FEW]


def pick(drawn, wanted) -> tuple[list, scenes.Layout]:
    """Captions that `wanted` says yes to, and their layout."""
    rows = [i for i, caption in enumerate(drawn.captions) if wanted(caption)]
    assert len(rows) >= 15
    return [drawn.captions[i] for i in rows], drawn.layout[torch.tensor(rows)]


# True scenes


@pytest.mark.parametrize("kind", ["raw", "through the codec"])
def test_true_videos_read_back(drawn, decoded, kind):
    scores = accuracies(drawn.videos if kind == "raw" else decoded, drawn.captions)
    assert len(scores) == 9
    assert min(scores.values()) >= 0.99, scores


def test_half_of_the_motion_between_two_objects_is_no_pan(drawn, through_codec):
    """Where neither the wave nor a third object tells what rests."""
    captions, layout = pick(drawn, lambda c: c.second is not None and not c.pan)
    two = changed(layout, radius=lambda r: r[:, 2].zero_(), wave=lambda w: w[:, 3].zero_())
    assert wrong(through_codec(two), captions) == [set()] * len(captions)


@pytest.mark.parametrize("kind", ["raw", "through the codec"])
def test_true_videos_have_no_object_twice(drawn, decoded, kind):
    videos = drawn.videos if kind == "raw" else decoded
    assert sum(judge.copies(v, c) for v, c in zip(videos, drawn.captions, strict=True)) == 0


def test_masks_are_where_the_named_objects_are(drawn, decoded):
    overlaps = []
    for video, caption, seen in zip(decoded, drawn.captions, drawn.seen.numpy(), strict=True):
        true = seen[0] + (seen[1] if caption.second else 0)
        mask = judge.object_masks(video, caption)
        assert mask.shape == true.shape
        overlaps.append(np.minimum(mask, true).sum() / np.maximum(mask, true).sum())
    assert min(overlaps) > 0.88
    assert np.mean(overlaps) > 0.95


def test_larger_frames_read_the_same(few, drawn):
    for video, caption in zip(drawn.videos[:10], few[0], strict=False):
        large = video.repeat(2, axis=1).repeat(2, axis=2)
        assert judge.read(large, caption) == judge.read(video, caption)
        assert judge.copies(large, caption) == 0
        assert judge.fidelity(large, caption) == pytest.approx(judge.fidelity(video, caption), abs=1e-5)
        assert judge.object_masks(large, caption).shape == video.shape[:3]


def test_explained_video_gives_what_the_video_gives(drawn):
    video, caption = drawn.videos[0], drawn.captions[0]
    seen = judge.Seen.of(video)
    assert judge.read(seen, caption) == judge.read(video, caption)
    other = replace(caption, background=next(b for b in BACKGROUNDS if b != caption.background))
    assert judge.fidelity(seen, caption) == judge.fidelity(video, caption)
    assert judge.fidelity(seen, other) == judge.fidelity(video, other)


def test_fidelity_of_true_videos_is_near_zero(drawn, decoded):
    assert mean_fidelity(drawn.videos[:FEW], drawn.captions) < 0.025
    errors = [judge.fidelity(v, c) for v, c in zip(decoded[:100], drawn.captions, strict=False)]
    assert np.mean(errors) < 0.05
    assert max(errors) < 0.09


def test_empty_scene_reads_only_its_background(drawn):
    caption = next(c for c in drawn.captions if c.second and c.dots and c.pan)
    video = np.broadcast_to(np.float32(BACKGROUNDS["teal"]), drawn.videos[0].shape)
    found = judge.read(video, caption)
    assert found.pop("background") == "teal"
    assert len(found) == 8 and set(found.values()) == {None}
    assert judge.copies(video, caption) == 0
    assert not judge.object_masks(video, caption).any()


def test_noise_is_judged_without_an_error(drawn):
    noise = np.random.default_rng(0).random(drawn.videos[0].shape, np.float32)
    for caption, video in zip(drawn.captions[:10], drawn.videos, strict=False):
        assert sum(judge.correct(noise, caption).values()) <= 2
        assert judge.fidelity(noise, caption) > 3 * judge.fidelity(video, caption)


# Planted damage to objects


def test_object_drawn_twice_is_counted(few, through_codec):
    """The third object in the main one's colour: the scene shows that colour twice."""
    captions, layout = few
    twice = through_codec(changed(layout, colour=lambda c: c[:, 2].copy_(c[:, 0])))
    assert [judge.copies(v, c) for v, c in zip(twice, captions, strict=True)] == [1] * FEW


def test_second_object_drawn_twice_is_counted(drawn, through_codec):
    captions, layout = pick(drawn, lambda c: c.second is not None)
    twice = through_codec(changed(layout, colour=lambda c: c[:, 2].copy_(c[:, 1])))
    assert [judge.copies(v, c) for v, c in zip(twice, captions, strict=True)] == [1] * len(captions)


def test_unnamed_object_drawn_twice_is_no_copy(drawn):
    captions, layout = pick(drawn, lambda c: c.second is None)
    twice = changed(layout, colour=lambda c: c[:, 2].copy_(c[:, 1]))
    assert sum(judge.copies(v, c) for v, c in zip(twice, captions, strict=True)) == 0


def test_copy_in_one_frame_alone_is_not_counted_but_in_two_it_is(few):
    captions, layout = few
    once, twice = scenes.draw(layout)[0].numpy(), changed(layout, colour=lambda c: c[:, 2].copy_(c[:, 0]))
    for frames, expected in ((1, 0), (2, 1)):
        mixed = np.concatenate((twice[:, :frames], once[:, frames:]), 1)
        assert {judge.copies(v, c) for v, c in zip(mixed, captions, strict=True)} == {expected}


def test_torn_object_is_not_two(few):
    """A gap through the middle of the main object, four pixels wide, that shows the background's colour."""
    captions, layout = few
    videos, seen = (part.numpy() for part in scenes.draw(layout))
    for i, caption in enumerate(captions):
        for t in range(scenes.FRAMES):
            x = int(layout.place[i, 0, 0] + layout.drift[i, 0, 0] * t)
            gap = seen[i, 0, t] > 0
            gap[:, : x - 2] = gap[:, x + 2 :] = False
            videos[i, t][gap] = BACKGROUNDS[caption.background]
    assert sum(judge.copies(v, c) for v, c in zip(videos, captions, strict=True)) == 0
    assert not any(wrong(videos, captions))


def test_recoloured_object_fails_only_its_colour(few, through_codec):
    captions, layout = few
    free = [next(k for k in range(len(COLOURS)) if k not in row) for row in layout.colour.tolist()]
    videos = through_codec(changed(layout, colour=lambda c: c[:, 0].copy_(torch.tensor(free))))
    assert wrong(videos, captions) == [{"colour"}] * FEW
    true = mean_fidelity(through_codec(scenes.draw(layout)[0].numpy()), captions)
    assert mean_fidelity(videos, captions) > 4 * true


def test_reshaped_object_fails_only_its_shape(few, through_codec):
    captions, layout = few
    videos = through_codec(changed(layout, shape=lambda s: s[:, 0].add_(1).remainder_(len(SHAPES))))
    assert wrong(videos, captions) == [{"shape"}] * FEW
    true = mean_fidelity(through_codec(scenes.draw(layout)[0].numpy()), captions)
    assert mean_fidelity(videos, captions) > 2 * true


@pytest.mark.parametrize("attribute", ["colour", "shape"])
def test_changed_second_object_fails_only_that(drawn, through_codec, attribute):
    captions, layout = pick(drawn, lambda c: c.second is not None)
    if attribute == "shape":
        videos = changed(layout, shape=lambda s: s[:, 1].add_(1).remainder_(len(SHAPES)))
        assert wrong(through_codec(videos), captions) == [{"second shape"}] * len(captions)
    else:
        free = [next(k for k in range(len(COLOURS)) if k not in row) for row in layout.colour.tolist()]
        videos = changed(layout, colour=lambda c: c[:, 1].copy_(torch.tensor(free)))
        assert all("second colour" in failed for failed in wrong(through_codec(videos), captions))


def test_reversed_video_moves_the_other_way(few, decoded):
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for video, caption in zip(decoded[:FEW], few[0], strict=True):
        assert judge.read(video[::-1], caption)["direction"] == opposite[caption.direction]
        assert "direction" in wrong([video[::-1]], [caption])[0]


def test_resting_object_of_the_named_colour_is_not_the_main_one(drawn, decoded):
    """The colours of main and second object exchanged in the caption."""
    for video, caption in zip(decoded, drawn.captions, strict=True):
        if caption.second:
            other = replace(caption, colour=caption.second[0], second=(caption.colour, *caption.second[1:]))
            assert {"colour", "second colour"} <= wrong([video], [other])[0]


def test_second_object_in_another_place_fails(drawn, decoded):
    """The same video under a caption that names the place across."""
    across = {name: next(n for n, q in PLACES.items() if q == (-p[0], -p[1])) for name, p in PLACES.items()}
    for video, caption in zip(decoded, drawn.captions, strict=True):
        if caption.second:
            other = replace(caption, second=(*caption.second[:2], across[caption.second[2]]))
            assert wrong([video], [other]) == [{"second place"}]


def test_one_dot_too_few_fails_only_the_dots(drawn, through_codec):
    captions, layout = pick(drawn, lambda c: c.dots is not None)
    fewer = changed(layout, dots=lambda d: d.sub_(1))
    assert wrong(through_codec(fewer), captions) == [{"dots"}] * len(captions)


def test_a_further_dot_fails_only_the_dots(drawn, through_codec):
    """Painted where there is room for it; a fifth one is not four."""
    captions, layout = pick(drawn, lambda c: c.dots is not None and c.pan is None)
    videos, seen = (part.numpy() for part in scenes.draw(layout))
    reach = 7
    grid = torch.arange(2.0 * reach + 1) - reach
    dot = scenes.coverage("disc", grid[None], grid[:, None], torch.tensor(5.8)).numpy()
    rows = []
    for i, (video, cover) in enumerate(zip(videos, seen, strict=True)):
        taken = scipy.ndimage.maximum_filter(cover[:4].max((0, 1)), 2 * reach + 3)
        taken[: reach + 1] = taken[-reach - 1 :] = taken[:, : reach + 1] = taken[:, -reach - 1 :] = 1
        if not (taken < 0.01).any():
            continue
        y, x = np.argwhere(taken < 0.01)[0]
        patch = video[:, y - reach : y + reach + 1, x - reach : x + reach + 1]
        patch += dot[..., None] * (np.float32(scenes.WHITE) - patch)
        rows.append(i)
    assert {COUNTS[captions[i].dots] for i in rows} == set(COUNTS.values()) and len(rows) > len(captions) / 2
    assert wrong(through_codec(videos[rows]), [captions[i] for i in rows]) == [{"dots"}] * len(rows)


def test_lost_pan_fails(drawn, through_codec):
    """Everything rests that a panned camera would move."""
    captions, layout = pick(drawn, lambda c: c.pan is not None)
    videos = through_codec(
        changed(
            layout,
            pan=lambda p: p.zero_(),
            drift=lambda d: d[:, 1:, 0].sub_(layout.pan[:, None]),
            detail_drift=lambda d: d[..., 0].sub_(layout.pan[:, None]),
        )
    )
    failed = wrong(videos, captions)
    assert all("pan" in names for names in failed)
    assert sum(len(names) for names in failed) <= 1.1 * len(captions)  # the main object may run into what now rests


def test_background_that_does_not_pan_with_the_objects_fails(drawn, through_codec):
    captions, layout = pick(drawn, lambda c: c.pan is not None)
    videos = through_codec(changed(layout, pan=lambda p: p.zero_()))
    assert np.mean(["pan" in names for names in wrong(videos, captions)]) >= 0.9  # a wave along y does not tell it


def test_pan_the_other_way_fails(drawn, decoded):
    across = dict(zip(PANS, reversed(PANS), strict=True))
    for video, caption in zip(decoded, drawn.captions, strict=True):
        if caption.pan:
            assert wrong([video], [replace(caption, pan=across[caption.pan])]) == [{"pan"}]


# Planted damage to the picture


def blurred(videos: np.ndarray, deviation: float) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(videos, (0, 0, deviation, deviation, 0))


def shifted_tokens(videos: np.ndarray, pixels: int) -> np.ndarray:
    """Every second token shows what is some pixels beside it, as where tokens of two runs do not meet."""
    token = np.arange(scenes.SIZE) // scenes.TOKEN
    second = ((token[:, None] + token) % 2 == 1)[None, None, :, :, None]
    return np.where(second, np.roll(videos, pixels, 3), videos)


def flickering(videos: np.ndarray, amount: float) -> np.ndarray:
    """Frames that are lighter and darker by turns."""
    sign = np.resize([1.0, -1.0], videos.shape[1])[None, :, None, None, None]
    return np.clip(videos + amount * sign, 0, 1)


@pytest.mark.parametrize("damage, amounts", [(blurred, (1.0, 2.0)), (shifted_tokens, (2, 4)), (flickering, (0.1, 0.2))])
def test_fidelity_grows_with_each_damage(few, decoded, damage, amounts):
    true = mean_fidelity(decoded[:FEW], few[0])
    little, much = (mean_fidelity(damage(decoded[:FEW], amount), few[0]) for amount in amounts)
    assert 1.15 * true < little < much


@pytest.mark.parametrize(
    "damage, amount, measure, sign",
    [
        (blurred, 1.5, metrics.sharpness, -1),
        (shifted_tokens, 3, metrics.seams, 1),
        (flickering, 0.05, metrics.flicker, 1),
    ],
)
def test_damage_shows_in_the_measure_for_it(decoded, damage, amount, measure, sign):
    """The bench's measures that need no caption hold for these scenes, too: video by video."""
    damaged = damage(decoded[:FEW], amount)
    change = [sign * (measure(b) - measure(a)) for a, b in zip(decoded[:FEW], damaged, strict=True)]
    assert np.mean(np.asarray(change) > 0) == 1.0


def test_blur_and_noise_leave_the_attributes_readable(few, decoded):
    rng = np.random.default_rng(0)
    noisy = np.clip(decoded[:FEW] + rng.normal(0, 0.05, decoded[:FEW].shape), 0, 1)
    for videos in (blurred(decoded[:FEW], 1.5), noisy):
        scores = accuracies(videos, few[0])
        assert min(scores.values()) >= 0.95, scores
        assert sum(judge.copies(v, c) for v, c in zip(videos, few[0], strict=True)) == 0


@pytest.mark.parametrize("field", ["colour", "shape", "background"])
def test_fidelity_to_a_wrong_caption_is_worse(few, decoded, field):
    values = {"colour": list(COLOURS), "shape": SHAPES, "background": list(BACKGROUNDS)}[field]
    for video, caption, colours in zip(decoded[:FEW], few[0], few[1].colour.tolist(), strict=True):
        taken = {getattr(caption, field), *(list(COLOURS)[k] for k in colours)}
        other = replace(caption, **{field: next(value for value in values if value not in taken)})
        assert judge.fidelity(video, other) > 1.3 * judge.fidelity(video, caption)


def test_ragged_rim_costs_fidelity_and_details_beside_the_object_do_not(few, drawn):
    """Rags are the object's own colour outside its shape."""
    captions, layout = few
    bare = changed(layout, detail_radius=lambda r: r.fill_(-9.0))
    true = mean_fidelity(drawn.videos[:FEW], captions)
    assert mean_fidelity(bare, captions) == pytest.approx(true, rel=0.1)
    rng = np.random.default_rng(0)
    ragged = drawn.videos[:FEW].copy()
    names = list(COLOURS)
    for video, seen, caption in zip(ragged, drawn.seen.numpy(), captions, strict=False):
        rim = scipy.ndimage.binary_dilation(seen[0] > 0.5, np.ones((1, 5, 5))) & (seen[0] < 0.05)
        video[rim & (rng.random(rim.shape) < 0.4)] = COLOURS[names[names.index(caption.colour)]]
    assert mean_fidelity(ragged, captions) > 2 * true
