"""Latents with a noise mask: what the mask keeps belongs to the request and is never edited; the rest is reused.

The small Wan is shown what is kept under the noise of its step, as the host does with most models. In tests/families/
models are shown it without noise.
"""

from __future__ import annotations

import copy

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, UNLIKE, Graph, graph, node, plain
from sampling.test_hosts import split_in_two
from sampling.test_regions import masked

from . import odd_nodes, test_look_and_join
from .conftest import told
from .sampling_reference import block_lengths, evaluations, resumed, sampler_calls, state_at
from .test_global_changes import EVALUATED, over_fewer_steps  # noqa: F401 - a fixture
from .test_look_and_join import (
    OWN_SEED,
    SOURCE_SEED,
    TOKENS,
    comfy_latent,
    joined_by_hook,
    kept_of,
    looking,
    looks_seen,
    rim_of,
    watched,  # noqa: F401 - a fixture
    with_mixed_keys,
    without_context,
)
from .test_look_reports import masked_whole

CELLS = (4, 12, 12)
NOTHING = torch.zeros(CELLS, dtype=torch.bool)
FRAME, SIDES = NOTHING.clone(), NOTHING.clone()
FRAME[0] = True  # the first frame is kept, as a start image is
SIDES[:, :, :5] = SIDES[2, 6:] = True  # five columns and half a frame: one column of tokens is half kept
KEPT = {"frame": FRAME, "sides": SIDES, "nothing": NOTHING}
each_mask = pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)


def picture(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, *CELLS, generator=torch.Generator().manual_seed(seed))


def keeping(g: Graph, kept: torch.Tensor, samples: torch.Tensor | None = None, **mask: torch.Tensor) -> Graph:
    """The graph on a latent of which a noise mask keeps these cells, [T, H, W] bool; mask: another one instead."""
    given = {"samples": picture() if samples is None else samples, "noise_mask": (~kept).float()[None, None]}
    odd_nodes.given["latent"] = given | mask
    g["latent"] = node("FixedLatent", name="latent")
    return g


def token_mask(kept: torch.Tensor) -> torch.Tensor:
    """[4, 6, 6] bool: the tokens all of whose 2 × 2 cells are kept."""
    return kept.unflatten(2, (6, 2)).unflatten(1, (6, 2)).all(4).all(2)


@each_mask
@pytest.mark.parametrize("stages", [{}, {"masks": True, "tgaa": True}], ids=["stage 1", "all stages"])
def test_without_a_hit_every_bit_is_that_of_the_graph_without_chorus(as_without_chorus, cache, kept, stages):
    cold = as_without_chorus(keeping(graph(RED, cache=cache, cfg=3.0, **stages), kept))
    assert cold.report["outcome"] == "miss", told(cold)
    again = as_without_chorus(keeping(graph(RED, cache=cache, cfg=3.0, **stages), kept))
    assert again.report["outcome"] == "identical"


@each_mask
@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpmpp_2m"])
def test_an_early_start_goes_on_from_the_sources_state_as_the_host_would(run, cache, kept, sampler):
    settings = {"cache": cache, "sampler": sampler}
    with evaluations() as seen, sampler_calls() as calls:
        red = run(keeping(graph(RED, **settings, k1=0.0), kept))
    hit = run(keeping(graph(GREEN, **settings, k1=0.5), kept))
    assert (hit.report["outcome"], hit.report["steps_computed"]) == ("hit", 4)
    sigma = calls[0][4]
    noise = state_at(seen, sigma) - (1.0 - sigma) * comfy_latent(picture())  # the host adds the latent's share
    reference = run(resumed(keeping(graph(GREEN, **settings), kept), noise, calls[0][4:]))
    assert difference(hit.latent, reference.latent) < 1e-4
    assert difference(red.latent, reference.latent) > 0.05
    # What is kept comes out of uni_pc a little changed, with Chorus and without it.
    assert torch.allclose(hit.latent[..., kept], reference.latent[..., kept], atol=1e-5)
    assert torch.allclose(hit.latent[..., kept], picture()[..., kept], atol=2e-2 if sampler == "uni_pc" else 1e-5)


@pytest.mark.parametrize("kept", [FRAME, SIDES], ids=["frame", "sides"])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_an_early_start_shows_what_is_kept_under_the_own_noise(run, cache, kept, sampler):
    """States of precision small are coarse, and those of a sampler that draws noise are of that noise."""
    settings = {"cache": cache, "sampler": sampler, "precision": "small"}
    with evaluations() as seen:
        run(keeping(graph(RED, **settings), kept))
    noise = seen[0][1]
    with evaluations() as seen:
        hit = run(keeping(graph(GREEN, **settings, k1=0.5), kept))
    assert hit.report["outcome"] == "hit"
    for sigma, x in seen:
        wanted = (sigma * noise + (1.0 - sigma) * comfy_latent(picture()))[..., kept]
        assert torch.allclose(x[..., kept], wanted, atol=1e-5)
    assert torch.allclose(hit.latent[..., kept], picture()[..., kept], atol=1e-5)


@each_mask
@pytest.mark.parametrize(("sampler", "first"), [("euler", 1.0), ("uni_pc", 1.0), ("euler", 0.9995)])
def test_a_look_after_which_everything_is_computed_is_the_run_in_full(
    run, cache, kept, sampler, first, pack_module, monkeypatch
):
    """The very same text under another seed, from an entry that was chosen by hand. first: σ of the first step."""
    import comfy.samplers

    calculate = comfy.samplers.calculate_sigmas
    monkeypatch.setattr(comfy.samplers, "calculate_sigmas", lambda *args: first * calculate(*args))
    cold = run(keeping(looking(RED, cache=cache, sampler=sampler), kept))
    course, technique = (pack_module(f"chorus.{name}") for name in ("reuse.course", "comfy.techniques.look_and_join"))
    monkeypatch.setattr(technique.LookAndJoin, "_settled", lambda self, past: course.Course("F" * 8))
    monkeypatch.setattr(pack_module("chorus.reuse.join").Cut, "__call__", lambda self, apart: apart >= 0.0)
    g = keeping(looking(RED, cache=cache, sampler=sampler, seed=OWN_SEED), kept)
    g["lookup"]["inputs"]["source"] = cold.summary.split("being stored as ")[1].split(",")[0]
    hit = run(g)
    assert (hit.report["outcome"], hit.report["steps_computed"]) == ("hit", 8)
    assert difference(hit.latent, cold.latent) < 1e-6
    assert torch.equal(hit.latent[..., kept], cold.latent[..., kept])


def hook_of(kept: torch.Tensor):
    """`rim_of` where what is kept has no rim."""
    return lambda cells: rim_of(cells | kept)


@pytest.mark.parametrize(
    ("name", "steps", "cfg", "sampler"),
    [*((name, 4, 1.0, "euler") for name in KEPT), ("sides", 20, 3.0, "euler"), ("frame", 8, 1.0, "uni_pc")],
)
def test_a_hit_is_the_hosts_run_with_joined_estimates(run, cache, name, steps, cfg, sampler, pack_module, monkeypatch):
    kept = KEPT[name]
    # The small Wan was not made for images: with a first frame, too, its first estimate differs a little everywhere.
    monkeypatch.setattr(pack_module("chorus.reuse.join").Cut, "moves_everything", lambda self, apart: False)
    settings = {"cache": cache, "steps": steps, "cfg": cfg, "sampler": sampler}
    monkeypatch.setattr(test_look_and_join, "rim_of", hook_of(kept))
    with evaluations() as seen:
        red = run(without_context(keeping(looking(RED, **settings), kept)))
    with sampler_calls() as calls:
        hit = run(without_context(keeping(looking(seed=OWN_SEED, **settings), kept)))
    assert hit.report["outcome"] == "hit"
    kinds, second_look = {4: ("F-FF", 0), 8: ("F---FFFF", 0), 20: ("F---F---F---FFFFFFFF", 4)}[steps]
    assert hit.report["steps_computed"] == kinds.count("F")
    for mask in looks_seen:
        assert mask.any() and not bool((mask & token_mask(kept)).any())
    source = kept_of(seen, red.latent, second_look, calls[0])
    g = keeping(looking(**settings), kept)
    reference = run(joined_by_hook(g, SOURCE_SEED, source, looks_seen, kinds, calls[0], second_look))
    assert difference(hit.latent, reference.latent) < 1e-4
    assert difference(red.latent, reference.latent) > 0.05
    assert torch.equal(hit.latent[..., kept], red.latent[..., kept])


@pytest.mark.parametrize(
    ("name", "steps", "cfg", "kinds", "second_look"),
    [
        ("frame", 4, 1.0, "FS-F", 0),
        ("sides", 4, 1.0, "FS-F", 0),
        ("sides", 20, 3.0, "F---FS-S-S-SFS-S-FFF", 4),
    ],
)
def test_selective_steps_leave_out_what_is_kept_and_see_it_by_its_keys_and_values(
    run, cache, comfy_host, name, steps, cfg, kinds, second_look, monkeypatch
):
    kept = KEPT[name]
    settings = {"cache": cache, "steps": steps, "cfg": cfg}
    monkeypatch.setattr(test_look_and_join, "rim_of", hook_of(kept))
    with evaluations() as seen:
        red = run(keeping(looking(RED, **settings), kept))
    with block_lengths() as lengths, sampler_calls() as calls:
        hit = run(masked(keeping(looking(seed=OWN_SEED, **settings), kept), [(16, 16, 80, 64)], comfy_host))
    box = torch.zeros(4, 6, 6, dtype=torch.bool)
    box[:, 1:5, 1:4] = True
    mask = box & ~token_mask(kept)
    assert torch.equal(looks_seen[-1], mask)
    inside = int(mask.sum())
    assert lengths == [length for kind in kinds for length in {"F": [TOKENS], "S": [inside], "-": []}[kind] * 5]

    def joined() -> Graph:
        source, g = kept_of(seen, red.latent, second_look, calls[0]), keeping(looking(**settings), kept)
        return joined_by_hook(g, SOURCE_SEED, source, [mask], kinds, calls[0], second_look)

    reference, blind = run(with_mixed_keys(joined(), mask, kinds)), run(joined())
    assert difference(hit.latent, reference.latent) < min(2e-3, 0.3 * difference(hit.latent, blind.latent))


def test_selective_steps_of_an_early_start_see_what_is_kept_and_do_not_edit_it(run, cache, comfy_host, pack_module):
    run(keeping(graph(RED, cache=cache), FRAME))
    with block_lengths() as lengths:
        g = masked(keeping(graph(GREEN, cache=cache, k1=0.25, k2=0.5), FRAME), [(32, 32, 64, 64)], comfy_host)
        hit = run(g)
    seen = 36 + 3 * 4  # the first frame, and 2 × 2 tokens in each other one
    assert hit.report["token_share"] == [1.0, round(seen / 144, 4)]
    assert lengths == [tokens for tokens in (144, seen, 144, 144, 144, 144) for _ in range(5)]
    assert torch.allclose(hit.latent[:, :, 0], picture()[:, :, 0], atol=1e-5)


def test_a_mask_of_what_is_kept_alone_leaves_the_steps_of_an_early_start_full(run, cache, comfy_host):
    run(keeping(graph(RED, cache=cache), SIDES))
    hit = run(masked(keeping(graph(GREEN, cache=cache, k1=0.25, k2=0.5), SIDES), [(0, 0, 96, 32)], comfy_host))
    assert (hit.report["token_share"], hit.report["steps_computed"]) == ([], 6)


def test_where_most_of_what_is_sampled_differs_nothing_is_joined(run, cache, pack_module, monkeypatch):
    """A third of the picture is sampled. All of that differs, which is less than half of the whole."""
    kept = torch.ones(CELLS, dtype=torch.bool)
    kept[:, :, 8:] = False
    monkeypatch.setattr(pack_module("chorus.reuse.join").Cut, "__call__", lambda self, apart: apart >= 0.0)
    run(keeping(looking(RED, cache=cache), kept))
    hit = run(keeping(looking(GREEN, cache=cache, seed=OWN_SEED), kept))
    assert hit.report["outcome"] == "hit" and "more than half of the picture is marked as changed" in told(hit)
    assert torch.equal(looks_seen[-1], ~token_mask(kept))


@each_mask
@pytest.mark.parametrize("steps", [4, 8])
def test_after_a_global_change_it_is_the_hosts_run_over_the_shorter_schedule(
    run,
    cache,
    kept,
    steps,
    over_fewer_steps,  # noqa: F811
):
    run(keeping(looking(RED, cache=cache, steps=steps, seed=SOURCE_SEED), kept))
    hit = run(masked_whole(keeping(looking(UNLIKE, cache=cache, steps=steps, seed=OWN_SEED), kept)))
    own = plain(keeping(looking(UNLIKE, cache=cache, steps=steps, seed=SOURCE_SEED), kept))
    reference = over_fewer_steps(own, EVALUATED[steps])
    assert hit.report["outcome"] == "hit" and hit.report["steps_computed"] == EVALUATED[steps]
    assert difference(hit.latent, reference.latent) < 1e-3


@each_mask
def test_another_latent_or_another_mask_is_a_miss_and_the_reason_names_it(run, as_without_chorus, cache, kept):
    run(keeping(looking(RED, cache=cache), kept))
    later = picture()
    later[:, :, 2:] = picture(1)[:, :, 2:]
    wider = kept.clone()
    wider[0] = wider[1, 3:6] = True
    first = "other start image" if kept[0].all() else "other start latent"
    rest = "other end image or later frames" if kept[0].all() else "other start latent"
    for mask, samples, reason in (
        (kept, picture(1), first),
        (kept, later, rest),
        (wider, picture(), "other noise mask"),
    ):
        missed = as_without_chorus(keeping(looking(cache=cache, mode="read only"), mask, samples))
        assert missed.report["outcome"] == "miss" and reason in told(missed)


def test_a_latent_with_a_noise_mask_and_one_without_are_not_the_same(run, as_without_chorus, cache):
    run(keeping(looking(RED, cache=cache), FRAME))
    g = looking(cache=cache)
    odd_nodes.given["latent"] = {"samples": picture()}
    g["latent"] = node("FixedLatent", name="latent")
    missed = as_without_chorus(g)
    assert missed.report["outcome"] == "miss" and "other task" in told(missed)


SOFT = torch.full((1, 1, *CELLS), 0.5)
PER_ITEM = torch.cat([FRAME[None, None], ~FRAME[None, None]]).float()
PER_CHANNEL = torch.ones(1, 16, *CELLS)
PER_CHANNEL[:, :8, 0] = 0.0


@pytest.mark.parametrize(
    ("samples", "mask", "reason"),
    [
        (picture(), SOFT, "other values than 0 and 1"),
        (picture(), 2.0 * SOFT - 2.0 * FRAME, "other values than 0 and 1"),
        (picture(batch=2), PER_ITEM, "for all channels and the whole batch"),
        (picture(), PER_CHANNEL, "for all channels and the whole batch"),
        (picture(), torch.zeros(1, 1, *CELLS), "keeps everything"),
    ],
    ids=["soft", "negative", "by item", "by channel", "everything"],
)
def test_a_mask_that_cannot_be_served_is_told_by_the_look_up(as_without_chorus, cache, samples, mask, reason):
    for prompt in (RED, GREEN):
        left = as_without_chorus(keeping(graph(prompt, cache=cache), FRAME, samples, noise_mask=mask))
        assert left.report["outcome"] == "bypassed" and reason in told(left)


def differential(g: Graph) -> Graph:
    g["changing"] = node("DifferentialDiffusion", model=["unet", 0], strength=1.0)
    g["model"]["inputs"]["model"] = ["changing", 0]
    return g


def by_ddim(g: Graph) -> Graph:
    g["sample"]["inputs"]["sampler_name"] = "ddim"
    return g


def unmasked_before(g: Graph) -> Graph:
    """The look-up is given the latent before another node sets the mask."""
    g["empty"] = node("EmptyHunyuanLatentVideo", width=96, height=96, length=13, batch_size=1)
    g["half"] = node("SolidMask", value=1.0, width=48, height=96)
    g["latent"] = node("SetLatentNoiseMask", samples=["empty", 0], mask=["half", 0])
    g["lookup"]["inputs"]["latent"] = ["empty", 0]
    return g


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (differential, "another node changes it"),
        (by_ddim, "draws noise of its own"),
        (unmasked_before, "another noise mask than the latent given to ChorusCacheLookup"),
    ],
    ids=["differential diffusion", "ddim", "another mask"],
)
def test_a_sampling_that_cannot_be_served_is_told_by_the_store(as_without_chorus, cache, change, reason):
    for prompt in (RED, GREEN):
        left = as_without_chorus(change(keeping(graph(prompt, cache=cache), SIDES)))
        assert left.report["outcome"] == "bypassed" and reason in told(left)


def test_two_samplers_are_sampled_without_chorus(run, cache):
    """The host gives the second one the noisy latent of the first one to keep."""

    def without(g: Graph) -> Graph:
        kept = {name: n for name, n in g.items() if not n["class_type"].startswith(("Chorus", "TGAA"))}
        for n in (kept["high"], kept["sample"]):
            n["inputs"]["model"] = ["model", 0]
        return kept | {"keep": node("PreviewAny", source=["sample", 0])}

    for prompt in (RED, GREEN):
        g = split_in_two(keeping(graph(prompt, cache=cache), SIDES), 4)
        expected = run(without(copy.deepcopy(g))).latent
        left = run(g)
        assert left.report["outcome"] == "bypassed" and "two samplers share the schedule" in told(left)
        assert torch.equal(left.latent, expected)
