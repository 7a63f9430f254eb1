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


def test_a_state_taken_early_covers_the_whole_way_in_fewer_steps(run, cache, comfy_host):
    """σ of the model calls: from `start` to the end, N − K1 of them, evenly over the schedule."""
    import comfy.samplers

    run(graph(cache=cache, steps=20, k1=0.0))
    seen = []
    g = graph("a green circle moving right over a navy background", cache=cache, steps=20, k1=0.5, start=0.1)
    inner = comfy.samplers.CFGGuider.predict_noise

    def watched(self, x, timestep, *args, **kwargs):
        seen.append(float(timestep.flatten()[0]))
        return inner(self, x, timestep, *args, **kwargs)

    comfy.samplers.CFGGuider.predict_noise = watched
    try:
        hit = run(g)
    finally:
        comfy.samplers.CFGGuider.predict_noise = inner
    assert (hit.report["outcome"], hit.report["k1"], hit.report["steps_computed"]) == ("hit", 10, 10)
    start = 5 * 0.9 / (1 + 4 * 0.9)  # shift 5 at 10 % of the schedule
    assert len(seen) == 10 and seen[0] == pytest.approx(start, abs=1e-3) and seen == sorted(seen, reverse=True)
    levels = [s / (5 - 4 * s) for s in seen]  # the shift undone: even steps
    steps = [a - b for a, b in zip(levels, [*levels[1:], 0.0], strict=True)]
    assert max(steps) < 1.2 * min(steps)


def test_the_earlier_the_state_the_less_of_the_source_is_left(run, cache):
    source = run(graph(cache=cache, steps=20, k1=0.0))
    green = "a green circle moving right over a navy background"
    cold = run(graph(green, cache=f"{cache}-b", steps=20, seed=77, k1=0.0))
    away = [
        difference(run(graph(green, cache=cache, steps=20, seed=77, k1=0.5, start=s)).latent, source.latent)
        for s in (0.02, 0.2, 1.0)
    ]
    assert away == sorted(away, reverse=True) and away[-1] < difference(cold.latent, source.latent)
