"""What the Chorus nodes are set to belongs to a request: the result of a hit answers no other settings."""

from __future__ import annotations

import pytest
import torch

from .conftest import assert_same, new_cache
from .graphs import GREEN, RED, Graph, in_cache, is_link, node, request

CHANGES = {
    "lookup.threshold": 0.9999,
    "lookup.mode": "write only",
    "lookup.embedding": "clip socket",
    "stage1.fraction": 0.75,
    "stage1.maximum": 0.25,
    "stage1.start": 0.25,
    "stage1.k1": "auto",
    "stage3.fraction": 1.0,
    "stage3.k2": "auto",
}


CHANGES_OF_A_LOOK = {
    "lookup.take": "another take",
    "stage1.method": "early start",
    "stage1.start": 0.25,
    "stage1.fraction": 0.25,
    "stage1.maximum": 0.25,
    "stage1.k1": "auto",
    "masks.edit_dilation": 1,
}


def looking(prompt: str) -> Graph:
    """A request whose hits begin with a look, and have a mask node."""
    g = request(prompt=prompt)
    g["stage1"]["inputs"] |= {"start": 0.0, "chorus": ["masks", 0]}
    g["stage3"]["inputs"]["k2"] = "auto"  # a fixed one would hide what a fixed K1 does
    g["masks"] = node(
        "ChorusSRDMask",
        chorus=["lookup", 0],
        masks_from="look",
        edit_dilation=0,
        visible_dilation=0,
        sam_checkpoint="none",
    )
    return g


@pytest.mark.parametrize("made", [lambda prompt: request(prompt=prompt), looking], ids=["early start", "look"])
def test_a_hit_asked_again_is_identical(run, cache, made):
    run(in_cache(made(RED), cache))
    hit = run(in_cache(made(GREEN), cache))
    assert hit.outcome == "hit" and hit.steps_computed < 4
    again = run(in_cache(made(GREEN), cache))
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, hit.latent, "the stored result")


@pytest.mark.parametrize("place", CHANGES)
def test_a_stored_hit_answers_no_other_settings(run, cache, place):
    """The expected latent is what the changed request comes to where the hit was never stored."""
    name, _, key = place.partition(".")
    changed = request(prompt=GREEN)
    changed[name]["inputs"][key] = CHANGES[place]
    alone = new_cache()
    for each in (cache, alone):
        assert run(in_cache(request(prompt=RED), each)).outcome == "miss"
    expected = run(in_cache(changed, alone))
    assert run(in_cache(request(prompt=GREEN), cache)).outcome == "hit"
    answer = run(in_cache(changed, cache))
    assert_same(answer.latent, expected.latent, f"the answer '{answer.outcome}'")


@pytest.mark.parametrize("place", CHANGES_OF_A_LOOK)
def test_a_stored_hit_with_a_look_answers_no_other_settings(run, cache, place):
    name, _, key = place.partition(".")
    changed = looking(GREEN)
    changed[name]["inputs"][key] = CHANGES_OF_A_LOOK[place]
    alone = new_cache()
    for each in (cache, alone):
        assert run(in_cache(looking(RED), each)).outcome == "miss"
    expected = run(in_cache(changed, alone))
    hit = run(in_cache(looking(GREEN), cache))
    assert (hit.outcome, expected.outcome) == ("hit", "hit")
    assert not torch.equal(expected.latent, hit.latent), "the change does not test what it is meant to"
    answer = run(in_cache(changed, cache))
    assert_same(answer.latent, expected.latent, f"the answer '{answer.outcome}'")


def test_a_stored_hit_does_not_answer_a_higher_threshold(run, cache):
    """The plain run is what a request gets whose threshold nothing reaches."""
    run(in_cache(request(prompt=RED), cache))
    hit = run(in_cache(request(prompt=GREEN, threshold=0.5), cache))
    assert hit.outcome == "hit" and hit.report["match_score"] < 0.9999
    strict = run(in_cache(request(prompt=GREEN, threshold=0.9999), cache))
    assert (strict.outcome, strict.steps_computed) == ("miss", 4)
    own = run(in_cache(request(prompt=GREEN), new_cache()))
    assert_same(strict.latent, own.latent, "the answer above the threshold")


def test_without_its_stage_nodes_a_request_is_not_the_stored_hit(run, cache):
    run(in_cache(request(prompt=RED), cache))
    run(in_cache(request(prompt=GREEN), cache))
    bare = in_cache(request(prompt=GREEN), cache)
    del bare["stage1"], bare["stage3"]
    bare["sample"]["inputs"]["model"] = ["shift", 0]
    bare["store"]["inputs"]["chorus"] = ["lookup", 0]
    own = run(in_cache(request(prompt=GREEN), new_cache()))
    answer = run(bare)
    assert_same(answer.latent, own.latent, "the run without stage nodes")


def test_a_request_is_identical_when_it_may_only_read(run, cache):
    first = run(in_cache(request(), cache))
    g = in_cache(request(), cache)
    g["lookup"]["inputs"]["mode"] = "read only"
    again = run(g)
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, first.latent, "the stored result")


def test_other_node_ids_and_further_outputs_change_nothing(run, cache):
    """A graph that was saved, opened, renumbered and given another output node."""
    first = run(in_cache(request(), cache))
    g = in_cache(request(), cache)
    kept = {"sample", "store"}  # by which the tests find them

    def renamed(value):
        return [f"1:{value[0]}", value[1]] if is_link(value) and value[0] not in kept else value

    anew = {
        name if name in kept else f"1:{name}": {**n, "inputs": {key: renamed(v) for key, v in n["inputs"].items()}}
        for name, n in reversed(g.items())
    }
    anew["extra"] = node("SaveLatent", samples=["sample", 0], filename_prefix="extra")
    again = run(anew)
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, first.latent, "the stored result")
