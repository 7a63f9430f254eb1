"""The unnamed details are found, kept apart and matched one by one; each planted loss is counted as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch

from bench_wan import details, scenes

FEW = 60


def true_places(layout: scenes.Layout) -> np.ndarray:
    """[N, DETAILS, T, 2]"""
    moments = torch.arange(scenes.FRAMES)[:, None]
    return (layout.detail_place[:, :, None] + layout.detail_drift[:, :, None] * moments).numpy()


def exposed(drawn) -> np.ndarray:
    """[N, DETAILS, T]: how much of a detail no object and no dot hides, and that is in the picture."""
    above = drawn.seen[:, :4].sum(1).numpy()
    middle = torch.arange(scenes.SIZE) + 0.5
    layout, out = drawn.layout, []
    for k, path in enumerate(true_places(layout).swapaxes(0, 1)):
        x, y = (torch.from_numpy(path[..., axis, None, None]).float() for axis in (0, 1))
        alone = scenes._chosen(
            scenes.TEXTURES, layout.detail_texture[:, k], middle - x, middle[:, None] - y, layout.detail_radius[:, k]
        ).numpy()
        out.append((alone * (1 - above)).sum((2, 3)) / alone.sum((2, 3)))
    return np.stack(out, 1)


def same(detail: details.Detail, places: np.ndarray, tint: int) -> bool:
    away = np.hypot(*(detail.places - places)[detail.seen].T).mean()
    return detail.tint == tint and away <= 4.0


@pytest.fixture(scope="module")
def found(decoded) -> list[list[details.Detail]]:
    """What is found in every true video through the codec."""
    return [details.find(video) for video in decoded]


def total(found) -> int:
    return sum(map(len, found))


def kept(reference, videos) -> float:
    """Share of the reference's details that the videos keep."""
    other = [details.find(video) for video in videos]
    return sum(map(details.matched, reference, other)) / total(reference)


def test_most_details_are_found_and_nothing_else_is(drawn, found):
    places, tints = true_places(drawn.layout), drawn.layout.detail_tint.numpy()
    in_sight = (exposed(drawn) >= 0.6).sum(2) * 2 > scenes.FRAMES
    hit = [any(same(detail, places[i, k], tints[i, k]) for detail in found[i]) for i, k in np.argwhere(in_sight)]
    assert np.mean(hit) >= 0.95
    true = [
        any(same(detail, places[i, k], tints[i, k]) for k in range(scenes.DETAILS))
        for i, those in enumerate(found)
        for detail in those
    ]
    assert np.mean(true) >= 0.98
    assert len(true) > 4.5 * len(found)


def test_size_and_texture_are_told(drawn, found):
    places, layout = true_places(drawn.layout), drawn.layout
    ratios, textures = [], []
    for i, those in enumerate(found):
        for k in range(scenes.DETAILS):
            for detail in those:
                if same(detail, places[i, k], int(layout.detail_tint[i, k])):
                    texture, r = scenes.TEXTURES[layout.detail_texture[i, k]], float(layout.detail_radius[i, k])
                    area = {"disc": np.pi * r**2, "bar": 3.6 * r**2, "ring": np.pi * ((r + 0.6) ** 2 - (0.45 * r) ** 2)}
                    ratios.append(detail.size / np.sqrt(area[texture] / np.pi))
                    textures.append(detail.texture == texture)
    assert np.mean(textures) >= 0.85
    assert np.mean(np.abs(np.log(ratios)) < np.log(1.25)) >= 0.85


def test_codec_keeps_the_details(drawn, found):
    raw = [details.find(video) for video in drawn.videos]
    assert sum(map(details.matched, raw, found)) >= 0.95 * total(raw)
    assert sum(map(details.matched, found, raw)) >= 0.95 * total(found)


def test_details_match_themselves_and_hardly_those_of_other_scenes(found):
    assert all(details.matched(those, those) == len(those) for those in found)
    chance = np.mean([sum(map(details.matched, found, found[k:] + found[:k])) / total(found) for k in (1, 2, 3, 4)])
    assert chance <= 0.02


def test_white_dots_and_objects_are_no_details(drawn, through_codec):
    bare = replace(drawn.layout[:FEW], detail_radius=torch.full((FEW, scenes.DETAILS), -9.0))
    assert total(details.find(video) for video in through_codec(scenes.draw(bare)[0].numpy())) == 0


def test_half_contrast_counts_and_a_quarter_does_not(drawn, found, through_codec):
    full = drawn.videos[:FEW]
    layout = replace(drawn.layout[:FEW], detail_radius=torch.full((FEW, scenes.DETAILS), -9.0))
    bare = scenes.draw(layout)[0].numpy()
    assert kept(found[:FEW], through_codec(bare + 0.5 * (full - bare))) >= 0.9
    assert kept(found[:FEW], through_codec(bare + 0.25 * (full - bare))) <= 0.1


def test_blur_loses_details_the_more_the_stronger_it_is(drawn, found, through_codec):
    shares = [
        kept(found[:FEW], through_codec(scipy.ndimage.gaussian_filter(drawn.videos[:FEW], (0, 0, s, s, 0))))
        for s in (1.0, 2.0, 4.0)
    ]
    assert shares[0] >= 0.9
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.5


@pytest.fixture(scope="module")
def planted(drawn, found):
    """Rows, and of each the index of a detail that is found in it, in full sight, and far from every other one."""
    layout = drawn.layout
    places, tints = true_places(layout), layout.detail_tint.numpy()
    clear = exposed(drawn).min(2) > 0.95
    rows, which = [], []
    for i, those in enumerate(found):
        for k in np.flatnonzero(clear[i]):
            apart = np.linalg.norm(places[i] - places[i, k], axis=-1).min(1)
            apart[k] = np.inf
            if apart.min() > 14 and sum(same(detail, places[i, k], tints[i, k]) for detail in those) == 1:
                rows.append(i)
                which.append(k)
                break
    assert len(rows) >= FEW
    return torch.tensor(rows[:FEW]), torch.tensor(which[:FEW])


@pytest.mark.parametrize("damage", ["another tint", "another place", "another size", "removed", "another drift"])
def test_one_damaged_detail_is_one_detail_lost(drawn, found, planted, through_codec, damage):
    rows, which = planted
    layout, each = drawn.layout[rows], torch.arange(FEW)
    parts = {name: getattr(layout, name).clone() for name in vars(layout) if name.startswith("detail")}
    place = parts["detail_place"][each, which]
    inwards = torch.where(place < scenes.SIZE / 2, 1.0, -1.0)
    if damage == "another tint":
        parts["detail_tint"][each, which] = (parts["detail_tint"][each, which] + 1) % len(scenes.TINTS)
    elif damage == "another place":
        parts["detail_place"][each, which] = place + 7.0 * inwards
    elif damage == "another size":
        parts["detail_radius"][each, which] *= torch.where(parts["detail_radius"][each, which] > 3.2, 0.45, 2.4)
    elif damage == "removed":
        parts["detail_radius"][each, which] = -9.0
    else:
        drift = parts["detail_drift"][each, which]
        own = drift - torch.stack((layout.pan, torch.zeros(FEW)), 1)
        parts["detail_drift"][each, which] = drift - scenes.DETAIL_DRIFT * own.sign()
    videos = through_codec(scenes.draw(replace(layout, **parts))[0].numpy())
    reference = [found[i] for i in rows]
    lost = np.array([len(a) - details.matched(a, details.find(v)) for a, v in zip(reference, videos, strict=True)])
    assert np.mean(lost == 1) >= 0.85  # beside a moved detail another one may be covered or come into sight
    assert np.mean(lost >= 1) >= 0.95


def test_matching_is_one_to_one():
    here = np.tile([[20.0, 30.0]], (5, 1))
    one = details.Detail(0, 3.0, 0.9, "disc", here, np.ones(5, bool))
    near = replace(one, places=here + 1.0)
    assert details.matched([one, near], [one]) == 1
    assert details.matched([one], [one, near]) == 1
    assert details.matched([one, near], [near, one]) == 2
    # The nearest one first would leave the other without a match.
    far = replace(one, places=here + np.array([3.5, 0]))
    left = replace(one, places=here - np.array([3.0, 0]))
    assert details.matched([one, left], [replace(one, places=here - np.array([0.5, 0])), far]) == 2
    assert details.matched([], [one]) == details.matched([one], []) == 0
    assert details.matched([one], [replace(one, tint=1)]) == 0
    assert details.matched([one], [replace(one, size=5.2)]) == 0
    assert details.matched([one], [replace(one, texture="ring")]) == 1


def test_what_lies_behind_an_object_in_most_frames_is_no_reference(drawn, through_codec):
    """A detail under a resting third object is not found; one that the other video hides is not asked of it."""
    layout = drawn.layout[:FEW]
    parts = {name: getattr(layout, name).clone() for name in ("detail_place", "detail_drift")}
    parts["detail_place"][:, 0] = layout.place[:, 2] + torch.tensor([0.0, 4.0])
    parts["detail_drift"][:, 0] = layout.drift[:, 2]
    hidden = replace(layout, **parts)
    videos = through_codec(scenes.draw(hidden)[0].numpy())
    places = true_places(hidden)[:, 0]
    for video, at, tint in zip(videos, places, layout.detail_tint[:, 0].tolist(), strict=True):
        assert not any(same(detail, at, tint) for detail in details.find(video))

    bare = replace(hidden, place=torch.stack((*hidden.place.unbind(1)[:2], hidden.place[:, 2] - 1000), 1))
    seen = through_codec(scenes.draw(bare)[0].numpy())
    shown = lost = 0
    for video, other, at, tint in zip(seen, videos, places, layout.detail_tint[:, 0].tolist(), strict=True):
        reference = details.find(video)
        shown += any(same(detail, at, tint) for detail in reference)
        asked = details.visible(reference, other)
        assert not any(same(detail, at, tint) for detail in asked)
        lost += len(reference) - len(details.visible(reference, video))
        assert details.matched(asked, details.find(other)) >= len(asked) - 1
    assert shown >= 0.9 * FEW
    assert lost <= 1, "of their own video, references are visible; one lies half behind a dot"


def test_noise_has_no_details_and_takes_no_time():
    rng = np.random.default_rng(0)
    assert details.find(rng.random((5, scenes.SIZE, scenes.SIZE, 3), np.float32)) == []


def test_larger_frames_show_the_same(drawn, found):
    large = drawn.videos[0].repeat(2, axis=1).repeat(2, axis=2)
    assert details.matched(details.find(drawn.videos[0]), details.find(large)) == len(details.find(large))
