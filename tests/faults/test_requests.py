"""Several requests through one chain, two samplers, two experts, and few steps at high CFG."""

from __future__ import annotations

import re

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, UNLIKE, Graph, graph, node, plain
from sampling.test_hosts import split_in_two
from sampling.test_regions import masked

from . import odd_nodes
from .conftest import told
from .sampling_reference import block_lengths, evaluations

PROMPTS = (RED, GREEN, UNLIKE, "a yellow square moving left over a black background", "a small blue cross on the top")


@pytest.fixture
def stored(pack_module, cache):
    """`stored()`: [(prompt, seed, final latent)] of the cache."""

    def read() -> list[tuple[str, int, torch.Tensor]]:
        opened = pack_module("chorus.comfy.caches").open_cache(cache)
        return [(e.prompt, e.settings["seed"], opened.load(e.id, ["final"])["final"]) for e in opened.entries()]

    return read


def listed(g: Graph, values, *sockets: tuple[str, str]) -> Graph:
    odd_nodes.given["values"] = values
    g["values"] = node("ListOf", name="values")
    for name, socket in sockets:
        g[name]["inputs"][socket] = ["values", 0]
    return g


def test_a_list_of_prompts_through_one_chain(run, comfy_host, cache, stored):
    def g() -> Graph:
        return listed(graph(cache=cache, masks=True, tgaa=True), PROMPTS, ("positive", "text"), ("lookup", "prompt"))

    run(plain(g()))
    expected = [value["samples"] for value in comfy_host.output("sample")[0]]
    result = run(g())
    latents = [value["samples"] for value in comfy_host.output("sample")[0]]
    assert len(latents) == len(expected) == 5
    assert all(torch.equal(a, b) for a, b in zip(latents, expected, strict=True))
    finals = {prompt: final for prompt, _, final in stored()}
    assert sorted(finals) == sorted(PROMPTS), told(result)
    assert all(torch.equal(finals[prompt], latent) for prompt, latent in zip(PROMPTS, expected, strict=True))


def test_a_latent_that_is_not_finite_is_not_kept(run, cache, stored):
    def broken(args: dict) -> torch.Tensor:
        return args["cond"] * (1.0 if float(args["sigma"].flatten()[0]) > 0.5 else float("nan"))

    odd_nodes.given["broken"] = lambda model: model.set_model_sampler_cfg_function(broken)
    g = graph(cache=cache, cfg=3.0)
    loaded = g["lookup"]["inputs"]["model"]
    g["broken"] = node("Patched", model=loaded, name="broken")
    for name, part in g.items():
        if name != "broken" and part["inputs"].get("model") == loaded:
            part["inputs"]["model"] = ["broken", 0]
    result = run(g)
    assert result.latent.isnan().any() and "not finite (NaN)" in told(result)
    assert stored() == []
    assert run(graph(cache=cache, cfg=3.0)).report["outcome"] == "miss"
    assert len(stored()) == 1


def test_a_list_of_seeds_after_one_look_up(run, comfy_host, cache, stored):
    seeds = (11, 12, 13)

    def g() -> Graph:
        return listed(graph(cache=cache, masks=True, tgaa=True), seeds, ("sample", "seed"))

    run(plain(g()))
    expected = [value["samples"] for value in comfy_host.output("sample")[0]]
    result = run(g())
    latents = [value["samples"] for value in comfy_host.output("sample")[0]]
    assert len(latents) == 3 and all(torch.equal(a, b) for a, b in zip(latents, expected, strict=True))
    finals = {seed: final for _, seed, final in stored()}
    assert sorted(finals) == list(seeds), told(result)
    assert all(torch.equal(finals[seed], latent) for seed, latent in zip(seeds, expected, strict=True))


def test_two_samplers_after_one_look_up(run, comfy_host, cache, stored):
    g = graph(cache=cache, seed=1)
    g["second"] = node(**{"class_type": "KSampler"}, **{**g["sample"]["inputs"], "seed": 2})
    g["keep second"] = node(**{"class_type": "ChorusCacheStore"}, **{**g["store"]["inputs"], "latent": ["second", 0]})
    expected = {seed: run(plain(graph(cache="", seed=seed))).latent for seed in (1, 2)}
    run(g)
    made = {1: comfy_host.output("sample")[0][0]["samples"], 2: comfy_host.output("second")[0][0]["samples"]}
    assert all(torch.equal(made[seed], expected[seed]) for seed in (1, 2))
    finals = {seed: final for _, seed, final in stored()}
    assert sorted(finals) == [1, 2] and all(torch.equal(finals[seed], expected[seed]) for seed in (1, 2))


# -- CFG and the number of steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [RED, GREEN], ids=["same prompt", "similar prompt"])
@pytest.mark.parametrize("cfg", [5.0, 7.0])
def test_enough_steps_are_left_for_a_high_cfg(run, cache, cfg, prompt):
    """A source at CFG 3, 8 steps. Too few steps at a high CFG burn: values far beyond those of the full run.

    The 99 % quantile of the values, over that of the full run, by the number of steps that a hit computes:

    | steps computed           | 7    | 6    | 5    | 4    | 3    | 2    |
    |--------------------------|------|------|------|------|------|------|
    | CFG 3, similar prompt    | 0.99 | 0.99 | 0.99 | 0.99 | 0.99 | 1.05 |
    | CFG 5, same prompt       | 1.00 | 1.00 | 1.01 | 1.29 | 1.98 | 1.54 |
    | CFG 5, similar prompt    | 0.99 | 0.99 | 0.98 | 1.01 | 1.03 | 1.34 |
    | CFG 7, same prompt       | 1.00 | 1.41 | 2.21 | 2.27 | 3.74 | 2.30 |
    | CFG 7, similar prompt    | 0.97 | 0.99 | 1.26 | 1.47 | 1.81 | 1.86 |

    So about as many steps as the CFG says. The error to the full run goes the same way: at CFG 5 with the same prompt
    0.04, 0.07, 0.23, 0.54, 1.24, 0.81; at CFG 7 0.32, 0.63, 1.49, 1.36, 2.98, 1.46.
    """
    run(graph(RED, cache=cache, cfg=3.0))
    hit = run(graph(prompt, cache=cache, cfg=cfg, start=0.0))
    full = run(plain(graph(prompt, cache="", cfg=cfg))).latent
    assert float(hit.latent.abs().quantile(0.99) / full.abs().quantile(0.99)) < 1.15
    if prompt == RED:  # nothing of a source stays in the picture that should not: the error is the lack of steps
        assert difference(hit.latent, full) < 0.4


# -- two experts --------------------------------------------------------------------------------------------------


def two_and_two(prompt: str, cache: str, **settings) -> Graph:
    return split_in_two(graph(prompt, cache=cache, steps=4, **settings), at=2)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_two_experts_say_it_when_the_first_is_left_out(run, cache, start):
    with evaluations() as seen:
        run(two_and_two(RED, cache))
    boundary = sorted({sigma for sigma, _ in seen}, reverse=True)[2]
    with evaluations() as seen:
        hit = run(two_and_two(GREEN, cache, k1=0.5, start=start))
    assert hit.report["outcome"] == "hit" and hit.report["steps_computed"] == len(seen)
    if not any(sigma > boundary + 1e-4 for sigma, _ in seen):
        assert hit.report["notes"]


def test_the_steps_of_two_experts_are_those_really_computed(run, cache):
    with evaluations() as seen:
        cold = run(two_and_two(RED, cache, k1=0.25))
    assert cold.report["steps_computed"] == len(seen) == 4
    with evaluations() as seen:
        again = run(two_and_two(RED, cache, k1=0.25))
    assert again.report["steps_computed"] == len(seen)
    assert torch.equal(again.latent, cold.latent)
    for _ in range(2):  # a hit, and the same again
        with evaluations() as seen:
            hit = run(two_and_two(GREEN, cache, k1=0.25))
        assert hit.report["steps_computed"] == len(seen)
        if re.search(r"\b0 of \d+ steps computed", hit.summary):
            assert seen == []


def test_selective_steps_go_on_over_the_boundary_of_two_experts(run, cache, comfy_host):
    """The first step of the second half is selective like its neighbours, when the first half looked already."""
    run(split_in_two(graph(RED, cache=cache, k1=0.25), at=4))
    with block_lengths() as lengths:
        g = masked(graph(GREEN, cache=cache, k1=0.25, k2=0.75), [(32, 32, 64, 64)], comfy_host, visible=1)
        hit = run(split_in_two(g, at=4))
    assert hit.report["outcome"] == "hit" and hit.report["k1"] == 2
    assert lengths[::5] == [144, 64, 64, 64, 144, 144]
    assert hit.report["token_share"] == pytest.approx([1.0, 64 / 144, 64 / 144, 64 / 144], abs=1e-3)
