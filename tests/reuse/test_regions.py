"""Masks on the token grid: nested, grown, and made from pixels or attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from chorus.reuse.regions import (
    Regions,
    build,
    dilate,
    from_attention,
    from_frames,
    on_cells,
    otsu,
    token_grid,
)

GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))


@st.composite
def masks(draw, grid=GRIDS) -> torch.Tensor:
    shape = draw(grid)
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999)))) < share


def box(grid, ys: slice, xs: slice) -> torch.Tensor:
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[:, ys, xs] = True
    return mask


# -- nesting ----------------------------------------------------------------------------------------------------


def test_masks_that_are_not_nested_are_refused():
    small, large = box((1, 4, 4), slice(1, 2), slice(1, 2)), box((1, 4, 4), slice(0, 3), slice(0, 3))
    Regions(small, large, large)
    with pytest.raises(ValueError, match="nested"):
        Regions(large, small, large)
    with pytest.raises(ValueError, match="nested"):
        Regions(small, large, small)


@pytest.mark.parametrize("other", [torch.ones(1, 4, 5, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)])
def test_masks_of_several_grids_are_refused(other):
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="grid"):
        Regions(mask, mask, other)
    with pytest.raises(ValueError, match="grid"):
        Regions(other[0] if other.ndim == 3 else other, *[other[0] if other.ndim == 3 else other] * 2)


@given(masks(), st.integers(0, 3), st.integers(0, 3))
def test_built_masks_are_nested_around_the_base(base, edit_radius, visible_radius):
    regions = build(base, edit_radius, visible_radius)
    assert torch.equal(regions.base, base)
    assert torch.equal(regions.edit, dilate(base, edit_radius))
    assert torch.equal(regions.visible, dilate(base, edit_radius + visible_radius))


@given(masks(), st.integers(0, 2), st.integers(0, 2))
def test_share_indices_and_extremes_follow_from_the_masks(base, edit_radius, visible_radius):
    regions = build(base, edit_radius, visible_radius)
    count = int(regions.visible.sum())
    assert regions.empty == (not regions.edit.any())
    assert regions.whole == bool(regions.edit.all())
    indices = regions.indices()
    assert len(indices) == count and indices.dtype == torch.int64
    assert torch.equal(indices, indices.sort().values)
    assert regions.visible.flatten()[indices].all()


def test_indices_are_frame_major():
    visible = torch.zeros(2, 2, 3, dtype=torch.bool)
    visible[0, 1, 2] = visible[1, 0, 0] = True
    assert Regions(visible, visible, visible).indices().tolist() == [5, 6]


@given(masks(), GRIDS)
def test_masks_on_another_grid_cover_what_they_covered(base, grid):
    regions = build(base, 0, 1).on_grid(grid)
    assert regions.grid == grid
    assert bool(regions.edit.any()) == bool(base.any()) and bool(regions.edit.all()) >= bool(base.all())
    for t, h, w in base.nonzero().tolist():
        place = (
            slice(at * size // length, -(-(at + 1) * size // length))
            for at, size, length in zip((t, h, w), grid, base.shape, strict=True)
        )
        assert bool(regions.edit[tuple(place)].any())


def test_masks_on_a_grid_twice_as_fine_lie_where_they_lay():
    base = box((2, 3, 4), slice(1, 2), slice(0, 2))
    fine = build(base, 0, 0).on_grid((2, 6, 8))
    assert torch.equal(fine.edit, on_cells(base, (1, 2, 2), (2, 6, 8)))


# -- growing ----------------------------------------------------------------------------------------------------


@given(masks(), st.integers(-2, 0))
def test_radius_zero_leaves_a_mask_as_it_is(mask, radius):
    assert torch.equal(dilate(mask, radius), mask)


@given(masks(), st.integers(0, 4))
def test_growing_only_adds_and_more_radius_adds_more(mask, radius):
    grown = dilate(mask, radius)
    assert grown.shape == mask.shape and grown.dtype == torch.bool
    assert not (mask & ~grown).any()
    assert not (grown & ~dilate(mask, radius + 1)).any()


@given(masks(st.tuples(st.just(2), st.just(5), st.just(6))), st.integers(0, 999), st.integers(0, 3))
def test_growing_keeps_order(mask, seed, radius):
    other = mask | (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.2)
    assert not (dilate(mask, radius) & ~dilate(other, radius)).any()


def test_growing_reaches_that_many_tokens_within_a_frame_and_no_other_frame():
    mask = torch.zeros(3, 7, 7, dtype=torch.bool)
    mask[1, 3, 3] = True
    expected = torch.zeros_like(mask)
    expected[1, 1:6, 1:6] = True
    assert torch.equal(dilate(mask, 2), expected)


# -- latent cells -----------------------------------------------------------------------------------------------

CELLS = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@given(CELLS, st.integers(0, 999))
def test_a_latent_cell_is_edited_if_its_token_is(shape, seed):
    patch = (1, 2, 2)
    grid = token_grid(shape, patch)
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < 0.4
    cells = on_cells(mask, patch, shape)
    assert cells.shape == shape
    for t in range(shape[0]):
        for y in range(shape[1]):
            for x in range(shape[2]):
                assert cells[t, y, x] == mask[t, y // 2, x // 2]


def test_the_last_partial_patch_is_a_token():
    assert token_grid((1, 16, 5, 9, 12), (1, 2, 2)) == (5, 5, 6)
    assert token_grid((3, 7, 7), (2, 2, 2)) == (2, 4, 4)
    assert token_grid((48, 3, 8, 8), (1, 2, 2)) == (3, 4, 4)


# -- masks of frames --------------------------------------------------------------------------------------------


@given(GRIDS, st.integers(1, 40), st.integers(1, 40))
def test_one_mask_serves_every_frame(grid, height, width):
    assume(height >= grid[1] and width >= grid[2])
    mask = torch.zeros(height, width)
    mask[height // 2, width // 2] = 1.0
    for given_mask in (mask, mask[None]):
        base = from_frames(given_mask, grid)
        assert base.shape == grid and base.dtype == torch.bool
        assert base.any() and torch.equal(base, base[:1].expand(grid))


@given(GRIDS, st.integers(1, 30), st.integers(1, 30), st.integers(2, 20))
def test_an_empty_mask_marks_nothing_and_a_full_one_everything(grid, height, width, frames):
    assert not from_frames(torch.zeros(frames, height, width), grid).any()
    assert from_frames(torch.ones(frames, height, width), grid).all()


def test_a_token_counts_if_any_of_its_pixels_does():
    mask = torch.zeros(1, 64, 96)
    mask[0, 33, 50] = 1.0
    base = from_frames(mask, (2, 4, 6))
    assert base.nonzero().tolist() == [[0, 2, 3], [1, 2, 3]]


def test_half_marked_pixels_do_not_count():
    assert not from_frames(torch.full((1, 8, 8), 0.5), (1, 4, 4)).any()


def test_many_masks_are_shared_out_over_the_latent_frames():
    mask = torch.zeros(16, 8, 8)
    mask[12:, :4] = 1.0
    base = from_frames(mask, (4, 2, 2))
    assert base.tolist() == [[[False] * 2] * 2] * 3 + [[[True] * 2, [False] * 2]]


def test_a_single_frame_grid_sees_the_masks_of_all_frames():
    mask = torch.zeros(5, 8, 8)
    mask[4, 7, 7] = 1.0
    assert from_frames(mask, (1, 2, 2)).tolist() == [[[False, False], [False, True]]]


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 8)])
def test_a_mask_of_another_form_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match="mask of shape"):
        from_frames(torch.zeros(shape), (1, 2, 2))


# -- masks from attention ---------------------------------------------------------------------------------------

GRID = (4, 12, 16)


def planted(region: torch.Tensor, tokens: int, loud: list[int], coarse=(4, 12, 16), seed: int = 0) -> torch.Tensor:
    """Attention maps: everywhere a little noise, and `loud` tokens that look at the region."""
    generator = torch.Generator().manual_seed(seed)
    maps = 0.5 + torch.rand(tokens, *coarse, generator=generator)
    small = torch.nn.functional.interpolate(region.float()[None, None], coarse, mode="area")[0, 0]
    for token in loud:
        maps[token] += 6.0 * small
    return maps * torch.rand(tokens, 1, 1, 1, generator=generator).clamp(min=0.05)  # rare and frequent words


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize(
    "region", [(slice(2, 7), slice(3, 9)), (slice(0, 3), slice(10, 16)), (slice(6, 12), slice(0, 5))]
)
@pytest.mark.parametrize("seed", range(3))
def test_attention_finds_a_planted_region(region, seed):
    mask = box(GRID, *region)
    maps = planted(mask, 6, [2, 4], seed=seed)
    found = from_attention(maps, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.6, 0.0]), GRID)
    assert found.shape == GRID and found.dtype == torch.bool
    assert overlap(found, mask) > 0.9


def test_attention_on_a_coarser_grid_still_finds_it():
    mask = box(GRID, slice(4, 10), slice(4, 12))
    found = from_attention(planted(mask, 3, [1], coarse=(2, 6, 8)).half(), torch.tensor([0.0, 1.0, 0.0]), GRID)
    assert overlap(found, mask) > 0.7


def test_only_words_with_weight_point():
    here, there = box(GRID, slice(0, 4), slice(0, 5)), box(GRID, slice(8, 12), slice(10, 16))
    maps = planted(here, 2, [0]) + planted(there, 2, [1])
    assert overlap(from_attention(maps, torch.tensor([1.0, 0.0]), GRID), here) > 0.9
    assert overlap(from_attention(maps, torch.tensor([0.0, 1.0]), GRID), there) > 0.9


def test_a_loud_word_does_not_drown_a_quiet_one():
    here, there = box(GRID, slice(0, 4), slice(0, 5)), box(GRID, slice(8, 12), slice(10, 16))
    maps = torch.stack([1.0 + 10.0 * here.float(), 0.001 * (1.0 + 10.0 * there.float())])
    assert overlap(from_attention(maps, torch.ones(2), GRID), here | there) > 0.9


def test_without_a_changed_word_attention_marks_nothing():
    assert not from_attention(planted(box(GRID, slice(0, 4), slice(0, 4)), 3, [0]), torch.zeros(3), GRID).any()


def test_flat_attention_marks_nothing():
    assert not from_attention(torch.full((2, 4, 6, 8), 0.25), torch.ones(2), GRID).any()


def test_maps_and_weights_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="3 attention maps for 2"):
        from_attention(torch.ones(3, 2, 2, 2), torch.ones(2), GRID)


# -- the cut ----------------------------------------------------------------------------------------------------


@given(
    st.integers(5, 200),
    st.integers(5, 200),
    st.floats(-100.0, 100.0),
    st.floats(0.01, 1000.0),
    st.integers(0, 99),
)
def test_otsu_separates_two_groups(low_count, high_count, start, gap, seed):
    generator = torch.Generator().manual_seed(seed)
    low = start + 0.1 * gap * torch.rand(low_count, generator=generator)
    high = start + gap + 0.1 * gap * torch.rand(high_count, generator=generator)
    cut = otsu(torch.cat([low, high]))
    assert bool((low <= cut).all()) and bool((high > cut).all())


@given(st.floats(-1e4, 1e4), st.integers(1, 50))
def test_in_a_flat_field_nothing_stands_out(value, count):
    values = torch.full((count,), value)
    assert not (values > otsu(values)).any()
