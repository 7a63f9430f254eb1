"""How a match score becomes a fraction of the steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.reuse.calibration import Bounds, Calibration, Share, calibration_of, calibrations

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
