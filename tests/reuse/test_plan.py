"""K1 and K2 of a schedule, and how a match score becomes a share of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.reuse.calibration import Bounds, Calibration, Share, calibration_of, calibrations
from chorus.reuse.schedule import Schedule, stage_bounds, steps_reached, stretched
from chorus.reuse.trajectory import SIGMA_TOLERANCE

from .schedules import CUTS, schedules, shifted

EVEN = [1.0, 0.75, 0.5, 0.25, 0.0]
OPTIONAL_CUTS = st.none() | CUTS


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
    assert stage_bounds(tail, 0.9, 0.8) == (0, 0)


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


@given(schedules(), OPTIONAL_CUTS, OPTIONAL_CUTS)
def test_stages_follow_each_other(sigmas, reuse, full):
    k1, k2 = stage_bounds(sigmas, reuse, full)
    assert 0 <= k1 <= k2 <= len(sigmas) - 1


@given(schedules(), CUTS, CUTS, CUTS)
def test_k1_and_k2_are_monotone_in_their_cuts(sigmas, one, other, kept):
    high, low = max(one, other), min(one, other)
    assert stage_bounds(sigmas, low, kept)[0] >= stage_bounds(sigmas, high, kept)[0]
    assert stage_bounds(sigmas, kept, low)[1] >= stage_bounds(sigmas, kept, high)[1]


@given(schedules(), OPTIONAL_CUTS)
def test_without_stage_three_the_selective_steps_last_to_the_end(sigmas, reuse):
    assert stage_bounds(sigmas, reuse, None)[1] == len(sigmas) - 1


@given(schedules(), OPTIONAL_CUTS)
def test_without_stage_one_nothing_is_skipped(sigmas, full):
    assert stage_bounds(sigmas, None, full)[0] == 0


@given(schedules(), CUTS)
def test_a_schedule_that_ends_at_the_cut_is_reused_whole(sigmas, full):
    n = len(sigmas) - 1
    assert stage_bounds(sigmas, sigmas[-1], full) == (n, n)


def test_a_first_expert_that_the_source_passes_is_reused_whole():
    assert stage_bounds(EVEN[:3], 0.3, 0.1) == (2, 2)


def test_a_first_expert_in_the_middle_of_the_selective_steps_ends_in_them():
    assert stage_bounds(EVEN[:3], 0.75, 0.25) == (1, 2)


@given(schedules(), OPTIONAL_CUTS, OPTIONAL_CUTS, st.data())
def test_a_schedule_cut_in_two_agrees_with_the_whole(sigmas, reuse, full, data):
    index = data.draw(st.integers(1, len(sigmas) - 1), label="cut at step")
    whole = stage_bounds(sigmas, reuse, full)
    first, second = sigmas[: index + 1], sigmas[index:]
    parts = [stage_bounds(first, reuse, full)]
    if len(second) > 1:
        parts.append(stage_bounds(second, reuse, full))
    assert tuple(map(sum, zip(*parts, strict=True))) == whole


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


# -- calibration ------------------------------------------------------------------------------------------------

BOUNDS = {4: Bounds(0.1, 0.5, 0.25, 0.05), 50: Bounds(0.3, 0.9, 0.04, 0.1)}
CALIBRATION = Calibration(threshold=0.6, bounds=BOUNDS)
CALIBRATIONS = st.builds(
    lambda threshold, least, more, selective: Calibration(
        threshold,
        {4: Bounds(least, min(1.0, least + more), selective, 0.1), 50: Bounds(least, 1.0, selective, 0.1)},
    ),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.5),
    st.floats(0.0, 0.5),
    st.floats(0.0, 0.5),
)
STEPS = st.integers(1, 200)


def test_reuse_goes_from_the_least_at_the_threshold_to_the_most_at_score_one():
    assert CALIBRATION.reuse(0.6).of(4) == pytest.approx(0.1)
    assert CALIBRATION.reuse(0.8).of(4) == pytest.approx(0.3)
    assert CALIBRATION.reuse(1.0).of(4) == pytest.approx(0.5)


def test_between_two_lengths_of_schedule_the_share_is_linear_in_the_logarithm_of_the_steps():
    reuse = CALIBRATION.reuse(1.0)
    assert reuse.of(round((4 * 50) ** 0.5)) == pytest.approx(0.7, abs=0.01)
    assert [reuse.of(n) for n in (1, 2, 4)] == pytest.approx([0.5] * 3)
    assert [reuse.of(n) for n in (50, 100)] == pytest.approx([0.9] * 2)


def test_a_fixed_share_is_that_of_every_schedule():
    assert {Share.fixed(0.25).of(n) for n in (1, 4, 20, 50, 1000)} == {0.25}


def test_where_the_source_is_taken_depends_on_the_number_of_steps():
    assert [CALIBRATION.start().of(n) for n in (4, 50)] == pytest.approx([0.05, 0.1])


@given(CALIBRATIONS, st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), STEPS)
def test_a_better_match_is_never_reused_less(calibration, one, other, steps):
    better, worse = calibration.reuse(max(one, other)), calibration.reuse(min(one, other))
    assert better.of(steps) >= worse.of(steps) - 1e-12


@given(CALIBRATIONS, st.floats(-1.5, 1.5), STEPS, st.floats(0.0, 1.0))
def test_reuse_stays_within_its_bounds_and_below_the_maximum(calibration, score, steps, maximum):
    least = min(b.least_reuse for b in calibration.bounds.values())
    most = max(b.most_reuse for b in calibration.bounds.values())
    share = calibration.reuse(score, maximum).of(steps)
    assert min(least, maximum) - 1e-12 <= share <= min(most, maximum) + 1e-12


@given(CALIBRATIONS, st.floats(-1.5, 1.5), STEPS)
def test_k2_is_never_before_k1_nor_behind_the_end(calibration, score, steps):
    reuse = calibration.reuse(score)
    assert reuse.of(steps) - 1e-12 <= calibration.full_from(reuse).of(steps) <= 1.0


def test_an_embedder_has_the_calibration_of_its_family():
    for family, calibration in calibrations().items():
        assert calibration_of(f"{family}:ViT-X:1024") is calibration
        assert calibration_of(family) is calibration


def test_an_unknown_family_is_treated_as_conditioning():
    assert calibration_of("no-such-family:1") is calibrations()["conditioning"]


def test_calibrated_values_make_sense():
    for family, c in calibrations().items():
        assert 0 < c.threshold < 1, family
        assert list(c.bounds) == sorted(c.bounds), family
        for b in c.bounds.values():
            assert 0 < b.start < 1, family
            assert 0 < b.least_reuse <= b.most_reuse <= b.most_reuse + b.selective <= 1, family
