"""The look: how far two estimates are apart, token by token, and which tokens count as changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from chorus.reuse.join import Cut, channel_spread, difference, rim, token_means
from chorus.reuse.regions import otsu

SEEDS = st.integers(0, 10_000)
ONE = torch.ones(1, 1, 1, 1, 1)


def latent(seed: int, channels: int = 4, size: tuple[int, int, int] = (2, 4, 6), batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


# -- Otsu's cut -------------------------------------------------------------------------------------------------


def between_classes(values: np.ndarray, cut: float, low: float, high: float, bins: int) -> float:
    """Variance between the values below and above a cut, each value at the centre of its bin of the histogram."""
    width = (high - low) / bins
    number = np.clip(((values - low) / width).astype(int), 0, bins - 1)
    centres = low + (number + 0.5) * width
    below = centres < cut
    if not below.any() or below.all():
        return 0.0
    share = below.mean()
    return float(share * (1 - share) * (centres[below].mean() - centres[~below].mean()) ** 2)


@given(
    arrays.arrays(np.float32, st.integers(2, 60), elements=st.integers(0, 1000).map(lambda n: n / 1000)),
    st.sampled_from([8, 64, 128]),
)
def test_no_other_cut_of_the_histogram_parts_the_values_better(values, bins):
    low, high = float(values.min()), float(values.max())
    cut = otsu(torch.from_numpy(values), bins)
    if low == high:
        assert cut == high
        return
    candidates = [low + k * (high - low) / bins for k in range(1, bins)]
    best = max(between_classes(values.astype(np.float64), c, low, high, bins) for c in candidates)
    found = between_classes(values.astype(np.float64), cut + 1e-9, low, high, bins)
    assert found == pytest.approx(best, rel=2e-2, abs=1e-6)


def test_two_groups_are_parted_between_them():
    values = torch.cat([torch.linspace(0.0, 0.2, 50), torch.linspace(0.8, 1.0, 10)])
    assert 0.2 <= otsu(values, 128) <= 0.8


# -- the difference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 3, 4)])
def test_the_difference_is_the_rms_over_channels_of_each_tokens_mean(patch):
    target, source, spread = latent(1), latent(2), torch.tensor([0.5, 1.0, 2.0, 4.0])[None, :, None, None, None]
    got = difference(token_means(target, patch), token_means(source, patch), spread)
    size = target.shape[-3:]
    assert got.shape == tuple(-(-n // p) for n, p in zip(size, patch, strict=True))
    for t, h, w in np.ndindex(*got.shape):
        place = tuple(slice(k * p, (k + 1) * p) for k, p in zip((t, h, w), patch, strict=True))
        cells = ((target - source) / spread)[(0, slice(None), *place)].double()
        assert float(got[t, h, w]) == pytest.approx(float(cells.mean((1, 2, 3)).pow(2).mean().sqrt()), rel=1e-5)


def test_of_a_batch_the_largest_difference_counts():
    source = latent(1, batch=3)
    target = source.clone()
    target[1, :, 0, 0, 0] += 1.0
    target[2, :, 0, 0, 0] += 3.0
    got = difference(target, source, ONE)
    assert float(got[0, 0, 0]) == pytest.approx(3.0) and int((got > 0).sum()) == 1


@given(SEEDS, st.floats(0.5, 20.0))
def test_the_difference_does_not_depend_on_the_scale_of_the_latents(seed, scale):
    target, source = latent(seed), latent(seed + 1)
    one = difference(target, source, channel_spread(source))
    other = difference(scale * target, scale * source, channel_spread(scale * source))
    assert torch.allclose(one, other, rtol=1e-4)


def test_the_spread_is_that_of_each_frames_picture():
    picture = latent(3, channels=2, size=(3, 8, 8))
    bright = picture + torch.arange(3.0)[None, None, :, None, None]  # frames that differ in brightness only
    assert torch.allclose(channel_spread(picture), channel_spread(bright), rtol=1e-4)
    assert float(channel_spread(picture)[0, 1]) == pytest.approx(
        float(np.mean([picture[0, 1, t].std() for t in range(3)])), rel=1e-5
    )


def test_a_channel_that_does_not_vary_does_not_divide_by_nothing():
    flat = torch.zeros(1, 2, 2, 4, 4)
    assert bool(torch.isfinite(difference(flat, flat, channel_spread(flat))).all())


# -- the cut ----------------------------------------------------------------------------------------------------


@given(SEEDS)
def test_the_cut_lies_within_its_bounds(seed):
    apart = latent(seed)[0, 0].abs()
    mask = Cut(0.3, 0.6, 0.03, 0.9, 0.15, 0.4)(apart)
    assert not bool((mask & (apart <= 0.3)).any())
    assert not bool((~mask & (apart > 0.6)).any())
    assert torch.equal(mask, apart > min(0.6, max(0.3, otsu(apart, 128))))


def test_where_nothing_differs_no_token_is_marked():
    assert not bool(Cut(0.15, 0.5, 0.03, 0.9, 0.15, 0.4)(torch.zeros(2, 3, 4)).any())


# -- the rim ----------------------------------------------------------------------------------------------------


@given(arrays.arrays(np.bool_, (2, 5, 6)))
def test_inside_a_cell_counts_by_how_many_around_it_are_inside(mask):
    weights = rim(torch.from_numpy(mask))
    for t, h, w in np.ndindex(*mask.shape):
        around = mask[t, max(0, h - 1) : h + 2, max(0, w - 1) : w + 2]
        assert float(weights[t, h, w]) == pytest.approx(float(mask[t, h, w] * around.mean()), abs=1e-6)


def test_a_faint_change_of_everything_is_seen_where_an_image_gives_the_first_frame():
    cut = Cut(0.06, 0.6, 0.03, 0.5, 0.15, 0.4)
    pan = torch.full((3, 4, 5), 0.3)
    pan[1:, 1, 1] = 2.0
    assert float(cut(pan).float().mean()) < 0.1, "the threshold leaves it out"
    assert not cut.moves_everything(pan), "without an image, every change moves all of it a little"
    pan[0] = 0.1
    assert cut.moves_everything(pan)
    local = pan.clone()
    local[1:, :, 2:] = 0.05
    local[1:, 0, 0] = 9.0
    assert not cut.moves_everything(local)
    assert not cut.moves_everything(torch.zeros(3, 4, 5)) and not cut.moves_everything(pan[1:2])
