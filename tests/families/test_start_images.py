"""Families whose start image lies in the latent, kept by a noise mask: it stays, in every way that a hit can go."""

from __future__ import annotations

import pytest
import torch

from .catalog import FAMILIES, SIMILAR, STEPS, Family, Graph, node, with_input
from .conftest import away

IN_THE_LATENT = (
    "Wan 2.2 TI2V 5B with an image",
    "HunyuanVideo 1.0 I2V, replaced frame",
    "LTX-Video I2V",
)
each_family = pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.name in IN_THE_LATENT], ids=lambda one: one.name
)


def first_frame(latent: torch.Tensor) -> torch.Tensor:
    return latent[:, :, 0]


@each_family
def test_a_hit_keeps_the_start_image_as_a_run_in_full_does(tried, family: Family) -> None:
    found = tried(family)
    assert found.similar.outcome == found.early.outcome == "hit"
    assert torch.equal(first_frame(found.similar.latent), first_frame(found.similar_reference))
    assert torch.allclose(first_frame(found.early.latent), first_frame(found.similar_reference), atol=1e-5)


def with_stage_1_alone(g: Graph) -> Graph:
    """The graph without amplified words and masks."""
    asked = g["chorus"]["inputs"]
    stage1 = {"k1": "auto", "fraction": 0.0, "maximum": 0.8, "start": 0.0, "method": "look and join"}
    return g | {
        "lookup": node("ChorusCacheLookup", **asked),
        "chorus": node("ChorusStage1Reuse", model=asked["model"], chorus=["lookup", 0], **stage1),
    }


@each_family
def test_a_look_after_which_everything_is_computed_is_the_run_in_full(
    tried, comfy_host, pack_module, monkeypatch, family: Family
) -> None:
    """Under the noise of the match, whatever the seed."""
    found = tried(family)
    course, technique = (pack_module(f"chorus.{name}") for name in ("reuse.course", "comfy.techniques.look_and_join"))
    monkeypatch.setattr(technique.LookAndJoin, "_settled", lambda self, past: course.Course("F" * STEPS))
    monkeypatch.setattr(pack_module("chorus.reuse.join").Cut, "__call__", lambda self, apart: apart >= 0.0)
    g = with_input(with_stage_1_alone(family.graph(SIMILAR, found.cache, mode="read only")), "sample.seed", 2)
    (report,) = comfy_host.execute(g)["outputs"]["store"]["chorus"]
    assert (report["outcome"], report["steps_computed"]) == ("hit", STEPS), report["reason"]
    assert away(comfy_host.output("sample")[0][0]["samples"], found.similar_reference) < 1e-6


@each_family
def test_kept_states_have_the_start_image_as_it_is(tried, pack_module, family: Family) -> None:
    """These models are shown it without noise, which is no state of a run's noise."""
    cache = pack_module("chorus.comfy.caches").open_cache(tried(family).cache)
    assert cache.flush()
    (entry,) = (one for one in cache.entries() if one.is_source)
    names = sorted(name for name in entry.tensor_names if name.startswith("checkpoint/"))
    finest, *others = (first_frame(kept.float()) for kept in cache.load(entry.id, names).values())
    for other in others:
        assert away(other, finest) < 1.0, "early states are kept coarsely, but not so coarsely"


@each_family
def test_the_start_image_is_no_place_where_the_picture_changes(tried, comfy_host, pack_module, family: Family) -> None:
    found = tried(family)
    technique, looks = pack_module("chorus.comfy.techniques.look_and_join").LookAndJoin, []
    inner = technique._use

    def use(self, regions) -> None:
        looks.append(regions)
        inner(self, regions)

    technique._use = use
    comfy_host.forget_outputs()
    try:
        comfy_host.execute(family.graph(SIMILAR, found.cache, mode="read only"))
    finally:
        technique._use = inner
    (regions,) = looks
    assert not bool(regions.visible[0].any()) and bool(regions.edit[1:].any())
