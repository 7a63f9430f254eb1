"""A look compares estimates that only the prompt tells apart; of sources that match alike, the closest one serves."""

from __future__ import annotations

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, node, plain
from sampling.test_hosts import easycache, split_in_two
from sampling.test_regions import masked

from .conftest import told
from .test_look_and_join import looking


def ranged(g):
    """The graph with RED up to a tenth of the schedule, and GREEN from there on."""
    g["second"] = node("CLIPTextEncode", clip=["clip", 0], text=GREEN)
    g["early"] = node("ConditioningSetTimestepRange", conditioning=["positive", 0], start=0.0, end=0.1)
    g["late"] = node("ConditioningSetTimestepRange", conditioning=["second", 0], start=0.1, end=1.0)
    g["both"] = node("ConditioningCombine", conditioning_1=["early", 0], conditioning_2=["late", 0])
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["both", 0]
    return g


def test_a_source_with_conditionings_of_a_part_of_the_schedule_is_not_looked_at(run, cache):
    run(ranged(looking(RED, cache=cache, steps=4)))
    hit = run(looking(RED, cache=cache, steps=4, seed=7))
    assert hit.report["looked"] is None
    assert hit.report["outcome"] == "miss" or "a part of the schedule only" in told(hit)


def test_a_source_made_with_a_step_cache_is_not_looked_at(run, cache):
    g = looking(RED, cache=cache, steps=20)
    easycache(g)
    run(g)
    hit = run(looking(cache=cache, steps=20, seed=7))
    assert hit.report["looked"] is None and "a step cache" in told(hit)


class FlatStart:
    """A node that has the first evaluation give its input back, whatever the prompt, as packs for Wan do."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model):
        patched = model.clone()

        def flat(args):
            if float(args["sigma"].flatten()[0]) > 0.999:
                return torch.zeros_like(args["cond"])
            return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

        patched.set_model_sampler_cfg_function(flat, disable_cfg1_optimization=True)
        return (patched,)


@pytest.fixture
def flat_start(monkeypatch):
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "FlatStart", FlatStart)

    def on(g):
        taken = g["lookup"]["inputs"]["model"]
        g["flat"] = node("FlatStart", model=taken)
        for name, part in g.items():
            if name != "flat" and part["inputs"].get("model") == taken:
                part["inputs"]["model"] = ["flat", 0]
        return g

    return on


def test_a_first_step_that_does_not_depend_on_the_prompt_keeps_nothing_of_the_match(
    run, cache, flat_start, pack_module, monkeypatch
):
    wrappers, told_of = pack_module("chorus.comfy.sampling.wrappers"), []
    left = RED.replace("right", "left")
    run(flat_start(looking(RED, cache=cache, steps=8, cfg=3.0)))
    monkeypatch.setattr(wrappers, "run_started", told_of.append)
    hit = run(flat_start(looking(left, cache=cache, steps=8, cfg=3.0, seed=7)))
    assert hit.report["outcome"] == "hit" and hit.report["looked"] is None
    assert "cannot tell where the picture changes" in told(hit)
    assert [figures["looking"] for figures in told_of] == [True, False], "the page shows how the run goes on"
    assert told_of[-1]["k1"] == hit.report["k1"] > 0
    source, truth = (run(plain(flat_start(looking(p, cache=cache, steps=8, cfg=3.0)))) for p in (RED, left))
    assert difference(hit.latent, truth.latent) < 0.5 * difference(hit.latent, source.latent)


def test_the_difference_is_divided_by_no_cfg_that_may_not_be_the_one_in_effect(run, cache):
    """Where the CFG of the first step is overridden with 1, so many tokens differ as without any CFG."""

    def overridden(g):
        g["flat"] = node("CFGOverride", model=g["lookup"]["inputs"]["model"], cfg=1.0, start_percent=0, end_percent=1)
        taken = g["lookup"]["inputs"]["model"]
        for name, part in g.items():
            if name != "flat" and part["inputs"].get("model") == taken:
                part["inputs"]["model"] = ["flat", 0]
        return g

    shares = []
    for cfg, change in ((8.0, overridden), (1.0, lambda g: g)):
        name = f"{cache}-{cfg}"
        run(change(looking(RED, cache=name, steps=4, cfg=cfg)))
        shares.append(run(change(looking(cache=name, steps=4, cfg=cfg, seed=7))).report["looked"])
    assert shares[0] == pytest.approx(shares[1], abs=1e-4) and 0 < shares[1] < 1


def test_of_two_takes_the_one_with_the_seed_that_is_kept_serves(run, cache):
    takes = {seed: run(looking(RED, cache=cache, steps=4, seed=seed)) for seed in (1, 2)}
    assert all(take.report["outcome"] == "miss" for take in takes.values())
    for seed in takes:
        hit = run(looking(cache=cache, steps=4, seed=seed))
        assert hit.report["looked"] is not None and "has no effect" not in told(hit)
        apart = {other: difference(hit.latent, take.latent) for other, take in takes.items()}
        assert min(apart, key=apart.__getitem__) == seed


def test_of_two_sources_the_one_with_the_same_cfg_serves(run, cache):
    for cfg in (3.0, 4.0):
        run(looking(RED, cache=cache, steps=4, cfg=cfg, seed=int(cfg)))
    hit = run(looking(cache=cache, steps=4, cfg=3.0, seed=9))
    assert hit.report["looked"] is not None and "seed 3" in told(hit)


def test_another_number_of_steps_of_the_same_prompt_and_seed_is_sampled_in_full(run, cache):
    run(looking(RED, cache=cache, steps=4))
    better = run(looking(RED, cache=cache, steps=8))
    assert better.report["outcome"] == "miss" and "another number of steps" in told(better)
    assert run(looking(cache=cache, steps=8, seed=7)).report["looked"] is not None


def test_two_samplers_look_by_the_guidance_of_the_first(run, cache):
    def both(prompt, seed):
        g = split_in_two(looking(prompt, cache=cache, steps=8, cfg=3.0, seed=seed), 4)
        g["sample"]["inputs"]["cfg"] = 1.0
        return g

    run(both(RED, 1))
    hit = run(both(GREEN, 7))
    assert hit.report["looked"] is not None, told(hit)


def test_by_hand_nothing_may_be_left_to_skip(run, cache):
    run(looking(RED, cache=cache, steps=4))
    g = looking(cache=cache, steps=4, seed=7)
    g["stage3"]["inputs"] |= {"k2": "fixed", "fraction": 0.0}
    plainly = run(g)
    assert plainly.report["outcome"] == "miss" and "leave no step to skip" in told(plainly)


def test_a_fixed_k1_that_cannot_be_reached_says_so(run, cache):
    run(looking(RED, cache=cache, steps=4))
    g = looking(cache=cache, steps=4, seed=7)
    g["stage1"]["inputs"] |= {"k1": "fixed", "fraction": 1.0, "maximum": 1.0}
    hit = run(g)
    assert hit.report["steps_computed"] == 2 and "2 steps are skipped where K1 asks for 4" in told(hit)


def test_where_nothing_differs_three_steps_are_computed_all_the_same(run, cache, comfy_host):
    run(looking(RED, cache=cache, steps=4))
    hit = run(masked(looking(cache=cache, steps=4, seed=7), [], comfy_host))
    assert (hit.report["outcome"], hit.report["looked"], hit.report["steps_computed"]) == ("hit", 0.0, 3)
