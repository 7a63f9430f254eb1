"""A schedule, and the path that is walked on it: which step begins at which σ."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chorus.reuse.schedule import Schedule, steps_reached, stretched
from chorus.reuse.trajectory import SIGMA_TOLERANCE

from .schedules import CUTS, schedules, shifted

EVEN = [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_step_at_the_cut_is_reached():
    assert steps_reached(EVEN, 0.5) == 2


def test_a_step_below_the_cut_is_not_reached():
    assert steps_reached(EVEN, 0.51) == 1


def test_rounding_of_a_schedule_does_not_move_the_cut():
    assert steps_reached(EVEN, 0.5 + 0.5 * SIGMA_TOLERANCE) == 2
    assert steps_reached(EVEN, 0.5 + 2 * SIGMA_TOLERANCE) == 1


@pytest.mark.parametrize("sigmas", [[], [0.0], [1.0]])
def test_a_schedule_without_steps_has_none_to_reuse(sigmas):
    assert steps_reached(sigmas, 0.0) == 0


def test_a_schedule_that_starts_below_the_cut_reuses_nothing():
    tail = shifted(10, 5.0)[7:]
    assert tail[0] < 0.9
    assert steps_reached(tail, 0.9) == 0


@given(schedules(), CUTS)
def test_steps_before_the_cut_are_those_at_or_above_it(sigmas, cut):
    k = steps_reached(sigmas, cut)
    assert 0 <= k < len(sigmas)
    assert k == 0 or sigmas[k] >= cut - SIGMA_TOLERANCE
    assert all(s < cut - SIGMA_TOLERANCE for s in sigmas[k + 1 :])


@given(schedules(), CUTS, CUTS)
def test_a_lower_cut_never_reaches_fewer_steps(sigmas, one, other):
    high, low = max(one, other), min(one, other)
    assert steps_reached(sigmas, low) >= steps_reached(sigmas, high)


@given(schedules())
def test_a_schedule_that_ends_at_the_cut_is_reached_whole(sigmas):
    assert steps_reached(sigmas, sigmas[-1]) == len(sigmas) - 1


def test_a_first_expert_that_the_source_passes_is_reached_whole():
    assert steps_reached(EVEN[:3], 0.3) == 2


@given(schedules(), CUTS, st.data())
def test_a_schedule_cut_in_two_agrees_with_the_whole(sigmas, cut, data):
    index = data.draw(st.integers(1, len(sigmas) - 1), label="cut at step")
    first, second = sigmas[: index + 1], sigmas[index:]
    assert steps_reached(first, cut) + steps_reached(second, cut) == steps_reached(sigmas, cut)


@given(st.integers(1, 60), st.sampled_from([1.0, 5.0, 8.0]), st.floats(0.01, 0.99))
def test_the_same_cut_skips_the_same_part_of_short_and_long_schedules(steps, shift, cut):
    k = steps_reached(shifted(steps, shift), cut)
    longer = shifted(steps * 4, shift)
    assert 0 <= steps_reached(longer, cut) - 4 * k < 4


# -- a schedule that begins elsewhere ---------------------------------------------------------------------------


@given(st.integers(2, 60), st.sampled_from([1.0, 5.0, 8.0]), st.floats(0.01, 0.99), st.floats(0.0, 1.0))
def test_a_stretched_schedule_saves_its_steps_and_ends_where_it_did(steps, shift, share, earliness):
    sigmas = shifted(steps, shift)
    k1 = max(1, min(steps - 1, round(share * steps)))
    start = sigmas[k1] + earliness * (sigmas[0] - sigmas[k1])
    path = stretched(sigmas, k1, start)
    assert len(path) == len(sigmas) and path[-1] == sigmas[-1]
    assert path[k1] == pytest.approx(start)
    assert all(a > b for a, b in zip(path[k1:], path[k1 + 1 :], strict=False))


def test_a_state_at_k1_itself_leaves_the_schedule_as_it_is():
    sigmas = shifted(20, 5.0)
    assert stretched(sigmas, 8, sigmas[8]) == sigmas
    assert stretched(sigmas, 8, 0.01) == sigmas
    assert stretched(sigmas, 0, 0.99) == sigmas


# -- the path of a run ------------------------------------------------------------------------------------------


@st.composite
def paths(draw) -> Schedule:
    """Schedules of which some steps are skipped, some of them begun at an earlier state than σ_K1."""
    asked = tuple(draw(schedules()))
    n = len(asked) - 1
    k1 = draw(st.integers(0, n))
    schedule = Schedule(asked).from_step(k1)
    if draw(st.booleans()):
        start = asked[k1] + draw(st.floats(0.0, 1.0)) * (asked[0] - asked[k1])
        schedule = Schedule(asked).from_step(k1, start)
    return replace(schedule, k2=draw(st.integers(k1, n)))


@pytest.mark.parametrize("sigmas", [(), (1.0,)])
def test_a_schedule_of_less_than_two_sigmas_is_refused(sigmas):
    with pytest.raises(ValueError, match=f"this one has {len(sigmas)}"):
        Schedule(sigmas)


@pytest.mark.parametrize(("k1", "k2"), [(-1, 2), (3, 2), (2, 5), (5, 5)])
def test_stages_out_of_order_are_refused(k1, k2):
    with pytest.raises(ValueError, match=f"K1 = {k1}, K2 = {k2}"):
        Schedule(tuple(EVEN), k1, k2)


def test_a_schedule_is_complete_at_sigma_zero():
    assert Schedule(tuple(EVEN)).complete
    assert not Schedule(tuple(EVEN[:3])).complete


@given(schedules())
def test_without_reuse_the_path_is_the_schedule_as_asked(sigmas):
    schedule = Schedule(tuple(sigmas))
    assert schedule.path == schedule.whole_path == schedule.sigmas == tuple(sigmas)
    assert schedule.steps == len(sigmas) - 1


@given(paths())
def test_the_path_is_what_remains_from_k1_and_the_skipped_sigmas_are_as_asked(schedule):
    k1 = schedule.k1
    assert len(schedule.whole_path) == len(schedule.sigmas) == schedule.steps + 1
    assert schedule.whole_path[:k1] == schedule.sigmas[:k1]
    assert schedule.path == schedule.whole_path[k1:] and len(schedule.path) == schedule.steps - k1 + 1
    assert schedule.path[-1] == schedule.sigmas[-1]
    assert all(a > b for a, b in zip(schedule.path, schedule.path[1:], strict=False))


def test_from_an_earlier_state_the_remaining_steps_cover_all_the_way():
    schedule = Schedule(tuple(EVEN)).from_step(2, start=0.9)
    assert schedule.path == pytest.approx((0.9, 0.45, 0.0))
    assert schedule.whole_path[:2] == (1.0, 0.75)
    assert (schedule.k1, schedule.k2) == (2, 2)


@given(paths(), st.data())
def test_every_evaluation_of_a_step_belongs_to_it_and_only_the_first_begins_it(schedule, data):
    assume(schedule.k1 < schedule.steps)  # else nothing is walked
    step = data.draw(st.integers(schedule.k1, schedule.steps - 1), label="step")
    begins, ends = schedule.whole_path[step], schedule.whole_path[step + 1]
    assert schedule.step_at(begins) == schedule.begins_at(begins) == step
    within = begins - data.draw(st.floats(0.0, 0.99), label="share of the step") * (begins - ends)
    if within - ends > 2 * SIGMA_TOLERANCE:
        assert schedule.step_at(within) == step
    if begins - within > 2 * SIGMA_TOLERANCE and within - ends > 2 * SIGMA_TOLERANCE:
        assert schedule.begins_at(within) is None


@given(paths())
def test_an_evaluation_above_the_path_belongs_to_its_first_step_and_begins_none(schedule):
    assert schedule.step_at(schedule.path[0] + 0.5) == schedule.k1
    assert schedule.begins_at(schedule.path[0] + 0.5) is None


def test_rounding_of_an_evaluation_does_not_move_its_step():
    schedule = Schedule(tuple(EVEN))
    for sigma in (0.5 + 0.5 * SIGMA_TOLERANCE, 0.5 - 0.5 * SIGMA_TOLERANCE):
        assert schedule.step_at(sigma) == schedule.begins_at(sigma) == 2


def test_the_end_of_a_schedule_begins_no_step():
    assert Schedule(tuple(EVEN)).step_at(0.0) == 3
    assert Schedule(tuple(EVEN)).begins_at(0.0) is None


@given(paths())
def test_selective_steps_lie_between_k1_and_k2(schedule):
    selective = [step for step in range(schedule.steps) if schedule.in_stage_2(step)]
    assert selective == list(range(schedule.k1, schedule.k2))


# -- with a look ------------------------------------------------------------------------------------------------

KINDS = st.lists(st.sampled_from("FS-"), max_size=30).map(lambda kinds: "F" + "".join(kinds))


def even(steps: int) -> Schedule:
    return Schedule(tuple(1.0 - k / steps for k in range(steps + 1)))


@given(KINDS)
def test_a_schedule_with_a_look_walks_all_the_way_as_it_was_asked(kinds):
    schedule = even(len(kinds)).looking(kinds)
    assert schedule.path == schedule.whole_path == schedule.sigmas
    assert schedule.first == 0
    for step, sigma in enumerate(schedule.sigmas[:-1]):
        assert schedule.step_at(sigma) == step == schedule.begins_at(sigma)
        assert schedule.is_selective(step) == (kinds[step] == "S")
        assert schedule.is_skipped(step) == (kinds[step] == "-")


@given(KINDS)
def test_after_a_look_k1_is_the_next_computed_step_and_k2_the_first_of_only_full_ones(kinds):
    schedule = even(len(kinds)).looking(kinds)
    assert set(kinds[1 : schedule.k1]) <= {"-"}
    assert schedule.k1 == len(kinds) or kinds[schedule.k1] != "-"
    assert set(kinds[schedule.k2 :]) <= {"F"}
    assert schedule.k2 == schedule.k1 or kinds[schedule.k2 - 1] != "F"


def test_a_look_forgets_an_early_start_and_the_other_way_round():
    early = even(4).from_step(2, 1.0)
    looking = early.looking("F-FF")
    assert (looking.start, looking.path) == (None, even(4).sigmas)
    again = looking.from_step(2, 1.0)
    assert again.kinds == "" and again.first == 2 and not again.is_skipped(1)


@pytest.mark.parametrize("kinds", ["F", "FFF", "SFFF", "SFFF", "FXFF", "FFFFF"])
def test_kinds_that_do_not_fit_the_schedule_are_refused(kinds):
    with pytest.raises(ValueError, match="kinds"):
        replace(even(4), kinds=kinds)
