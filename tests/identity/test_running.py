"""What a patch keeps while it runs is no part of a request: one graph, queued again in a running server."""

from __future__ import annotations

import copy

import pytest

from .conftest import assert_same
from .graphs import CASES, GREEN, SHIFT, in_cache, node, request

WITH_STATE = ("guidance", "normalised", "teacache", "control", "counts its calls", "callback", "injection")


@pytest.mark.parametrize("case", WITH_STATE)
def test_a_request_asked_again_after_another_is_identical(comfy_host, run, cache, case):
    """The nodes' outputs stay, so the very patch objects that have run serve both requests."""
    red = in_cache(CASES[case].graph(), cache)
    green = copy.deepcopy(red)
    for name, key in (("positive", "text"), ("lookup", "prompt")):
        green[name]["inputs"][key] = GREEN
    comfy_host.forget_outputs()
    first = run(red, keep_nodes=True)
    run(green, keep_nodes=True)
    again = run(red, keep_nodes=True)
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, first.latent, "the stored result")


def test_a_compiled_model_is_the_same_request_after_it_has_run(comfy_host, run, cache):
    """Core's helper for torch.compile keeps its compiled blocks on the model options."""
    compiled = node("TorchCompileModelWanVideoV2", backend="eager", fullgraph=False, dynamic="auto")
    g = in_cache(request({"shift": SHIFT, "compile": compiled}, cfg=1.0), cache)
    comfy_host.forget_outputs()
    first = run(g, keep_nodes=True)
    assert first.outcome == "miss"
    other = copy.deepcopy(g)
    other["sample"]["inputs"]["seed"] = 2
    run(other, keep_nodes=True)
    for keep_nodes in (True, False):
        again = run(g, keep_nodes=keep_nodes)
        assert (again.outcome, again.steps_computed) == ("identical", 0)
        assert_same(again.latent, first.latent, "the stored result")
