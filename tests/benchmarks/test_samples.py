"""The bench samples through the host what it says, and keeps what it sampled."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.__main__ import forget
from benchmarks.rivals import nirvana
from benchmarks.samples import Bench, InProcess
from benchmarks.systems import CHORUS, COLD, Request, System
from chorus.reuse.course import calibrated
from small_wan import scenes

RED = scenes.Caption("red", "circle", "right", "navy")
GREEN = replace(RED, colour="green")


def asked(caption: scenes.Caption, seed: int, steps: int = 6) -> Request:
    return Request(caption.text, seed, steps, caption=caption)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def bench(comfy_host, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHORUS_CACHE_DIR", "set by the bench")
        made = Bench(kept, host=InProcess(kept / "caches", comfy_host))
        yield made
        made.host.forget_caches()


def test_cold_is_the_whole_schedule_and_is_kept(bench, kept):
    first = bench.sample(asked(RED, 1))
    sampled = bench.sampled
    assert (first["outcome"], first["step_equivalents"]) == ("cold", 6.0)
    assert set(first["right"]) == {"background", "colour", "direction", "shape"}
    assert bench.sample(asked(RED, 1)) is first
    assert bench.sampled == sampled
    assert Bench(kept).sample(asked(RED, 1)) == first  # and no host is started for it
    assert bench.sample(asked(RED, 2))["features"] != first["features"]


def test_processes_side_by_side_share_what_they_sample(bench, kept):
    beside = Bench(kept, order=1)
    sample = bench.sample(asked(RED, 21))
    assert beside.sample(asked(RED, 21)) == sample  # and no host is started for it
    line = json.dumps({"id": "from another process", "n": 1}) + "\n"
    with (kept / "samples-other.jsonl").open("w", encoding="utf-8") as other:
        other.write(line[:20])
        other.flush()
        assert beside.once("made here", lambda: {"n": 2})["n"] == 2
        other.write(line[20:])
    assert beside.once("from another process", lambda: pytest.fail("made twice"))["n"] == 1


def test_each_process_has_an_order_of_its_own_and_one_result(tmp_path):
    orders, numbers = [], list(range(20))
    for order in (None, 0, 1):
        seen: list[int] = []
        made = Bench(tmp_path, order=order).each(numbers, lambda n, seen=seen: seen.append(n) or 10 * n)
        assert made == [10 * n for n in numbers] and sorted(seen) == numbers
        orders.append(seen)
    assert orders[0] == numbers and orders[1] != orders[2] != numbers


@pytest.mark.parametrize("steps", [4, 6, 20])
def test_fixed_k1_is_obeyed(bench, steps):
    for k in range(1, steps, max(1, steps // 4)):
        system = System("fixed", k1=k, selective=False, strength=0.0, method="early start")
        hit = bench.sample(asked(GREEN, 3, steps), system, asked(RED, 4, steps))
        assert (hit["outcome"], hit["k1"], hit["steps_computed"]) == ("hit", k, steps - k)


def test_a_rule_holds_for_its_own_sample_alone(bench):
    """Its source keeps the estimate of its own second look, and the next hit goes on as calibrated."""
    source, known = asked(RED, 8, 12), calibrated().rule(12)
    hit = System("look and join, none left out", selective=False, strength=0.0)
    given = replace(known, second_look=4, full_from=10, refresh=4, thinned=2)
    other = bench.sample(asked(GREEN, 9, 12), replace(hit, rule=given), source)
    usual = bench.sample(asked(GREEN, 9, 12), hit, source)
    same = bench.sample(asked(GREEN, 9, 12), replace(hit, rule=known), source)
    assert (other["outcome"], usual["outcome"]) == ("hit", "hit")
    assert other["step_equivalents"] != usual["step_equivalents"] == same["step_equivalents"]
    assert other["features"] != usual["features"] == same["features"]


def test_nirvana_takes_the_sources_noise(bench):
    """With all of the schedule but a step reused, its state as it was decides the video."""
    source, k = asked(RED, 5), 5
    one = bench.sample(asked(GREEN, 6), nirvana(k), source)
    other = bench.sample(asked(GREEN, 7), nirvana(k), source)
    ours = bench.sample(asked(GREEN, 7), replace(nirvana(k), source_noise=False), source)
    assert one["features"] == other["features"]
    assert ours["features"] != other["features"]


def test_selective_steps_are_counted(bench):
    system = System("srd", k1=2, k2=4, edit_dilation=0, visible_dilation=0, method="early start")
    hit = bench.sample(asked(GREEN, 8), system, asked(RED, 9))
    assert len(hit["token_share"]) == 2
    assert hit["step_equivalents"] == pytest.approx(2 + sum(hit["token_share"]), abs=1e-3)


def test_easycache_is_counted(bench):
    cold = bench.sample(asked(RED, 10, 20), replace(COLD, easycache=0.5))
    assert cold["step_equivalents"] < 20
    hit = bench.sample(asked(GREEN, 11, 20), replace(CHORUS, easycache=0.5), asked(RED, 12, 20))
    assert hit["outcome"] == "hit"


def test_a_reader_needs_a_source(bench):
    with pytest.raises(ValueError, match="give it a source"):
        bench.sample(asked(RED, 1), CHORUS)


def test_the_masks_overlap_is_a_share(bench):
    found = bench.overlap(asked(GREEN, 13, 8), asked(RED, 14, 8))
    assert found is None or 0 < found <= 1


def test_small_sizes_of_another_caption_differ(bench):
    small = bench.sample(replace(asked(RED, 1), size=80, caption=None))  # the judge knows one size
    assert not np.allclose(small["features"], bench.sample(asked(RED, 1))["features"])


def test_forgetting_samples_leaves_what_else_lies_there(tmp_path):
    gone = ["samples-1.jsonl", "bench_Wan/samples-2.jsonl", "bench_Wan/frames/a.npy", "caches/b"]
    stays = ["results/hits.json", "gpu/train.json", "0123/videos/c.mp4"]
    for name in (*gone, *stays):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    forget(tmp_path)
    assert [name for name in (*gone, *stays) if (tmp_path / name).exists()] == stays
