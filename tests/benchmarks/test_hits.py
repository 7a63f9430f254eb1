"""The table `hits` on one pair of the bench model: what each system is measured against, and at which cost."""

from __future__ import annotations

import numpy as np
import pytest

from bench_wan import details
from benchmarks.samples import Bench, InProcess
from benchmarks.scene_pairs import REPORTED, scene_pairs
from benchmarks.systems import BenchWan
from benchmarks.tables import hits

STEPS = 20


@pytest.fixture(scope="module")
def bench(comfy_host, tmp_path_factory):
    kept = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHORUS_CACHE_DIR", "set by the bench")
        made = Bench(kept, host=InProcess(kept / "caches", comfy_host))
        yield made
        made.host.forget_caches()


@pytest.fixture(scope="module")
def systems(bench):
    """Of the pairs with a local change, the one whose source shows most details."""
    wan, local = bench.of(BenchWan()), ("shape", "second shape", "second colour", "removed", "dots")
    pairs = [hits.pair_of(pair, STEPS) for pair in scene_pairs(11, REPORTED) if pair.change in local]

    def shown(pair: hits.Pair) -> int:
        frames = wan.frames(wan.sample(pair.source))
        return len(details.visible(details.find(frames), frames))

    return hits.Systems(wan, max(pairs, key=shown))


@pytest.fixture(scope="module")
def measured(systems):
    return systems.measured()


def test_rivals_are_taken_at_the_hits_cost(measured):
    cost = measured["look and join"]["cost"]
    assert 1.0 < cost < 0.8 * STEPS
    for rival in ("fewer steps", "fewer steps, source's seed", "NIRVANA"):
        assert measured[rival]["cost"] == pytest.approx(cost)
    assert measured["cold"]["cost"] == STEPS


def test_a_video_keeps_all_details_of_itself_and_few_of_another(measured, systems):
    assert measured["cold"]["kept"] == measured["cold"]["wanted"] > 0
    other = systems._told(systems.other, systems.cold)
    assert other["kept"] < 0.5 * other["wanted"]


def test_the_hit_stays_with_its_source(measured, systems):
    """And a planted fault shows: another video in its place differs from the source as another take does."""
    hit, fewer = measured["look and join"], measured["fewer steps"]
    assert hit["difference"] < 0.5 * fewer["difference"]
    planted = systems._told({**systems.other, "masks": systems.hit["masks"]}, systems.source, inside=systems.on_source)
    assert planted["difference"] > 0.5 * fewer["difference"]
    assert planted["kept"] < hit["kept"]


def test_details_are_those_of_the_source_outside_the_edit_mask_and_of_the_target_inside(systems):
    """Given the source's own video as a hit, what is missed lies inside the mask."""
    told = systems._told({**systems.source, "masks": systems.hit["masks"]}, systems.source, inside=systems.on_source)
    edit = hits.mask_of(systems.hit["masks"], "edit", systems.source_frames.shape[:3])
    seen = details.visible(details.find(systems.source_frames), systems.source_frames)
    outside = sum(not hits._lies_in(one, edit) for one in seen)
    assert 0 < outside <= told["kept"] <= told["wanted"]


def test_every_system_is_pictured_and_the_hit_with_its_mask(systems):
    pictures = systems.pictures()
    assert {picture.shape for picture in pictures.values()} == {(96, 96, 3)}
    frames = systems.wan.frames(systems.hit)
    assert not np.allclose(pictures["look and join"], frames[-1], atol=0.01), "no line around the mask"
    assert np.allclose(pictures["in full"], systems.wan.frames(systems.cold)[-1])


def test_the_summary_of_one_pair(measured, systems):
    told = hits.of_systems([measured, measured])
    summary = hits._summary(STEPS, told)
    assert summary["hit_cost"]["mean"] == pytest.approx(measured["look and join"]["cost"] / STEPS, abs=1e-5)
    difference = measured["look and join"]["alignment"] - measured["fewer steps"]["alignment"]
    assert summary["alignment_vs_fewer"]["mean"] == pytest.approx(difference)
    own = measured["fewer steps"]["difference"] / measured["look and join"]["difference"]
    assert summary["consistency_ratio_own"]["mean"] == pytest.approx(own, abs=1e-4)
