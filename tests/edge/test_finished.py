"""What a run leaves behind for its store node, and the figures people see of it."""

from __future__ import annotations

import pytest
import torch

NUMBERS = 1000  # of a run's final latent, 4 bytes each


@pytest.fixture(scope="module")
def finished(pack_module):
    return pack_module("chorus.comfy.sampling.finished")


@pytest.fixture(scope="module")
def make(finished):
    """`make(**changes)`: a run that came to its end."""

    def run(**changes):
        given = {
            "plan": None,
            "report": finished.Report("miss", "because", None, None),
            "request": "r",
            "calls": ["c"],
            "sigmas": (1.0, 0.5, 0.0),
            "whole_steps": 2,
            "final": torch.zeros(NUMBERS),
            "seed": 1,
            "noise": None,
            "noise_digest": "n",
            "noise_drawn": False,
            "carried": "",
            "text_digest": "t",
            "sampler": "euler",
            "parts": (),
            "tokens": None,
            "parent": None,
        }
        return finished.FinishedRun(**given | changes)

    return run


def anyone(run) -> bool:
    return True


# -- runs that wait ---------------------------------------------------------------------------------------------


def test_a_finished_run_waits_for_its_plan_only_until_it_is_removed(finished, make):
    runs, run = finished.FinishedRuns(), make()
    runs.put("a", run)
    assert runs.find("b", anyone) is None
    assert runs.find("a", anyone) is runs.find("a", anyone) is run
    runs.remove(run)
    assert runs.find("a", anyone) is None and len(runs) == 0
    runs.remove(run)  # of several store nodes on one run, each removes it


def test_several_runs_of_one_plan_wait_side_by_side_and_each_is_found_by_its_latent(finished, make):
    """A list of seeds on one look-up: the host runs all samplers before the first store node."""
    runs, made = finished.FinishedRuns(), [make(final=torch.full((NUMBERS,), float(n))) for n in range(4)]
    for run in made:
        runs.put("a", run)
    for run in made:
        assert runs.find("a", lambda one, run=run: torch.equal(one.final, run.final)) is run
    assert runs.find("a", lambda one: False) is None
    assert len(runs) == 4


def test_of_runs_that_fit_alike_the_oldest_is_found(finished, make):
    runs, older, newer = finished.FinishedRuns(), make(), make()
    runs.put("a", older)
    runs.put("b", make())
    runs.put("a", newer)
    assert runs.find("a", anyone) is older
    runs.remove(older)
    assert runs.find("a", anyone) is newer


def test_runs_that_nobody_stores_do_not_pile_up(finished, make):
    runs, made = finished.FinishedRuns(most_bytes=3 * 4 * NUMBERS), [make() for _ in range(5)]
    for number, run in enumerate(made):
        runs.put("a" if number % 2 else "b", run)
    assert len(runs) == 3
    kept = [any(runs.find(plan, lambda one, run=run: one is run) for plan in "ab") for run in made]
    assert kept == [False, False, True, True, True]


def test_the_newest_run_is_kept_however_large_it_is(finished, make):
    runs, large = finished.FinishedRuns(most_bytes=4 * NUMBERS), make(final=torch.zeros(10 * NUMBERS))
    runs.put("a", make())
    runs.put("a", large)
    assert len(runs) == 1 and runs.find("a", anyone) is large


def test_all_that_a_run_holds_counts(finished, make):
    recording = finished.Recording({0.9: torch.zeros(10), 0.5: torch.zeros(10)}, torch.zeros(3).half())
    run = make(
        noise=torch.zeros(20),
        tokens=torch.zeros(5, 2),
        results={"record": recording, "regions": torch.zeros(7), "reuse": None},
    )
    assert run.bytes == 4 * (NUMBERS + 20 + 10 + 2 * 10 + 7) + 2 * 3
    assert make().bytes == 4 * NUMBERS


def test_only_a_recorded_run_has_a_recording(finished, make):
    recording = finished.Recording()
    assert make(results={"record": recording}).recording is recording
    assert make(results={"record": None}).recording is make().recording is None


def test_the_latest_estimate_waits_only_for_a_second_half(pack_module):
    schedule = pack_module("chorus.reuse.schedule").Schedule
    made = pack_module("chorus.comfy.techniques.selective").Selective(request=None)
    made.known = torch.ones(3)
    assert torch.equal(made.result(schedule((1.0, 0.5))), torch.ones(3))
    assert made.result(schedule((1.0, 0.0))) is None


@pytest.mark.parametrize(("last", "complete"), [(0.0, True), (0.3, False)])
def test_a_run_is_complete_at_sigma_zero(make, last, complete):
    assert make(sigmas=(1.0, 0.5, last)).complete is complete


# -- runs that were left alone ----------------------------------------------------------------------------------


def test_why_a_run_was_left_alone_is_told_to_its_plan_until_one_is_served(finished, make):
    runs = finished.FinishedRuns()
    runs.bypass("a", "first")
    runs.bypass("a", "second")
    assert (runs.bypassed("a").reason, runs.bypassed("b")) == ("second", None)
    runs.put("b", make())
    assert runs.bypassed("a").reason == "second"
    runs.put("a", make())
    assert runs.bypassed("a") is None


def test_a_second_sampler_that_is_left_alone_tells_of_a_first_part_from_the_cache(finished, make, pack_module):
    """With the first part's notes; a first part in full, or another latent, is nothing to tell of."""
    why = pack_module("chorus.messages").say("bypassed.text")
    for outcome, latent, code in (
        ("hit", torch.zeros(NUMBERS), "bypassed.second"),
        ("hit", torch.ones(NUMBERS), "bypassed.text"),
        ("miss", torch.zeros(NUMBERS), "bypassed.text"),
    ):
        runs, report = finished.FinishedRuns(), finished.Report(outcome, why, None, None, notes=["its seed"])
        runs.put("a", make(report=report, sigmas=(1.0, 0.5)))
        runs.bypass("a", why, latent)
        told = runs.bypassed("a")
        assert told.reason.code == code
        assert told.notes == (("its seed",) if code == "bypassed.second" else ())


def test_reasons_that_nobody_asks_for_do_not_pile_up(finished):
    runs = finished.FinishedRuns()
    for number in range(300):
        runs.bypass(str(number), "why")
    told = [number for number in range(300) if runs.bypassed(str(number))]
    assert told == list(range(300 - 256, 300))


def test_a_plan_of_which_a_node_failed_is_declined_from_then_on(finished, make):
    runs = finished.FinishedRuns()
    runs.decline("a", "a node failed")
    runs.put("a", make())
    assert (runs.declined("a"), runs.declined("b")) == ("a node failed", None)
    for number in range(256):
        runs.decline(str(number), "why")
    assert runs.declined("a") is None and runs.declined("0") == "why"


# -- reports ----------------------------------------------------------------------------------------------------


def report(finished, outcome="hit", **figures):
    return finished.Report(outcome, "because", 0.87, "a red circle", **figures)


def test_the_headline_of_a_hit_says_what_was_reused(finished):
    line = report(finished, k1=2, k2=3, steps=4, token_share=[0.38], step_equivalents=1.38).headline()
    assert line == "hit 0.87 · cost of 1.4 of 4 steps"


def test_the_headline_of_a_miss_says_why(finished):
    assert report(finished, "miss").headline() == "miss: because"


def test_the_headline_of_an_identical_request_has_no_step(finished):
    assert report(finished, "identical", steps=4).headline() == "identical request · 0 of 4 steps computed"


def test_the_halves_of_a_schedule_add_up(finished):
    first = report(
        finished, k1=3, k2=4, steps=6, steps_computed=3, step_equivalents=2.4, token_share=[0.4], notes=["x"]
    )
    whole = report(finished, "miss", steps=4, steps_computed=4, step_equivalents=4.0, notes=["x", "y"])
    first.sampling_s, whole.sampling_s = 2.0, 3.0
    whole.add(first)
    assert (whole.k1, whole.k2, whole.steps, whole.steps_computed) == (3, 4, 10, 7)
    assert (whole.step_equivalents, whole.sampling_s, whole.token_share) == (pytest.approx(6.4), 5.0, [0.4])
    assert whole.notes == ["x", "y"]
    assert whole.outcome == "hit"


def test_a_second_half_that_hits_keeps_its_outcome(finished):
    whole = report(finished, "hit")
    whole.add(report(finished, "miss"))
    assert whole.outcome == "hit"
