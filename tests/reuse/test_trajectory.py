"""States of a run over σ: exact where kept, linear between, refused outside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chorus.reuse.trajectory import Trajectory, clean_component, serving

SHAPE = (1, 4, 2, 3, 3)
SIGMAS = (0.95, 0.7, 0.4, 0.0)
UP_TO_NEARLY_ONE = st.floats(0.0, 1.0 - 1e-6)


def tensors(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


NOISE, *CLEAN = tensors(1 + len(SIGMAS))
KEPT = dict(zip(SIGMAS, CLEAN, strict=True))


def state(clean: torch.Tensor, sigma: float) -> torch.Tensor:
    return sigma * NOISE + (1.0 - sigma) * clean


# -- the clean component ----------------------------------------------------------------------------------------


@given(UP_TO_NEARLY_ONE, st.integers(0, 100))
def test_clean_component_takes_the_noise_out(sigma, seed):
    x, noise = tensors(2, seed)
    clean = clean_component(x, noise, sigma)
    # What rounding does to x is 1/(1 − σ) as large in c, and as small again in x.
    assert torch.allclose(sigma * noise + (1.0 - sigma) * clean, x, atol=1e-6, rtol=1e-6)


@given(st.integers(0, 100), st.floats(0.0, 0.9))
def test_clean_component_of_noise_and_picture_is_the_picture(seed, sigma):
    noise, picture = tensors(2, seed)
    x = sigma * noise + (1.0 - sigma) * picture
    assert torch.allclose(clean_component(x, noise, sigma), picture, atol=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 1.5, -0.1, float("nan")])
def test_clean_component_exists_below_sigma_one_only(sigma):
    with pytest.raises(ValueError, match="sigma"):
        clean_component(NOISE, NOISE, sigma)


@given(UP_TO_NEARLY_ONE, st.integers(0, 100))
def test_a_state_survives_the_round_trip_also_near_sigma_one(sigma, seed):
    x, noise = tensors(2, seed)
    trajectory = Trajectory(noise, {sigma: clean_component(x, noise, sigma)})
    assert torch.allclose(trajectory.at(sigma), x, atol=1e-6, rtol=1e-6)


# -- a run without noise of its own -----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_kept_states_are_exact(sigma):
    trajectory = Trajectory(NOISE, KEPT)
    assert torch.equal(trajectory.at(sigma), state(KEPT[sigma], sigma))


@given(st.sampled_from([(0.95, 0.7), (0.7, 0.4), (0.4, 0.0)]), st.floats(0.01, 0.99))
def test_between_kept_states_the_clean_component_is_linear_in_sigma(ends, share):
    high, low = ends
    sigma = low + share * (high - low)
    expected = (1.0 - share) * KEPT[low] + share * KEPT[high]
    assert torch.allclose(Trajectory(NOISE, KEPT).at(sigma), state(expected, sigma), atol=1e-5)


def test_a_sigma_off_by_rounding_is_the_kept_one():
    assert torch.allclose(Trajectory(NOISE, KEPT).at(0.7 + 5e-5), state(KEPT[0.7], 0.7), atol=1e-3)


@given(st.floats(0.95, 1.0))
def test_above_the_largest_kept_sigma_the_clean_component_stays(sigma):
    assert torch.allclose(Trajectory(NOISE, KEPT).at(sigma), state(KEPT[0.95], sigma), atol=1e-5)


@given(st.floats(1.0002, 2.0) | st.floats(-1.0, -0.0002))
def test_outside_the_kept_states_a_trajectory_refuses(sigma):
    trajectory = Trajectory(NOISE, KEPT)
    assert not trajectory.has(sigma)
    with pytest.raises(KeyError, match="kept"):
        trajectory.at(sigma)


@given(st.floats(0.0, 0.3998))
def test_below_the_last_kept_state_a_trajectory_refuses(sigma):
    trajectory = Trajectory(NOISE, {s: KEPT[s] for s in (0.95, 0.7, 0.4)})
    assert not trajectory.has(sigma)
    with pytest.raises(KeyError, match="kept"):
        trajectory.at(sigma)


@given(st.floats(0.0, 1.0))
def test_one_kept_state_serves_itself_and_all_above(sigma):
    trajectory = Trajectory(NOISE, {0.7: KEPT[0.7]})
    assert trajectory.has(sigma) == (sigma >= 0.7 - 1e-4)


@given(st.floats(-0.1, 1.1))
def test_a_trajectory_answers_exactly_what_it_has(sigma):
    for trajectory in (Trajectory(NOISE, KEPT), Trajectory(None, KEPT)):
        if trajectory.has(sigma):
            assert trajectory.at(sigma).isfinite().all()
        else:
            with pytest.raises(KeyError):
                trajectory.at(sigma)


def test_half_precision_states_come_back_in_single():
    trajectory = Trajectory(NOISE, {s: c.half() for s, c in KEPT.items()})
    assert trajectory.at(0.7).dtype == torch.float32
    assert torch.allclose(trajectory.at(0.7), state(KEPT[0.7], 0.7), atol=2e-3)


# -- a run that drew noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_state_kept_as_it_was_comes_back_as_it_was(sigma):
    trajectory = Trajectory(None, KEPT)
    assert torch.equal(trajectory.at(sigma), KEPT[sigma])


@pytest.mark.parametrize("sigma", [1.0, 0.8, 0.5, 0.2])
def test_states_with_drawn_noise_serve_only_their_own_sigma(sigma):
    trajectory = Trajectory(None, KEPT)
    assert not trajectory.has(sigma)
    with pytest.raises(KeyError, match="kept"):
        trajectory.at(sigma)


def test_a_trajectory_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Trajectory(NOISE, {})


# -- which kept states a state needs ----------------------------------------------------------------------------


@given(st.floats(0.0, 1.0), st.booleans())
def test_a_state_needs_no_other_kept_ones_than_those_that_serve_it(sigma, noise_drawn):
    noise = None if noise_drawn else NOISE
    needed = serving(SIGMAS, sigma, noise_drawn)
    assert bool(needed) == Trajectory(noise, KEPT).has(sigma)
    if needed:
        assert len(needed) <= 2
        assert torch.equal(Trajectory(noise, {s: KEPT[s] for s in needed}).at(sigma), Trajectory(noise, KEPT).at(sigma))
