"""Amplified words: which rows, which tokens, how long."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chorus.reuse.amplification import WHERE, Amplification, amplify

STEPS = st.integers(1, 60)


def keys_and_values(rows: int = 4, tokens: int = 6, channels: int = 8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(rows, tokens, channels, generator=generator).to(dtype)
    return k, torch.randn(rows, tokens, channels, generator=generator).to(dtype)


ROWS = torch.tensor([False, True, False, True])
WEIGHTS = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0, 0.25])


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("weights", "strength"), [(WEIGHTS, 0.0), (torch.zeros(6), 3.0)])
def test_nothing_to_amplify_gives_the_very_tensors_back(where, weights, strength):
    k, v = keys_and_values()
    same_k, same_v = amplify(k, v, weights, ROWS, strength, where)
    assert same_k is k and same_v is v


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_new_tokens_of_conditional_rows_change(where, dtype):
    k, v = keys_and_values(dtype=dtype)
    louder = amplify(k, v, WEIGHTS, ROWS, 1.0, where)
    for name, before, after in zip(("keys", "outputs"), (k, v), louder, strict=True):
        assert after.dtype == dtype
        if where not in (name, "both"):
            assert after is before
            continue
        changed = (after != before).any(-1)
        assert torch.equal(changed, ROWS[:, None] & (WEIGHTS > 0))


def test_gain_is_one_plus_strength_times_weight():
    k, v = keys_and_values()
    louder_k, louder_v = amplify(k, v, WEIGHTS, ROWS, 2.0, "both")
    for before, after in ((k, louder_k), (v, louder_v)):
        assert torch.allclose(after[1, 1], before[1, 1] * 3.0)
        assert torch.allclose(after[3, 2], before[3, 2] * 2.0)
        assert torch.allclose(after[3, 5], before[3, 5] * 1.5)


def test_the_tensors_given_are_left_as_they_were():
    k, v = keys_and_values()
    before = k.clone(), v.clone()
    amplify(k, v, WEIGHTS, ROWS, 2.0, "both")
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])


def test_an_unknown_place_is_refused_by_name():
    with pytest.raises(ValueError, match="queries"):
        Amplification(where="queries")


def test_the_first_computed_step_has_the_full_strength():
    assert Amplification(strength=1.5).strength_at(4, 4, 20) == 1.5


def test_the_strength_is_gone_after_its_share_of_the_computed_steps():
    amplification = Amplification(strength=1.0, fade=0.5)
    assert amplification.strength_at(7, 4, 12) == pytest.approx(0.25)
    assert amplification.strength_at(8, 4, 12) == 0.0
    assert amplification.strength_at(11, 4, 12) == 0.0


def test_without_a_fade_nothing_is_amplified():
    assert Amplification(fade=0.0).strength_at(0, 0, 10) == 0.0


@given(STEPS, STEPS, st.floats(0.0, 1.0), st.floats(0.0, 8.0))
def test_the_strength_fades_and_never_comes_before_the_first_step(first, computed, fade, strength):
    amplification = Amplification(strength=strength, fade=fade)
    total = first + computed
    over_time = [amplification.strength_at(step, first, total) for step in range(total)]
    assert not any(over_time[:first])
    assert all(later <= earlier for earlier, later in zip(over_time[first:], over_time[first + 1 :], strict=False))
    assert all(0.0 <= s <= strength for s in over_time)
