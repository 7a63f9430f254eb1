"""What a request is given beside its text: masks, pictures, speech, quoted words."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from . import files
from .conftest import assert_same
from .graphs import CASES, GREEN, OTHER_PICTURE, Graph, in_cache, node, plain, request


@pytest.fixture(scope="module")
def shapes(comfy_host) -> tuple[str, str]:
    """Masks of 832 × 480 pixels: a column of 416 × 480 and a row of 832 × 240, both centred.

    Both have as many ones and the same centre, which is all that sums of words weighted by place can see.
    """
    from PIL import Image

    names = ("column.png", "row.png")
    column, row = (np.zeros((480, 832, 3), dtype=np.uint8) for _ in names)
    column[:, 208:624], row[120:360] = 255, 255
    for name, pixels in zip(names, (column, row), strict=True):
        Image.fromarray(pixels).save(comfy_host.base / "input" / name)
    return names


def masked(picture: str, **kwargs) -> Graph:
    g = request(
        extra={
            "mask": node("LoadImageMask", image=picture, channel="red"),
            "masked": node(
                "ConditioningSetMask",
                conditioning=["positive", 0],
                mask=["mask", 0],
                strength=1.0,
                set_cond_area="default",
            ),
        },
        **kwargs,
    )
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["masked", 0]
    return g


@pytest.mark.parametrize("backwards", [False, True])
def test_a_column_is_not_the_row_with_as_many_ones(run, cache, shapes, backwards):
    one, other = shapes[::-1] if backwards else shapes
    first = run(in_cache(masked(one), cache))
    assert first.outcome == "miss"
    answer = run(in_cache(masked(other), cache))
    assert answer.outcome == "miss", "another mask is another task: neither identical nor a source"
    assert_same(answer.latent, run(plain(masked(other))).latent, "the run under the other mask")
    again = run(in_cache(masked(one), cache))
    assert (again.outcome, again.steps_computed) == ("identical", 0)


# -- on the MODEL ---------------------------------------------------------------------------------------------------

ON_THE_MODEL = {
    "speech": {"speech.seed": 7, "speech_network.seed": 7, "previous.latent": "other_start.latent"},
    "control": {"picture.image": OTHER_PICTURE, "network.seed": 7},
    "kjnodes": {"nag_text.text": "a green square"},
}


def _with_prompt(g: Graph, prompt: str) -> Graph:
    g = copy.deepcopy(g)
    g["positive"]["inputs"]["text"] = g["lookup"]["inputs"]["prompt"] = prompt
    return g


@pytest.mark.parametrize(
    ("case", "place"), [(case, place) for case, places in ON_THE_MODEL.items() for place in places]
)
def test_another_input_on_the_model_is_no_source_for_a_similar_prompt(run, cache, case, place):
    """The other text is similar enough for a hit; what is spoken, or drawn, is not the same."""
    own = CASES[case].graph()
    assert run(in_cache(own, cache)).outcome == "miss"
    changed = _with_prompt(own, GREEN)
    name, _, key = place.partition(".")
    changed[name]["inputs"][key] = ON_THE_MODEL[case][place]
    answer = run(in_cache(changed, cache))
    assert answer.outcome in ("miss", "bypassed"), f"{answer.outcome} {answer.report['match_score']}"
    assert_same(answer.latent, run(plain(changed)).latent, f"the answer '{answer.outcome}'")


@pytest.mark.parametrize("case", ["speech", "control", "kjnodes", "guidance", "quantised", "teacache"])
def test_a_similar_prompt_under_the_same_patches_and_inputs_hits(run, cache, case):
    """Otherwise the tests above would pass on a cache that never serves a patched model."""
    own = CASES[case].graph()
    run(in_cache(own, cache))
    hit = run(in_cache(_with_prompt(own, GREEN), cache))
    assert hit.outcome == "hit", hit.report["reason"]
    assert bool(torch.isfinite(hit.latent).all())


# -- text that is not in the text encoder's tokens -------------------------------------------------------------------


@pytest.fixture(scope="module")
def hunyuan(comfy_host) -> str:
    """A HunyuanVideo 1.5 of the smallest size, with random weights."""
    name = "small_hunyuan_video15.safetensors"
    files.small_hunyuan(comfy_host.base / "models" / "diffusion_models" / name)
    return name


def quoted(model: str, words: str, prompt: str = GREEN) -> Graph:
    g = request(
        {"shift": node("ModelSamplingSD3", shift=5.0)},
        prompt=prompt,
        cfg=1.0,
        loader=node("UNETLoader", unet_name=model, weight_dtype="default"),
        extra={
            "words": node("QuotedWords", conditioning=["positive", 0], words=words),
            "latent": node("EmptyHunyuanVideo15Latent", width=96, height=96, length=9, batch_size=1),
        },
    )
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["words", 0]
    return g


def test_quoted_words_are_text_and_may_differ(run, cache, hunyuan):
    one, other = quoted(hunyuan, "open"), quoted(hunyuan, "closed")
    first = run(in_cache(one, cache))
    assert first.outcome == "miss", first.report["reason"]
    assert not torch.equal(first.latent, run(plain(other)).latent), "the words have no effect"
    answer = run(in_cache(other, cache))
    assert answer.outcome == "hit", answer.report["reason"]
    again = run(in_cache(one, cache))
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, first.latent, "the stored result")
