"""Each family of models: a run without a hit changes nothing, a hit saves steps, and another input is never a hit."""

from __future__ import annotations

import pytest
import torch

from .catalog import FAMILIES, SIMILAR, STEPS, Family, with_input
from .conftest import away, told

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@each_family
def test_without_a_hit_the_result_is_that_of_the_graph_without_chorus(tried, family: Family) -> None:
    found = tried(family)
    assert found.cold.outcome in ("miss", "bypassed"), found.cold.reason
    assert found.bit_identical, f"{away(found.cold.latent, found.reference):.3g} away"
    assert bool(torch.isfinite(found.reference).all())


@each_family
def test_a_similar_prompt_saves_steps_or_the_reason_is_told(tried, family: Family) -> None:
    found = tried(family)
    assert away(found.similar_reference, found.reference) > 1e-3, "the text has no effect on this model"
    for answer, steps in ((found.similar, STEPS), (found.early, 2 * STEPS)):
        assert bool(torch.isfinite(answer.latent).all())
        if answer.outcome == "hit":
            assert 0 < answer.report["step_equivalents"] < steps
        else:
            assert answer.outcome in ("miss", "bypassed") and answer.reason
            assert "error inside Chorus" not in answer.reason and "failed" not in answer.reason, answer.reason
    if found.similar.outcome != "hit":
        assert torch.equal(found.similar.latent, found.similar_reference)


@each_family
def test_an_identical_request_gets_the_same_latent(tried, family: Family) -> None:
    found = tried(family)
    if found.cold.outcome == "miss":
        assert found.again.outcome == "identical", found.again.reason
        # Of two samplers the first cannot know what the second one will be asked for.
        assert found.again.report["steps_computed"] == 0 or len(family.models) == 2
    assert torch.equal(found.again.latent, found.reference)


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES for name in family.inputs],
    ids=lambda one: getattr(one, "name", one),
)
def test_another_input_is_no_hit_and_the_reason_names_it(tried, family: Family, name: str) -> None:
    """The prompt is similar enough for a hit; the one input is not the same."""
    found = tried(family)
    answer = found.inputs[name]
    assert answer.outcome in ("miss", "bypassed"), f"{answer.outcome}: {answer.reason}"
    assert away(answer.latent, found.similar_reference) > 1e-4, "this input has no effect on the model"
    if found.similar.outcome == "hit":
        assert name in answer.reason.lower(), answer.reason


@each_family
def test_computing_all_tokens_as_if_some_were_left_out_changes_nothing(tried, family: Family) -> None:
    found = tried(family)
    if found.all_kept is None:
        assert found.similar.outcome != "hit" or told(found.similar, "no selective steps")
    else:
        assert away(found.all_kept, found.reference) < 1e-5


@each_family
def test_where_no_token_is_computed_the_text_changes_nothing(tried, family: Family) -> None:
    """Tokens beside the video's own, as of references, are no part of the video and stay."""
    found = tried(family)
    if found.last_frame is not None:
        inside, outside = found.last_frame
        assert inside > 1e-4 and outside < 1e-5 * max(1.0, inside)


def test_another_guidance_is_compared_as_another_cfg(tried, comfy_host) -> None:
    """Models that are distilled to a guidance get it with the conditioning."""
    (family,) = (one for one in FAMILIES if one.name == "Flux")
    assert tried(family).similar.report["looked"] is not None
    g = with_input(family.graph(SIMILAR, tried(family).cache, mode="read only"), "guided.guidance", 2.0)
    (report,) = comfy_host.execute(g)["outputs"]["store"]["chorus"]
    assert any("was made with CFG [1.0, 3.5], this run has CFG [1.0, 2.0]" in note for note in report["notes"])
