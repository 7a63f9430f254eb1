"""Hits with every sampler of the host, compared with the host's own sampler started from the same state."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, Graph, graph, node, plain
from sampling.test_regions import masked

from .conftest import told
from .sampling_reference import evaluations, resumed, sampler_calls, state_at

NOISE_FREE = (
    "euler",
    "euler_cfg_pp",
    "heun",
    "heunpp2",
    "exp_heun_2_x0",
    "dpm_2",
    "lms",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
)
OWN_STEPS = ("dpm_fast", "dpm_adaptive")
DRAW_NOISE = re.compile("ancestral|sde|ddpm|lcm|seeds|sa_solver")
ALL_BUT_A_CORNER = [(0, 0, 96, 80), (0, 80, 80, 96)]  # pixels; the corner is one of 6 × 6 tokens


@dataclass(frozen=True)
class Source:
    """A cold run of RED: its cache, its schedule, every evaluation (σ, x), and its latent."""

    cache: str
    sigmas: list[float]
    seen: list[tuple[float, torch.Tensor]]
    latent: torch.Tensor


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    return {}


@pytest.fixture
def source(run, cache, sources):
    """`source(sampler)`: one cold run a sampler for all tests of this module."""

    def made(sampler: str) -> Source:
        if sampler not in sources:
            with evaluations() as seen, sampler_calls() as calls:
                cold = run(graph(RED, cache=cache, sampler=sampler, k1=0.0))
            assert cold.report["outcome"] == "miss"
            sources[sampler] = Source(cache, calls[0], seen, cold.latent)
        return sources[sampler]

    return made


def test_each_sampler_of_the_host_is_tried_here():
    import comfy.samplers

    rest = [name for name in comfy.samplers.SAMPLER_NAMES if not DRAW_NOISE.search(name)]
    assert sorted(rest) == sorted([*NOISE_FREE, *OWN_STEPS])


@pytest.mark.parametrize("sampler", NOISE_FREE)
def test_a_hit_goes_on_from_the_sources_state_as_the_host_would(run, source, sampler):
    red = source(sampler)
    with sampler_calls() as calls:
        hit = run(graph(GREEN, cache=red.cache, sampler=sampler, k1=0.25))
    assert (hit.report["outcome"], hit.report["k1"]) == ("hit", 2)
    assert len(calls) == 1
    reference = run(resumed(graph(GREEN, cache="", sampler=sampler), state_at(red.seen, red.sigmas[2]), red.sigmas[2:]))
    # Kept as fp32 clean components, the states come back to 2e-6. The prompts' own videos are 0.3 apart.
    assert difference(hit.latent, reference.latent) < 1e-3
    assert difference(red.latent, reference.latent) > 0.05


@pytest.mark.parametrize("k2", [0.75, 1.0])
@pytest.mark.parametrize("sampler", [name for name in NOISE_FREE if not name.endswith("cfg_pp")])
def test_selective_steps_that_compute_all_but_a_corner_are_nearly_full_ones(run, source, comfy_host, sampler, k2):
    """The same request from its own state, so that only the corner's older estimate makes a difference.

    That estimate, put in by the host's own hook in one call of the sampler, moves the rest of the picture by 0.0006 to
    0.0025. A sampler that is started anew at each step is off by 0.025 to 0.16.
    """
    red = source(sampler)
    g = masked(graph(RED, cache=red.cache, sampler=sampler, k1=0.25, k2=k2), ALL_BUT_A_CORNER, comfy_host, visible=1)
    hit = run(g)
    assert (hit.report["outcome"], hit.report["k1"], hit.report["k2"]) == ("hit", 2, round(8 * k2))
    begun_anew = run(
        resumed(graph(RED, cache="", sampler=sampler), state_at(red.seen, red.sigmas[2]), red.sigmas[2:])
    ).latent
    inside = (..., slice(0, 8), slice(0, 8))
    off = min(difference(hit.latent[inside], full[inside]) for full in (begun_anew, red.latent))
    assert off < 0.008


@pytest.mark.parametrize("sampler", [name for name in NOISE_FREE if name.endswith("cfg_pp")])
def test_samplers_that_read_the_estimate_without_cfg_get_full_steps(run, source, comfy_host, sampler):
    red = source(sampler)
    hit = run(
        masked(
            graph(GREEN, cache=red.cache, sampler=sampler, k1=0.25, k2=0.75), [(0, 0, 64, 64)], comfy_host, visible=1
        )
    )
    assert (hit.report["outcome"], hit.report["k1"], hit.report["k2"]) == ("hit", 2, 2)
    assert hit.report["step_equivalents"] == 6 and "without CFG" in " ".join(hit.report["notes"])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "lms"])
def test_a_schedule_with_selective_steps_is_one_call_of_the_sampler(run, source, comfy_host, sampler):
    red = source(sampler)
    with sampler_calls() as calls:
        hit = run(
            masked(graph(GREEN, cache=red.cache, sampler=sampler, k1=0.25, k2=0.75), [(0, 0, 64, 64)], comfy_host)
        )
    assert (hit.report["outcome"], hit.report["k1"], hit.report["k2"]) == ("hit", 2, 6)
    assert len(calls) == 1
    assert calls[0] == pytest.approx(red.sigmas[2:])


@pytest.mark.parametrize("sampler", NOISE_FREE)
def test_a_hit_with_one_step_left_is_a_video(run, source, cache, sampler):
    """uni_pc and uni_pc_bh2 do not denoise when they are called for one step: cosine 0.81, deviation 0.38 of the full.

    All others give a cosine below 0.05 and a deviation of 0.96 to 1.11 of the full run's.
    """
    red = source(sampler)
    with evaluations() as seen:
        full = run(plain(graph(GREEN, cache="", sampler=sampler, steps=4))).latent
    hit = run(graph(GREEN, cache=red.cache, sampler=sampler, steps=4, k1=0.75))
    noise = seen[0][1]
    cosine = float((hit.latent * noise).sum() / hit.latent.norm() / noise.norm())
    assert abs(cosine) < 0.15
    assert 0.8 < float(hit.latent.std() / full.std()) < 1.25


@pytest.mark.parametrize("sampler", OWN_STEPS)
def test_samplers_that_choose_their_own_steps_are_left_alone(as_without_chorus, cache, sampler):
    cold = as_without_chorus(graph(RED, cache=cache, sampler=sampler))
    again = as_without_chorus(graph(GREEN, cache=cache, sampler=sampler, masks=True, tgaa=True))
    assert cold.report["outcome"] == again.report["outcome"] == "bypassed"
    assert again.report["reason"] in again.summary


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm", "er_sde"])
def test_the_largest_seeds_serve_samplers_that_draw_noise(run, comfy_host, cache, sampler):
    largest = 2**64 - 2
    red = graph(RED, cache=cache, sampler=sampler, seed=largest)
    assert torch.equal(run(red).latent, run(plain(red)).latent)

    def green() -> Graph:
        return graph(GREEN, cache=cache, sampler=sampler, seed=largest, k1=0.5, k2=0.75)

    full = run(plain(green())).latent
    for g in (green(), masked(green(), [(0, 0, 64, 64)], comfy_host)):
        hit = run(g)
        assert hit.report["outcome"] == "hit" and hit.report["k1"] == 4
        assert 0.7 < float(hit.latent.std() / full.std()) < 1.4


# -- samplers that have a node of their own -----------------------------------------------------------------------


def custom(g: Graph, **sampler) -> Graph:
    """The graph sampled by SamplerCustom with a sampler's own node."""
    asked = g["sample"]["inputs"]
    g["sampler"] = node(**sampler)
    g["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=asked["steps"], denoise=1.0)
    g["sample"] = node(
        "SamplerCustom",
        model=asked["model"],
        add_noise=True,
        noise_seed=asked["seed"],
        cfg=asked["cfg"],
        positive=asked["positive"],
        negative=asked["negative"],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
    )
    return g


def custom_plain(g: Graph) -> Graph:
    kept = {name: n for name, n in g.items() if not n["class_type"].startswith(("Chorus", "TGAA"))}
    kept["sample"] = node("SamplerCustom", **{**g["sample"]["inputs"], "model": ["model", 0]})
    kept["keep"] = node("SaveLatent", samples=["sample", 0], filename_prefix="plain")
    return kept


@pytest.mark.parametrize("scale_steps", [-1, 1])
def test_a_sampler_that_enlarges_the_latent_is_left_alone(run, cache, scale_steps):
    def upscaled(prompt: str, name: str) -> Graph:
        g = graph(prompt, cache=name, masks=True, tgaa=True)
        ways = {"scale_ratio": 2.0, "scale_steps": scale_steps, "upscale_method": "bislerp"}
        return custom(g, class_type="SamplerLCMUpscale", **ways)

    def left_alone(g: Graph) -> None:
        expected = run(custom_plain(g)).latent
        result = run(g)
        assert result.latent.shape == expected.shape == (1, 16, 4, 24, 24) and torch.equal(result.latent, expected)
        assert result.report["outcome"] in ("bypassed", "miss")

    run(graph(RED, cache=cache))
    left_alone(upscaled(GREEN, cache))  # with a source of the small size
    left_alone(upscaled(RED, f"{cache}-b"))
    ordinary = graph(GREEN, cache=f"{cache}-b", masks=True, tgaa=True)
    expected = run(plain(ordinary)).latent
    assert torch.equal(run(ordinary).latent, expected)  # what that left in the cache is nobody's source


@pytest.fixture(scope="module")
def autoregressive(comfy_host) -> str:
    """The small Wan under the configuration of a model that makes one block of frames after the other."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder = comfy_host.base / "models" / "diffusion_models"
    original = folder / "small_wan_t2v.safetensors"
    with safe_open(original, "pt") as file:
        metadata = file.metadata() or {}
    config = json.loads(metadata.get("config", "{}"))
    config["transformer"] = {**config.get("transformer", {}), "causal_ar": True}
    save_file(load_file(original), folder / "causal.safetensors", {**metadata, "config": json.dumps(config)})
    return "causal.safetensors"


def test_a_sampler_of_block_after_block_is_left_alone(run, cache, autoregressive):
    def blocks(prompt: str) -> Graph:
        g = graph(prompt, cache=cache, masks=True, tgaa=True, k1=0.5)
        g["unet"]["inputs"]["unet_name"] = autoregressive
        return custom(g, class_type="SamplerARVideo", num_frame_per_block=1)

    for prompt in (RED, GREEN):
        expected = run(custom_plain(blocks(prompt))).latent
        result = run(blocks(prompt))
        assert torch.equal(result.latent, expected)
    assert result.report["outcome"] == "bypassed" and result.report["reason"] in told(result)
