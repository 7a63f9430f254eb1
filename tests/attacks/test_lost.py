"""Renders that run without Chorus and fail with it. Every test here fails on 300586d."""

from __future__ import annotations

import pytest
from identity.conftest import assert_same
from identity.graphs import in_cache, node, plain, request


@pytest.mark.parametrize("what", ["model_options", "transformer_options"])
def test_a_node_after_the_stages_gives_the_model_new_options(run, cache, what):
    """`model_options` is any node's to replace; the wrappers lie on the patcher and stay, the plan is gone."""
    g = request(extra={"reset": node("ResetOptions", model=["stage3", 0], what=what)})
    g["sample"]["inputs"]["model"] = ["reset", 0]
    expected = run(plain(g)).latent
    assert_same(run(in_cache(g, cache)).latent, expected, "the run without Chorus")
