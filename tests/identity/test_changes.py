"""Whatever is changed in a graph, its answer is never another graph's."""

from __future__ import annotations

import pytest
import torch

from .conftest import assert_same
from .graphs import CASES, changes, in_cache, plain

CHANGES = list(changes())


@pytest.mark.parametrize("case", CASES)
def test_without_a_match_the_result_is_the_plain_run(stored, case):
    first = stored(case)
    assert first.answer.outcome == "miss"
    assert_same(first.answer.latent, first.expected, "the run with Chorus in the graph")


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_request_gets_its_own_answer(run, stored, change):
    first = stored(change.case)
    g = change.applied()
    expected = run(plain(g)).latent
    same = expected.shape == first.expected.shape and torch.equal(expected, first.expected)
    assert same != change.has_effect, "the change does not test what it is meant to"
    answer = run(in_cache(g, first.cache))
    if answer.outcome == "hit":
        assert change.may_hit, "a hit across weights, or inputs on the MODEL, that differ"
        assert bool(torch.isfinite(answer.latent).all())
    else:
        assert_same(answer.latent, expected, f"the answer '{answer.outcome}'")


@pytest.mark.parametrize("case", CASES)
def test_the_unchanged_request_is_identical_when_every_node_runs_anew(run, stored, case):
    first = stored(case)
    again = run(in_cache(CASES[case].graph(), first.cache))
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, first.expected, "the stored result")
