"""The text under which a video is stored, shown and matched is the text that it was sampled with."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from .conftest import assert_same
from .graphs import GREEN, RED, SHIFT, Graph, in_cache, node, plain, request

UNLIKE = "a video of a pink cross moving up and a small cyan square on the left in front of a olive background"


@pytest.fixture
def entries(pack_module):
    """`entries(cache)`: what the cache holds."""
    return lambda cache: pack_module("chorus.comfy.caches").open_cache(cache).entries()


@pytest.fixture
def rolls(comfy_host):
    """`rolls(n)`: the wildcards' next roll is the n-th."""
    pack = comfy_host.custom_node("chorus_test_oddities")

    def start(n: int) -> None:
        pack.rolls = itertools.count(n)

    return start


# -- the prompt's widget says something else ------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", ["conditioning", "clip socket"])
def test_a_stale_copy_of_the_prompt_names_no_video(run, cache, entries, embedding):
    """The look-up's widget still says GREEN, the text encoder's already says RED."""
    stale = request(prompt=RED, asked=GREEN)
    stale["lookup"]["inputs"]["embedding"] = embedding
    first = run(in_cache(stale, cache))
    assert first.outcome == "miss"
    assert_same(first.latent, run(plain(stale)).latent, "the run")
    assert [entry.prompt for entry in entries(cache)] == [RED]


def test_a_red_video_is_matched_as_red_whatever_the_widget_said(run, cache):
    """By the text encoder that the CLIP socket gives, which embeds the look-up's text."""

    def asked(prompt: str, **kwargs) -> Graph:
        g = request(prompt=prompt, steps=5, **kwargs)
        g["lookup"]["inputs"]["embedding"] = "clip socket"
        return in_cache(g, cache)

    run(asked(RED, asked=GREEN))
    read = [copy.deepcopy(asked(prompt)) for prompt in (GREEN, RED)]
    for g in read:
        g["lookup"]["inputs"]["mode"] = "read only"
        g["sample"]["inputs"]["steps"] = 6
    green, red = (run(g).report["match_score"] for g in read)
    assert red == pytest.approx(1.0, abs=1e-3)
    assert green < 0.999


def test_the_same_stale_widget_is_not_the_same_prompt(run, cache):
    """Another text and another seed: two videos, and the second starts from the first as any similar one does."""
    run(in_cache(request(prompt=RED, asked="to do", seed=1), cache))
    second = run(in_cache(request(prompt=GREEN, asked="to do", seed=2), cache))
    assert second.outcome == "hit", second.report["reason"]
    assert second.report["source_prompt"] == RED


# -- an empty widget, and the text from the graph -------------------------------------------------------------------


def _string(g: Graph) -> None:
    g["text"] = node("PrimitiveStringMultiline", value=g["positive"]["inputs"]["text"])
    g["positive"]["inputs"]["text"] = ["text", 0]


def _joined(g: Graph) -> None:
    first, second = g["positive"]["inputs"]["text"].split(" moving ")
    g["text"] = node("StringConcatenate", string_a=first, string_b=second, delimiter=" moving ")
    g["positive"]["inputs"]["text"] = ["text", 0]


def _between(**extra):
    def change(g: Graph) -> None:
        g |= copy.deepcopy(extra)
        name = next(reversed(extra))
        g["lookup"]["inputs"]["positive"] = g["sample"]["inputs"]["positive"] = [name, 0]

    return change


WAYS = {
    "at the text encoder": lambda g: None,
    "from a string node": _string,
    "through a time range": _between(
        ranged=node("ConditioningSetTimestepRange", conditioning=["positive", 0], start=0.0, end=1.0)
    ),
    "through a mask": _between(
        solid=node("SolidMask", value=1.0, width=96, height=96),
        masked=node(
            "ConditioningSetMask",
            conditioning=["positive", 0],
            mask=["solid", 0],
            strength=0.9,
            set_cond_area="default",
        ),
    ),
    "through two nodes": _between(
        ranged=node("ConditioningSetTimestepRange", conditioning=["positive", 0], start=0.0, end=1.0),
        guided=node("FluxGuidance", conditioning=["ranged", 0], guidance=3.5),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_widget_takes_the_text_from_the_graph(run, cache, entries, way):
    g = request(prompt=RED, asked="")
    WAYS[way](g)
    assert run(in_cache(g, cache)).outcome == "miss"
    assert [entry.prompt for entry in entries(cache)] == [RED]


def test_a_text_put_together_from_pieces_is_not_stored_under_a_piece(run, cache, entries):
    g = request(prompt=RED, asked="")
    _joined(g)
    assert run(in_cache(g, cache)).outcome == "miss"
    [entry] = entries(cache)
    pieces = {g["text"]["inputs"]["string_a"], g["text"]["inputs"]["string_b"]}
    assert entry.prompt not in pieces


def test_an_empty_widget_with_two_texts_combined_is_still_told_apart(run, cache):
    """There is no one text: the request goes by its encodings, and nothing is taken for another take of it."""

    def both(first: str, second: str, seed: int) -> Graph:
        g = request(prompt=first, asked="", seed=seed)
        g["second"] = node("CLIPTextEncode", clip=["clip", 0], text=second)
        g["both"] = node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["second", 0])
        for name in ("lookup", "sample"):
            g[name]["inputs"]["positive"] = ["both", 0]
        return in_cache(g, cache)

    run(both(RED, "a small square", 1))
    other = run(both(GREEN, "a small square", 2))
    assert "another take" not in other.report["reason"]
    assert other.outcome != "identical"


def test_two_prompts_with_empty_widgets_are_two_prompts(run, cache):
    run(in_cache(request(prompt=RED, asked="", seed=1), cache))
    other = run(in_cache(request(prompt=GREEN, asked="", seed=2), cache))
    assert other.outcome == "hit", other.report["reason"]
    assert other.report["source_prompt"] == RED


def test_one_prompt_with_an_empty_and_a_filled_widget_is_one(run, cache):
    run(in_cache(request(prompt=RED, asked="", seed=1), cache))
    take = run(in_cache(request(prompt=RED, seed=2), cache))
    assert take.outcome == "miss" and "another take" in take.report["reason"]


@pytest.mark.parametrize("again", [f"{RED}.", RED.replace(" ", "  "), f" {RED}\n", RED.capitalize()])
def test_a_prompt_that_encodes_alike_with_another_seed_is_another_take(run, cache, again):
    run(in_cache(request(prompt=RED, seed=1), cache))
    take = run(in_cache(request(prompt=again, seed=2), cache))
    assert take.outcome == "miss" and "another take" in take.report["reason"]
    assert_same(take.latent, run(plain(request(prompt=again, seed=2))).latent, "the other take")


def test_a_prompt_that_encodes_alike_with_the_same_seed_gets_its_own_video(run, cache):
    run(in_cache(request(prompt=RED), cache))
    again = request(prompt=f"{RED}.")
    answer = run(in_cache(again, cache))
    if answer.outcome != "hit":
        assert_same(answer.latent, run(plain(again)).latent, f"the answer '{answer.outcome}'")


# -- wildcards ------------------------------------------------------------------------------------------------------


def wildcard(texts: str = f"{RED}\n{UNLIKE}") -> Graph:
    """The encoder and the look-up each take a roll of their own, and the encoder's comes first."""
    g = request(asked=["roll_lookup", 0])
    g["roll"] = node("WildcardPrompt", texts=texts)
    g["roll_lookup"] = node("WildcardPrompt", texts=texts)
    g["positive"]["inputs"]["text"] = ["roll", 0]
    return g


def test_a_wildcard_rolled_twice_does_not_name_the_video_by_the_other_roll(run, cache, entries, rolls, comfy_host):
    rolls(0)
    first = run(in_cache(wildcard(), cache))
    assert first.outcome == "miss"
    sampled = comfy_host.output("roll")[0][0]
    assert comfy_host.output("roll_lookup")[0][0] != sampled, "the two rolls must differ"
    [entry] = entries(cache)
    unlike = ({RED, UNLIKE} - {sampled}).pop()
    assert entry.prompt != unlike
    assert_same(first.latent, run(plain(request(prompt=sampled))).latent, "the video")


def test_what_a_wildcard_made_answers_no_other_roll(run, cache, rolls, comfy_host):
    """One graph, four runs: the same widgets and links, other texts."""
    expected = {text: run(plain(request(prompt=text))).latent for text in (RED, UNLIKE)}
    g = in_cache(wildcard(), cache)
    for start in (0, 1, 0, 1):
        rolls(start)
        answer = run(g)
        sampled = comfy_host.output("roll")[0][0]
        if answer.outcome != "hit":
            assert_same(answer.latent, expected[sampled], f"the answer '{answer.outcome}' to '{sampled}'")


def test_a_wildcard_in_a_running_server_gets_the_video_of_its_own_roll(comfy_host, run, cache, rolls):
    expected = {text: run(plain(request(prompt=text))).latent for text in (RED, UNLIKE)}
    g = in_cache(wildcard(), cache)
    comfy_host.forget_outputs()
    rolls(0)
    for _ in range(4):
        answer = run(g, keep_nodes=True)
        sampled = comfy_host.output("roll")[0][0]
        if answer.outcome != "hit":
            assert_same(answer.latent, expected[sampled], f"the answer '{answer.outcome}' to '{sampled}'")


@pytest.mark.parametrize("keep_nodes", [False, True])
def test_a_patch_that_is_rolled_gets_the_video_of_its_own_roll(comfy_host, run, cache, rolls, keep_nodes):
    """The gain is in no widget, and the patch hides it in a slot."""
    g = request({"shift": SHIFT, "rolled": node("WildcardPatch", gains="1.05\n1.2")})
    expected = []
    for start in (0, 1):
        rolls(start)
        expected.append(run(plain(g)).latent)
    assert not torch.equal(*expected)
    comfy_host.forget_outputs()
    for start in (0, 1, 0, 1):
        rolls(start)
        answer = run(in_cache(g, cache), keep_nodes=keep_nodes)
        if answer.outcome != "hit":
            assert_same(answer.latent, expected[start], f"the answer '{answer.outcome}'")
