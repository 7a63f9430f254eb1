"""Which states of a run are kept, and how finely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.cache.codec import check, dct
from chorus.reuse.profiles import DEFAULT, NEAR_LOSSLESS, PROFILES

schedules = st.integers(1, 60).map(lambda steps: [1.0 - k / steps for k in range(steps + 1)])
shares = st.floats(0.05, 1.0)


@given(st.sampled_from(sorted(PROFILES)), schedules, shares, st.booleans())
def test_kept_states_lie_in_the_first_share_and_reach_from_its_first_step_to_its_last(name, sigmas, keep, drawn):
    profile = PROFILES[name]
    kept = profile.kept(sigmas, keep, drawn)
    last = max(1, round(keep * (len(sigmas) - 1)))
    assert kept == sorted(set(kept), reverse=True)
    assert set(kept) <= set(sigmas[1 : last + 1])
    assert (kept[0], kept[-1]) == (sigmas[1], sigmas[last])
    if profile.states is None or drawn:
        assert kept == sigmas[1 : last + 1]
    else:
        assert len(kept) == min(last, profile.states) or last > profile.states - 1 >= len(kept) - 1


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("name", ["fp16", "fp32"])
def test_precisions_that_name_a_type_are_not_compressed(name, drawn):
    profile = PROFILES[name]
    assert profile.raw and profile.state_coding(0.5, drawn) == "raw"
    assert profile.half == (name == "fp16")


def test_four_steps_and_twenty_keep_what_was_measured():
    by_step = {steps: [k / steps for k in range(steps, -1, -1)] for steps in (4, 20)}
    assert PROFILES["small"].kept(by_step[4], 0.75, False) == by_step[4][1:4]
    assert PROFILES["small"].kept(by_step[20], 0.75, False) == [by_step[20][k] for k in (1, 4, 9, 15)]


@given(st.sampled_from(["small", "near-lossless"]), st.floats(0.0, 1.0 - 1e-6))
def test_states_count_less_the_more_noise_is_over_them(name, sigma):
    profile = PROFILES[name]
    coding = profile.state_coding(sigma, noise_drawn=False)
    check(coding)
    step = float(coding.removeprefix("dct/"))
    assert profile.state * 0.999 <= step <= profile.coarsest
    assert step * (1 - sigma) <= profile.state * 1.001  # the error in the state itself


def test_a_state_with_drawn_noise_is_near_lossless():
    for name in ("small", "near-lossless"):
        assert PROFILES[name].state_coding(0.99, noise_drawn=True) == dct(NEAR_LOSSLESS)


def test_the_default_is_one_of_them():
    assert DEFAULT in PROFILES
