"""What is recorded of a run, so that others can start from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

SIGMAS = (1.0, 0.8, 0.5, 0.0)


@pytest.fixture(scope="module")
def techniques(pack_module):
    return pack_module("chorus.comfy.techniques")


@pytest.fixture(scope="module")
def schedule(pack_module):
    return pack_module("chorus.reuse.schedule").Schedule(SIGMAS)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def record(techniques, schedule):
    """`record(**changes)`: the technique at the beginning of a run, and what it answered."""

    def begun(draws_noise=False, writes=True, stored=True, before=None, schedule=schedule):
        request = SimpleNamespace(
            given=None,
            plan=SimpleNamespace(writes=writes),
            stored=stored,
            before=before,
            sampler=SimpleNamespace(draws_noise=draws_noise),
            noise=noise(),
        )
        made = techniques.record.Record(request)
        return made, made.begin(schedule)

    return begun


def states(made, schedule) -> dict[float, torch.Tensor]:
    return made.result(schedule).states


def test_without_drawn_noise_the_clean_component_is_kept(record, schedule):
    made, _ = record()
    picture = noise(1)
    made.before_evaluation(schedule, 1, 0.8, 0.8 * noise() + 0.2 * picture)
    assert torch.allclose(states(made, schedule)[0.8], picture, atol=1e-5)


def test_at_sigma_one_there_is_only_noise_and_nothing_is_kept(record, schedule):
    made, _ = record()
    made.before_evaluation(schedule, 0, 1.0, noise())
    assert states(made, schedule) == {}


def test_with_drawn_noise_the_state_itself_is_kept(record, schedule):
    made, _ = record(draws_noise=True)
    made.before_evaluation(schedule, 0, 1.0, noise(2))
    assert torch.equal(states(made, schedule)[1.0], noise(2))


@pytest.mark.parametrize("draws_noise", [True, False])
def test_a_kept_state_is_a_copy_in_single_precision(record, schedule, draws_noise):
    made, _ = record(draws_noise)
    x = noise(2).half()
    made.before_evaluation(schedule, 2, 0.5, x)
    before = states(made, schedule)[0.5].clone()
    x.zero_()
    assert states(made, schedule)[0.5].dtype == torch.float32
    assert torch.equal(states(made, schedule)[0.5], before)


def test_a_later_evaluation_at_a_sigma_replaces_the_earlier(record, schedule):
    made, _ = record(draws_noise=True)
    made.before_evaluation(schedule, 2, 0.5, noise(1))
    made.before_evaluation(schedule, 2, 0.5, noise(2))
    assert torch.equal(states(made, schedule)[0.5], noise(2))


def test_evaluations_between_two_steps_are_not_kept_and_a_state_has_the_sigma_of_its_step(record, schedule):
    made, _ = record()
    for sigma in (0.9, 0.65, 0.50005):
        made.before_evaluation(schedule, 0, sigma, noise(1))
    assert list(states(made, schedule)) == [0.5]


@pytest.mark.parametrize("changes", [{"writes": False}, {"stored": False}])
def test_nothing_is_recorded_that_nobody_will_store(record, schedule, changes):
    made, _ = record(**changes)
    made.before_evaluation(schedule, 2, 0.5, noise(1))
    assert made.result(schedule) is None


def test_a_run_that_started_from_another_is_not_recorded(record, schedule):
    made, _ = record(schedule=schedule.from_step(1))
    assert made.result(schedule) is None


def test_a_second_half_goes_on_with_the_recording_of_the_first(record, schedule, pack_module):
    recording = pack_module("chorus.comfy.sampling.finished").Recording({0.9: noise(3)}, {}, torch.zeros(1, 2, 3, 3), 1)
    made, decided = record(before=SimpleNamespace(recording=recording, noise_drawn=False))
    made.before_evaluation(schedule, 2, 0.5, noise(1))
    assert decided is None and list(states(made, schedule)) == [0.9, 0.5]
    assert list(recording.states) == [0.9], "the first half's own recording grew"
    made._add(torch.ones(1, 2, 3, 3))  # the mean of the maps of both halves
    assert torch.equal(made.result(schedule).attention, torch.full((1, 2, 3, 3), 0.5))


def test_without_a_recording_of_the_first_half_there_is_none_of_the_second(record, schedule):
    made, decided = record(before=SimpleNamespace(recording=None, noise_drawn=False))
    assert decided is None and made.result(schedule) is None


def test_two_halves_of_which_one_draws_noise_are_no_source_and_say_so(record, schedule, pack_module):
    recording = pack_module("chorus.comfy.sampling.finished").Recording()
    made, decided = record(before=SimpleNamespace(recording=recording, noise_drawn=True))
    assert decided.why.code == "note.two_samplers" and not decided.miss
    assert made.result(schedule) is None


def test_maps_of_attention_are_kept_as_their_mean(record, schedule):
    made, _ = record()
    for seed in range(3):
        made._add(noise(seed))
    assert torch.allclose(made.result(schedule).attention, sum(noise(s) for s in range(3)) / 3, atol=1e-6)


@pytest.mark.parametrize(("steps", "watched"), [(1, set()), (2, {1}), (4, {1, 2}), (20, {5, 8}), (50, {12, 20})])
def test_two_steps_in_the_middle_are_watched(techniques, steps, watched):
    assert techniques.record.watched_steps(steps) == watched
