"""What a noise mask keeps of a latent, in cells and in tokens."""

from __future__ import annotations

import pytest
import torch

from chorus.reuse.given import Given

SIZE = (2, 5, 6)


def given(*kept: tuple[int, int, int], shape: tuple[int, ...] = (1, 3, *SIZE)) -> Given:
    cells = torch.zeros(SIZE if len(shape) == 5 else (1, *SIZE[1:]), dtype=torch.bool)
    for place in kept:
        cells[place] = True
    return Given(cells, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(1, 3, *SIZE), (2, 3, *SIZE[1:])], ids=["video", "images"])
def test_the_kept_cells_are_those_of_the_latent_and_all_others_stay(shape):
    made, x, noise = given((0, 1, 2), shape=shape), torch.zeros(shape), torch.ones(shape)
    inside = made.cells.expand(shape)
    assert torch.equal(made.put_into(x), torch.where(inside, made.latent, 0.0))
    assert torch.equal(made.noised(x, noise, 0.25), torch.where(inside, 0.25 + 0.75 * made.latent, 0.0))


def test_a_token_is_kept_if_all_of_its_cells_are():
    tokens = given((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 2, 2)).tokens((1, 2, 2))
    assert tokens.shape == (2, 3, 3) and tokens.nonzero().tolist() == [[0, 0, 0]]


def test_a_token_at_the_edge_has_the_cells_that_there_are():
    assert given((1, 4, 0), (1, 4, 1)).tokens((1, 2, 2)).nonzero().tolist() == [[1, 2, 0]]
