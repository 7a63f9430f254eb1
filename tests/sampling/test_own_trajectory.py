"""Reuse of one's own trajectory gives what the uninterrupted run gives."""

import pytest
import torch

from .conftest import difference
from .graphs import graph, plain

STEPS = 8


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_euler_resumed_at_every_k1_equals_the_uninterrupted_run(run, cache, cfg):
    cold = run(graph(cache=cache, cfg=cfg, k1=0.0))
    assert cold.report["outcome"] == "miss"
    for k1 in range(1, STEPS):
        resumed = run(graph(cache=cache, cfg=cfg, k1=k1 / STEPS))
        assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", k1)
        assert resumed.report["steps_computed"] == STEPS - k1
        assert difference(resumed.latent, cold.latent) < 1e-5


def test_a_cold_run_is_what_comfyui_makes_without_chorus(run, cache):
    g = graph(cache=cache, cfg=3.0)
    assert torch.equal(run(g).latent, run(plain(g)).latent)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "res_multistep", "uni_pc"])
def test_samplers_with_a_memory_lose_little_by_resuming(run, cache, sampler):
    cold = run(graph(cache=cache, sampler=sampler, steps=20, k1=0.0))
    resumed = run(graph(cache=cache, sampler=sampler, steps=20, k1=0.25))
    assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", 5)
    assert difference(resumed.latent, cold.latent) < 0.05


@pytest.mark.parametrize("sampler", ["lcm", "euler_ancestral"])
def test_samplers_that_draw_noise_resume_from_the_kept_state_and_say_so(run, cache, sampler):
    cold = run(graph(cache=cache, sampler=sampler, k1=0.0))
    resumed = run(graph(cache=cache, sampler=sampler, k1=3 / STEPS))
    assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", 3)
    assert "draws noise" in " ".join(resumed.report["notes"])
    assert 0.7 < float(resumed.latent.std() / cold.latent.std()) < 1.4  # a video, not noise and not grey


def test_states_of_a_sampler_that_draws_noise_serve_only_their_own_sigma(run, cache):
    run(graph(cache=cache, sampler="lcm", steps=8, k1=0.0))
    resumed = run(graph(cache=cache, sampler="euler", steps=6, k1=0.5))  # σ of 3/6 is that of 4/8
    assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", 3)
    lowered = run(graph(cache=cache, sampler="euler", steps=6, k1=0.7))  # σ of 4/6 is nobody's
    assert lowered.report["k1"] == 3
    assert "K1 lowered from 4 to 3" in " ".join(lowered.report["notes"])


def test_another_number_of_steps_and_another_scheduler_share_by_sigma(run, cache):
    cold = run(graph(cache=cache, steps=20, k1=0.0))
    fewer = run(graph(cache=cache, steps=4, k1=0.25))
    assert (fewer.report["outcome"], fewer.report["k1"], fewer.report["steps_computed"]) == ("hit", 1, 3)
    g = graph(cache=cache, steps=10, k1=0.3)
    g["sample"]["inputs"]["scheduler"] = "normal"
    other = run(g)
    assert other.report["outcome"] == "hit"
    assert difference(other.latent, cold.latent) < 0.5
