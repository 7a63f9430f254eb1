"""Families whose start image lies in the latent, kept by a noise mask: it stays, in every way that a hit can go."""

from __future__ import annotations

import pytest
import torch

from .catalog import FAMILIES, SIMILAR, Family

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
