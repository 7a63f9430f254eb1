"""What a run leaves behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def recording(pack_module):
    return pack_module("chorus.comfy.recording")


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


# -- states -----------------------------------------------------------------------------------------------------


def test_without_drawn_noise_the_clean_component_is_kept(recording):
    kept, picture = recording.Recording(noise()), noise(1)
    kept.keep(0.8, 0.8 * noise() + 0.2 * picture)
    assert torch.allclose(kept.states[0.8], picture, atol=1e-5)


def test_at_sigma_one_there_is_only_noise_and_nothing_is_kept(recording):
    kept = recording.Recording(noise())
    kept.keep(1.0, noise())
    assert kept.states == {}


def test_with_drawn_noise_the_state_itself_is_kept(recording):
    kept, x = recording.Recording(None), noise(2)
    kept.keep(1.0, x)
    assert torch.equal(kept.states[1.0], x)


@pytest.mark.parametrize("own", [None, noise()])
def test_a_kept_state_is_a_copy_in_single_precision(recording, own):
    kept, x = recording.Recording(own), noise(2).half()
    kept.keep(0.5, x)
    before = kept.states[0.5].clone()
    x.zero_()
    assert kept.states[0.5].dtype == torch.float32
    assert torch.equal(kept.states[0.5], before)


def test_a_later_evaluation_at_a_sigma_replaces_the_earlier(recording):
    kept = recording.Recording(None)
    kept.keep(0.5, noise(1))
    kept.keep(0.5, noise(2))
    assert torch.equal(kept.states[0.5], noise(2))


def test_looks_add_up_and_are_counted(recording):
    kept = recording.Recording(None)
    for seed in range(3):
        kept.look(noise(seed))
    assert kept.attention_count == 3
    assert torch.allclose(kept.attention, sum(noise(s) for s in range(3)))


# -- finished runs ----------------------------------------------------------------------------------------------


def test_a_finished_run_waits_for_its_plan_only_and_is_taken_once(recording):
    runs, run = recording.FinishedRuns(), SimpleNamespace()
    runs.put("a", run)
    assert runs.get("b") is None and runs.get("a") is run
    assert runs.take("a") is run
    assert runs.take("a") is None and len(runs) == 0


def test_runs_that_nobody_stores_do_not_pile_up(recording):
    runs = recording.FinishedRuns(kept=2)
    for name in "abca":
        runs.put(name, name)
    assert len(runs) == 2
    assert (runs.get("a"), runs.get("b"), runs.get("c")) == ("a", None, "c")


@pytest.mark.parametrize(("last", "complete"), [(0.0, True), (0.3, False)])
def test_a_run_is_complete_at_sigma_zero(recording, last, complete):
    run = SimpleNamespace(sigmas=(1.0, 0.5, last))
    assert recording.FinishedRun.complete.fget(run) is complete


# -- reports ----------------------------------------------------------------------------------------------------


def report(recording, outcome="hit", **figures):
    return recording.Report(outcome, "because", 0.87, "a red circle", **figures)


def test_the_headline_of_a_hit_says_what_was_reused(recording):
    line = report(recording, k1=2, k2=3, steps=4, token_share=[0.38]).headline()
    assert line == "hit 0.87 · 2 of 4 steps reused · 38% of tokens at step 3"


def test_the_headline_of_a_miss_says_why(recording):
    assert report(recording, "miss").headline() == "miss: because"


def test_the_headline_of_an_identical_request_has_no_step(recording):
    assert report(recording, "identical", steps=4).headline() == "identical request · 0 of 4 steps computed"


def test_the_halves_of_a_schedule_add_up(recording):
    first = report(
        recording, k1=3, k2=4, steps=6, steps_computed=3, step_equivalents=2.4, token_share=[0.4], notes=["x"]
    )
    whole = report(recording, "miss", steps=4, steps_computed=4, step_equivalents=4.0, notes=["x", "y"])
    first.sampling_s, whole.sampling_s = 2.0, 3.0
    whole.add(first)
    assert (whole.k1, whole.k2, whole.steps, whole.steps_computed) == (3, 4, 10, 7)
    assert (whole.step_equivalents, whole.sampling_s, whole.token_share) == (pytest.approx(6.4), 5.0, [0.4])
    assert whole.notes == ["x", "y"]
    assert whole.outcome == "hit"


def test_a_second_half_that_hits_keeps_its_outcome(recording):
    whole = report(recording, "hit")
    whole.add(report(recording, "miss"))
    assert whole.outcome == "hit"
