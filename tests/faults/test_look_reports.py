"""What is said and shown of a hit with a look, and which masks it goes by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, UNLIKE, Graph, node
from sampling.test_hosts import split_at, split_in_two
from sampling.test_regions import masked

from .conftest import told
from .sampling_reference import block_lengths
from .test_look_and_join import TOKENS, looking, looks_seen, watched, without_context  # noqa: F401 - a fixture


def cost_shown(report: dict[str, Any]) -> float:
    """The cost that the pages show, by the steps of the report (web/lib/timeline.js)."""
    k1, k2 = report["k1"], report["k2"]
    assert len(report["token_share"]) == k2 - k1
    return 1 + sum(report["token_share"]) + report["steps"] - max(k2, 1)


def masks_of(g: Graph, way: str, edit: int = 0) -> Graph:
    g["srd"] = node("ChorusSRDMask", chorus=["lookup", 0], masks_from=way, edit_dilation=edit, visible_dilation=0)
    g["stage1"]["inputs"]["chorus"] = ["srd", 0]
    return g


# -- two samplers -----------------------------------------------------------------------------------------------


def test_a_first_sampler_of_one_step_is_sampled(run, cache, comfy_host):
    run(looking(RED, cache=cache))

    def given_a_mask() -> Graph:
        return masked(looking(cache=cache, mode="read only"), [(32, 32, 64, 64)], comfy_host, visible=0)

    whole = run(given_a_mask())
    with block_lengths() as lengths:
        split = run(split_in_two(given_a_mask(), 1))
    assert split.report["outcome"] == "hit", told(split)
    assert lengths[:10] == [TOKENS] * 10, "the look, and the first step behind the boundary"
    assert difference(split.latent, whole.latent) < 0.1


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("at", [1, 3, 5, 11])
def test_the_figures_of_two_samplers_add_up(run, cache, at, selective):
    def request(prompt: str) -> Graph:
        g = looking(prompt, cache=cache, steps=20)
        return g if selective else without_context(g)

    run(request(RED))
    split = run(split_in_two(request(GREEN), at))
    assert split.report["outcome"] == "hit", told(split)
    assert cost_shown(split.report) == pytest.approx(split.report["step_equivalents"], abs=1e-3)
    assert (
        split.report["steps_computed"] == 1 + sum(s > 0 for s in split.report["token_share"]) + 20 - split.report["k2"]
    )


def two_prompts(g: Graph, sampler: str, other: str, begins: float, ends: float) -> Graph:
    """The graph in which a sampler's positive is another prompt for a part of the schedule, in fractions of it."""
    g["else"] = node("CLIPTextEncode", clip=["clip", 0], text=other)
    parts = [("positive", 0.0, begins), ("else", begins, ends), ("positive", ends, 1.0)]
    for number, (prompt, start, end) in enumerate(parts):
        g[f"part{number}"] = node("ConditioningSetTimestepRange", conditioning=[prompt, 0], start=start, end=end)
    g["parts"] = node("ConditioningCombine", conditioning_1=["part0", 0], conditioning_2=["part1", 0])
    g["all parts"] = node("ConditioningCombine", conditioning_1=["parts", 0], conditioning_2=["part2", 0])
    g[sampler]["inputs"]["positive"] = ["all parts", 0]
    return g


def test_a_conditioning_of_a_part_of_the_schedule_counts_in_a_second_sampler(run, cache):
    def request() -> Graph:
        return split_in_two(looking(cache=cache, steps=12, mode="read only"), 3)

    run(looking(RED, cache=cache, steps=12))
    hit, other = run(request()), run(two_prompts(request(), "sample", UNLIKE, 0.3, 0.55))
    assert other.report["outcome"] == "hit" and "goes on by itself" in told(other)
    assert other.report["steps_computed"] == hit.report["steps_computed"] - 5 + 9
    assert difference(other.latent, hit.latent) > 0.1


@pytest.mark.parametrize("middle", ["lcm", "res_multistep_cfg_pp"])
def test_behind_a_sampler_that_goes_on_by_itself_the_next_one_does_so_too(run, cache, comfy_host, middle):
    def request() -> Graph:
        return masked(looking(cache=cache, steps=20), [(32, 32, 64, 64)], comfy_host, visible=0)

    run(looking(RED, cache=cache, steps=20))
    g = split_at(request(), 7, 10)
    g["middle 0"]["inputs"]["sampler_name"] = middle
    with block_lengths() as lengths:
        hit = run(g)
    assert hit.report["outcome"] == "hit", told(hit)
    assert set(lengths[5 * 3 :]) == {TOKENS}, "all steps behind the first sampler's three"
    assert "need the method" not in told(hit) and told(hit).count("goes on by itself") == 1


def test_a_second_sampler_that_begins_with_skipped_steps_goes_on_from_the_latest_estimate(
    run, cache, pack_module, monkeypatch
):
    """The first sampler takes its schedule to be so short that its last steps are full ones, not joined."""
    kind = pack_module("chorus.comfy.techniques.look_and_join").LookAndJoin
    after, instead = kind.after_evaluation, kind.instead
    latest: list[torch.Tensor] = []
    apart: list[float] = []

    def evaluated(self: Any, *args: Any) -> torch.Tensor:
        latest.append(after(self, *args))
        return latest[-1]

    def answered(self: Any, *args: Any) -> torch.Tensor | None:
        x0 = instead(self, *args)
        if x0 is not None:
            apart.append(difference(x0.cpu(), latest[-1].cpu()))
        return x0

    run(without_context(looking(RED, cache=cache, steps=6)))
    g = split_in_two(without_context(looking(cache=cache, steps=6)), 4)
    g["sample"]["inputs"] |= {"steps": 18, "start_at_step": 12}
    monkeypatch.setattr(kind, "after_evaluation", evaluated)
    monkeypatch.setattr(kind, "instead", answered)
    hit = run(g)
    assert hit.report["outcome"] == "hit", told(hit)
    assert len(apart) == hit.report["steps"] - hit.report["steps_computed"] > 2
    assert max(apart) < 1e-6


@pytest.mark.parametrize("prompt", [RED, GREEN])
def test_a_changed_second_sampler_goes_on_from_what_the_host_has_kept(run, cache, comfy_host, prompt):
    """The host samples a first part again only when something above it has changed. RED is the match itself, a miss."""
    run(looking(RED, cache=cache, steps=20, mode="read and write" if prompt == GREEN else "write only"))
    g = split_in_two(looking(prompt, cache=cache, steps=20, seed=7), 10)
    first = run(g)
    g["sample"]["inputs"]["cfg"] = 2.0
    history = comfy_host.execute(g)
    (report,) = history["outputs"]["store"]["chorus"]
    assert report["outcome"] == first.report["outcome"], report["reason"]
    assert report["steps"] == 20
    if prompt == GREEN:  # there, the match had another CFG
        assert report["steps_computed"] > max(10, first.report["steps_computed"])
        assert [note for note in report["notes"] if note not in first.report["notes"]] == [
            "the second sampler computes all its steps: there, the match was sampled with another sampler, CFG, "
            "negative prompt or guider, or with a step cache"
        ]
    else:
        assert report["steps_computed"] == 20 and report["notes"] == first.report["notes"]
    assert difference(comfy_host.output("sample")[0][0]["samples"], first.latent) > 1e-3


def test_a_match_whose_second_sampler_had_another_cfg_is_no_picture_for_a_look(run, cache):
    g = split_in_two(looking(RED, cache=cache, steps=20), 2)
    g["sample"]["inputs"]["cfg"] = 5.0
    run(g)
    hit = run(looking(cache=cache, steps=20))
    assert hit.report["outcome"] == "hit", told(hit)
    assert hit.report["looked"] is None and "made with CFG [5.0]" in told(hit)


# -- what a hit is told to be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"k1": "fixed", "fraction": 0.0}, {"maximum": 0.0}])
def test_where_nothing_may_be_skipped_a_match_is_a_miss(run, cache, settings):
    run(looking(RED, cache=cache, steps=4))
    g = looking(cache=cache, steps=4)
    g["stage1"]["inputs"] |= settings
    result = run(g)
    assert (result.report["outcome"], result.report["steps_computed"]) == ("miss", 4)
    assert "nothing can be skipped" in told(result)


def test_a_run_without_selective_steps_says_why(run, cache):
    run(without_context(looking(RED, cache=cache, steps=4)))
    hit = run(without_context(masks_of(looking(cache=cache, steps=4), "look")))
    assert hit.report["outcome"] == "hit"
    assert "another node replaces the attention" in told(hit)


def test_masks_from_the_look_are_missed_in_an_early_start(run, cache):
    run(looking(RED, cache=cache, steps=4))
    g = masks_of(looking(cache=cache, steps=4), "look")
    g["stage1"]["inputs"]["method"] = "early start"
    hit = run(g)
    assert (hit.report["outcome"], hit.report["looked"]) == ("hit", None)
    assert "masks from 'look' need the method look and join" in told(hit)


def test_a_match_that_did_not_begin_with_pure_noise_is_not_compared_with(run, cache):
    red = looking(RED, cache=cache)
    red["sample"]["inputs"]["denoise"] = 0.6
    assert run(red).report["outcome"] == "miss"
    hit = run(looking(cache=cache, seed=7))
    assert hit.report["looked"] is None
    assert "does not begin with noise alone" in told(hit)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": None}, "cannot be drawn again from its seed"),
        ({"seed": -1}, "cannot be drawn again from its seed"),
        ({"seed": 2}, "cannot be drawn again from its seed"),
        ({"guidance": None}, "keeps no state of its first step"),
        ({"guidance": "CFG 2"}, "keeps no state of its first step"),
        ({"guidance": {"cfgs": "high"}}, "made with CFG high"),
        ({"guidance": {"cfgs": [2.0]}}, r"made with CFG [2.0]"),
        ({"guidance": {"negative": "another"}}, "another negative prompt"),
        ({"guidance": {"ranged": True}}, "a part of the schedule only"),
        ({"guidance": {"step_cache": True}}, "a step cache"),
        ({"guidance": {"windows": "of 3 frames"}}, "other context windows"),
        ({"guidance": {"guider": "Guider_DualCFG"}}, "another guider"),
        ({"guidance": {"what comes later": 1}}, "keeps no state of its first step"),
        ({"calls": ["first", "second"]}, "by several samplers"),
        ({"parts": "two"}, "by several samplers"),
        ({"parts": [{"sigma": 1.0}]}, "by several samplers"),
    ],
)
def test_an_entry_whose_settings_do_not_allow_a_look_serves_an_early_start(
    run, cache, pack_module, monkeypatch, changed, said
):
    """As an entry of somebody else's bundle may be, of which only the settings in docs/format.md are sure."""
    kind = pack_module("chorus.comfy.techniques.look_and_join").LookAndJoin
    begin = kind.begin

    def changed_first(self, schedule):
        if self.request.plan.source is not None:
            settings = self.request.plan.source.entry.settings
            settings.pop("parts", None)  # as of an entry from before each sampler's settings were kept
            for name, value in changed.items():
                settings[name] = settings[name] | value if isinstance(value, dict) else value
            for name in [name for name, value in changed.items() if value is None]:
                del settings[name]
        return begin(self, schedule)

    run(looking(RED, cache=cache, steps=4))
    monkeypatch.setattr(kind, "begin", changed_first)
    hit = run(looking(cache=cache, steps=4, seed=7))
    assert (hit.report["outcome"], hit.report["looked"]) == ("hit", None), told(hit)
    assert said in told(hit)


def test_pages_are_told_of_a_run_when_it_begins_and_again_when_the_look_is_done(run, cache, pack_module, monkeypatch):
    wrappers, told_of = pack_module("chorus.comfy.sampling.wrappers"), []
    announce = wrappers.run_started
    monkeypatch.setattr(wrappers, "run_started", lambda figures: (told_of.append(figures), announce(figures))[1])
    run(looking(RED, cache=cache, steps=4))
    assert [figures["looking"] for figures in told_of] == [False]
    told_of.clear()
    hit = run(looking(cache=cache, steps=4))
    first, then = told_of
    assert (first["outcome"], first["looking"], first["looked"], first["masks"]) == ("hit", True, None, None)
    assert (first["k1"], first["k2"], first["token_share"]) == (0, 0, []), "until the look is done all steps are full"
    assert (then["looking"], then["looked"]) == (False, pytest.approx(hit.report["looked"], abs=1e-4))
    assert (then["k1"], then["k2"]) == (hit.report["k1"], hit.report["k2"])
    assert then["token_share"] == pytest.approx(hit.report["token_share"], abs=1e-4)
    assert then["masks"] == hit.report["masks"] and then["masks"]["grid"] == [4, 6, 6]


# -- masks that were known before -------------------------------------------------------------------------------


def test_a_mask_counts_alone(run, cache, comfy_host):
    run(looking(RED, cache=cache, steps=4))
    hit = run(masked(looking(cache=cache, steps=4), [(0, 0, 32, 48)], comfy_host))
    assert hit.report["outcome"] == "hit"
    box = torch.zeros(4, 6, 6, dtype=torch.bool)
    box[:, :2, :3] = True
    assert torch.equal(looks_seen[-1], box)
    assert hit.report["looked"] == pytest.approx(6 / 36, abs=1e-4)


def test_what_attention_knows_is_added_to_the_look(run, cache, comfy_host, pack_module, monkeypatch):
    course = pack_module("chorus.reuse.course")
    looks = course.calibrated()
    short_sighted = replace(looks, cut=replace(looks.cut, lowest=0.5, highest=0.5))
    monkeypatch.setattr(course, "calibrated", lambda: short_sighted)
    run(looking(RED, cache=cache, steps=4))
    run(masks_of(looking(cache=cache, steps=4), "look"))
    run(masks_of(looking(cache=cache, steps=4), "attention"))
    plan = comfy_host.output("srd")[0][0]
    attended = plan.stages["regions"].regions.base
    look, both = looks_seen
    assert bool(attended.any()) and bool((attended & ~look).any()), "attention knows no other place here"
    assert torch.equal(both, look | attended)


def test_the_look_is_dilated_as_the_mask_node_says(run, cache, pack_module):
    dilate = pack_module("chorus.reuse.regions").dilate
    run(looking(RED, cache=cache, steps=4))
    run(masks_of(looking(cache=cache, steps=4), "look"))
    run(masks_of(looking(cache=cache, steps=4), "look", edit=1))
    plain, grown = looks_seen
    assert torch.equal(grown, dilate(plain, 1)) and not torch.equal(grown, plain)


def test_amplified_words_do_not_change_what_a_look_sees(run, cache):
    run(looking(RED, cache=cache, steps=20))
    plain, amplified = (run(looking(cache=cache, steps=20, tgaa=tgaa)) for tgaa in (False, True))
    first, second, *again = looks_seen
    assert len(again) == 2 and torch.equal(again[0], first) and torch.equal(again[1], second)
    assert amplified.report["tokens"] and not torch.equal(amplified.latent, plain.latent)


def test_a_whole_change_says_so_and_shows_its_cost(run, cache):
    run(looking(RED, cache=cache, steps=4))
    g = masked_whole(looking(UNLIKE, cache=cache, steps=4))
    hit = run(g)
    assert hit.report["outcome"] == "hit"
    assert hit.report["looked"] == 1.0 and "more than half of the picture" in told(hit)
    assert cost_shown(hit.report) == hit.report["step_equivalents"] == 3


def masked_whole(g: Graph) -> Graph:
    """With the whole picture given as the mask, and a match whatever the score."""
    g["lookup"]["inputs"]["threshold"] = 0.01
    g["all"] = node("SolidMask", value=1.0, width=96, height=96)
    g = masks_of(g, "mask")
    g["srd"]["inputs"]["mask"] = ["all", 0]
    return g


def test_a_fixed_k2_says_from_which_step_on_all_is_computed(run, cache, comfy_host):
    run(looking(RED, cache=cache, steps=20))
    with block_lengths() as lengths:
        hit = run(masked(looking(cache=cache, steps=20, k2=0.75), [(32, 32, 64, 64)], comfy_host, visible=0))
    kinds = "".join("F" if length == TOKENS else "S" for length in lengths[::5])
    assert kinds == "F---FS-S-S-SFS-FFFFF".replace("-", "")
    assert (hit.report["outcome"], hit.report["k2"]) == ("hit", 15)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_fixed_k2_holds_before_a_second_look_and_where_all_differs(run, cache, fraction):
    run(looking(RED, cache=cache, steps=20))
    settings = {"cache": cache, "steps": 20, "k2": fraction}
    for g in (looking(**settings), masked_whole(looking(UNLIKE, **settings))):
        hit = run(g)
        assert hit.report["outcome"] == "hit", told(hit)
        assert 0 < hit.report["k2"] <= round(20 * fraction)


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_a_fixed_k1_saves_as_many_steps_as_it_says(run, cache, fraction):
    run(looking(RED, cache=cache, steps=20))
    hit = run(looking(cache=cache, steps=20, k1=fraction))
    assert hit.report["outcome"] == "hit", told(hit)
    assert hit.report["steps_computed"] == hit.report["step_equivalents"] == 20 - round(20 * fraction)


def test_without_the_mask_node_no_token_is_left_out(run, cache):
    run(looking(RED, cache=cache, steps=20))
    with block_lengths() as lengths:
        hit = run(looking(cache=cache, steps=20))
    assert hit.report["outcome"] == "hit" and 0 < hit.report["looked"] < 1, told(hit)
    assert set(lengths) == {TOKENS} and set(hit.report["token_share"]) <= {0.0, 1.0}


# -- what a look could not see -----------------------------------------------------------------------------------


def no_look(hit, why: str) -> None:
    assert (hit.report["outcome"], hit.report["looked"]) == ("hit", None), told(hit)
    assert why in told(hit)


@pytest.mark.parametrize("other", [{"steps": 6}, {"steps": 20}, {"scheduler": "karras"}, {"shift": 1.0}])
def test_a_match_of_other_sigmas_is_not_looked_at(run, cache, other):
    """Its estimates would differ for that reason, or its picture be that of fewer steps."""
    run(looking(RED, cache=cache, steps=8))
    g = looking(cache=cache, steps=other.get("steps", 8), seed=7)
    g["sample"]["inputs"]["scheduler"] = other.get("scheduler", "simple")
    g["model"]["inputs"]["shift"] = other.get("shift", 5.0)
    result = run(g)
    assert result.report["looked"] is None
    if result.report["outcome"] == "hit":  # of a schedule with few steps at large σ, an early start saves none
        no_look(result, "over other sigmas")


def test_a_conditioning_of_a_part_of_the_schedule_is_not_looked_at(run, cache):
    """At the first step nothing of it would show."""
    run(looking(RED, cache=cache, steps=8))
    g = looking(cache=cache, steps=8, seed=7)
    g["late"] = node("ConditioningSetTimestepRange", conditioning=["positive", 0], start=0.3, end=1.0)
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["late", 0]
    no_look(run(g), "a part of the schedule only")


def test_another_negative_prompt_is_not_looked_at(run, cache):
    """Both estimates must have the same one, since the difference is divided by CFG."""
    run(looking(RED, cache=cache, steps=8, cfg=3.0))
    g = looking(cache=cache, steps=8, cfg=3.0, seed=7)
    g["negative"]["inputs"]["text"] = "a blue square"
    no_look(run(g), "another negative prompt")


@pytest.mark.parametrize(("there", "here"), [(1.0, 0.5), (3.0, 3.5)])
def test_another_cfg_is_not_looked_at(run, cache, there, here):
    run(looking(RED, cache=cache, steps=8, cfg=there))
    no_look(run(looking(cache=cache, steps=8, cfg=here, seed=7)), f"made with CFG [{there}]")


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_a_step_cache_is_not_combined_with_skipped_steps(run, cache, kind):
    run(looking(RED, cache=cache, steps=8))
    g = looking(cache=cache, steps=8, seed=7)
    settings = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    g["cached"] = node(kind, model=["stage3", 0], **settings)
    g["sample"]["inputs"]["model"] = ["cached", 0]
    no_look(run(g), "a step cache")


def test_a_conditioning_of_an_area_leaves_no_token_out(run, cache, comfy_host):
    def request(prompt: str) -> Graph:
        g = masked(looking(prompt, cache=cache, steps=4), [(32, 32, 64, 64)], comfy_host, visible=0)
        area = {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "temporal": 1.0, "z": 0.0, "strength": 1.0}
        g["area"] = node("ConditioningSetAreaPercentageVideo", conditioning=["positive", 0], **area)
        g["both"] = node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["area", 0])
        for name in ("lookup", "sample"):
            g[name]["inputs"]["positive"] = ["both", 0]
        return g

    run(request(RED))
    hit = run(request(GREEN))
    assert hit.report["outcome"] == "hit", told(hit)
    assert hit.report["looked"] is not None and set(hit.report["token_share"]) <= {0.0, 1.0}
    assert "a part of the picture only" in told(hit)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("precision", ["small", "near-lossless", "fp16"])
def test_what_a_compressed_source_has_lost_is_no_difference(run, cache, precision, cfg, pack_module, monkeypatch):
    """The same request but for its sampler: with sources kept in fp32 neither look sees anything.

    It would be sampled in full, to show that sampler; here it may look.
    """
    monkeypatch.setattr(pack_module("chorus.comfy.techniques.look_and_join"), "sampled_otherwise", lambda *_: None)
    run(looking(RED, cache=cache, steps=20, cfg=cfg, precision=precision))
    hit = run(looking(RED, cache=cache, steps=20, cfg=cfg, precision=precision, sampler="res_multistep"))
    assert hit.report["outcome"] == "hit", told(hit)
    assert hit.report["looked"] < 0.02


@pytest.mark.parametrize(("steps", "kinds"), [(4, "FF"), (6, "FFF"), (16, "-FS-SFFF")])
def test_a_second_sampler_of_other_steps_goes_on_by_the_number_that_is_left(run, cache, comfy_host, steps, kinds):
    """Behind 10 steps of 20, of a course that knew nothing of it: of a whole of 12, 13 and 18 steps."""
    run(looking(RED, cache=cache, steps=20))
    g = masked(looking(cache=cache, steps=20, seed=7), [(32, 32, 64, 64)], comfy_host, visible=0)
    g = split_in_two(g, 10)
    g["sample"]["inputs"] |= {"steps": steps, "start_at_step": steps // 2}
    with block_lengths() as lengths:
        hit = run(g)
    assert hit.report["outcome"] == "hit", told(hit)
    seen = "".join("F" if length == TOKENS else "S" for length in lengths[::5])
    assert seen == "FFS-S-S".replace("-", "") + kinds.replace("-", "")


@pytest.mark.parametrize("scheduler", ["beta", "kl_optimal", "linear_quadratic", "sgm_uniform"])
def test_two_samplers_save_about_as_much_as_one_with_every_scheduler(run, cache, comfy_host, scheduler):
    """Only the last sampler knows how many steps there are: a part of these schedules does not tell it."""

    def request(prompt: str, seed: int) -> Graph:
        g = masked(looking(prompt, cache=cache, steps=20, seed=seed), [(32, 32, 64, 64)], comfy_host, visible=0)
        g["sample"]["inputs"]["scheduler"] = scheduler
        return g

    run(request(RED, 5))
    whole, split = run(request(GREEN, 6)), run(split_in_two(request(GREEN, 7), 12))
    assert [result.report["outcome"] for result in (whole, split)] == ["hit", "hit"], told(whole) + told(split)
    assert split.report["steps_computed"] <= whole.report["steps_computed"] + 3
    assert difference(split.latent, whole.latent) < 0.12


def test_three_samplers_share_one_look(run, cache, comfy_host):
    def request() -> Graph:
        return masked(looking(cache=cache, steps=20), [(32, 32, 64, 64)], comfy_host, visible=0)

    run(looking(RED, cache=cache, steps=20))
    whole = run(request())
    with block_lengths() as lengths:
        split = run(split_at(request(), 7, 13))
    assert split.report["outcome"] == "hit", told(split)
    assert "".join("F" if length == TOKENS else "S" for length in lengths[::5]) == "FFSFSSFFSFFF"
    assert split.report["steps_computed"] == 12 and split.report["steps"] == 20
    assert cost_shown(split.report) == pytest.approx(split.report["step_equivalents"], abs=1e-3)
    assert difference(split.latent, whole.latent) < 0.1


def test_a_limit_that_leaves_nothing_to_save_takes_no_noise_of_the_match(run, cache):
    run(looking(RED, cache=cache, steps=4))
    g = looking(cache=cache, steps=4, seed=7)
    g["stage1"]["inputs"]["maximum"] = 0.1
    result = run(g)
    assert (result.report["outcome"], result.report["steps_computed"]) == ("miss", 4)


@pytest.mark.parametrize("method", ["look and join", "early start"])
def test_a_function_of_the_whole_estimate_leaves_no_token_out(run, cache, comfy_host, method):
    """RescaleCFG measures the whole picture, so each part of it must be computed."""

    def request(prompt: str) -> Graph:
        settings = {} if method == "look and join" else {"k1": 0.25, "k2": 0.75}
        g = looking(prompt, cache=cache, steps=8, cfg=4.0, **settings)
        g["stage1"]["inputs"]["method"] = method
        g["rescaled"] = node("RescaleCFG", model=["unet", 0], multiplier=0.7)
        g["model"]["inputs"]["model"] = ["rescaled", 0]
        return masked(g, [(32, 32, 64, 64)], comfy_host, visible=0)

    run(request(RED))
    with block_lengths() as lengths:
        hit = run(request(GREEN))
    assert hit.report["outcome"] == "hit", told(hit)
    assert set(lengths) == {TOKENS}
    assert "another node patches" in told(hit)
