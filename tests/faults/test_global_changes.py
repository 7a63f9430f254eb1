"""Where more than half of the picture changes, a hit goes on as a run of fewer steps, under the source's noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import RED, UNLIKE, Graph, plain
from sampling.test_hosts import split_in_two
from sampling.test_regions import masked

from .conftest import told
from .sampling_reference import evaluations
from .test_look_and_join import OWN_SEED, SOURCE_SEED, looking
from .test_look_reports import masked_whole
from .test_samplers import NOISE_FREE

EVALUATED = {4: 3, 8: 6, 20: 12}


def changed(cache: str, **settings) -> Graph:
    return masked_whole(looking(UNLIKE, cache=cache, seed=OWN_SEED, **settings))


def shorter(sigmas: torch.Tensor, steps: int) -> torch.Tensor:
    """The same way in fewer steps, spaced as it is."""
    places = np.linspace(0, len(sigmas) - 1, steps + 1)
    return torch.from_numpy(np.interp(places, range(len(sigmas)), sigmas.double().numpy())).float()


@pytest.fixture
def over_fewer_steps(run, monkeypatch):
    """`over_fewer_steps(graph, n)`: the host's own run over the graph's schedule in n steps."""
    import comfy.samplers

    calculate = comfy.samplers.calculate_sigmas

    def made(g: Graph, steps: int):
        with monkeypatch.context() as patch:
            patch.setattr(comfy.samplers, "calculate_sigmas", lambda *args: shorter(calculate(*args), steps))
            return run(g)

    return made


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("steps", EVALUATED)
def test_with_euler_it_is_the_hosts_run_over_the_shorter_schedule(run, cache, over_fewer_steps, steps, cfg):
    settings = {"steps": steps, "cfg": cfg}
    run(looking(RED, cache=cache, seed=SOURCE_SEED, **settings))
    with evaluations() as seen:
        hit = run(changed(cache, **settings))
    with evaluations() as wanted:
        reference = over_fewer_steps(
            plain(looking(UNLIKE, cache=cache, seed=SOURCE_SEED, **settings)), EVALUATED[steps]
        )
    assert hit.report["outcome"] == "hit" and "more than half" in told(hit)
    assert hit.report["step_equivalents"] == hit.report["steps_computed"] == EVALUATED[steps]
    asked = sorted({round(sigma, 5) for sigma, _ in seen}, reverse=True)
    assert asked == pytest.approx(sorted({round(sigma, 5) for sigma, _ in wanted}, reverse=True), abs=1e-4)
    assert difference(hit.latent, reference.latent) < 1e-3
    full = run(plain(looking(UNLIKE, cache=cache, seed=SOURCE_SEED, **settings)))
    assert difference(hit.latent, full.latent) > 0.01, "fewer steps make a difference here"


@pytest.mark.parametrize("sampler", [name for name in NOISE_FREE if not name.endswith("_cfg_pp")])
def test_with_any_sampler_it_is_about_as_near_to_the_run_in_full_as_euler_with_so_few_steps(
    run, cache, over_fewer_steps, sampler
):
    settings = {"steps": 20, "sampler": sampler}
    run(looking(RED, cache=cache, seed=SOURCE_SEED, **settings))
    hit = run(changed(cache, **settings))
    full = run(plain(looking(UNLIKE, cache=cache, seed=SOURCE_SEED, **settings)))
    few = over_fewer_steps(plain(looking(UNLIKE, cache=cache, seed=SOURCE_SEED, steps=20)), 12)
    assert hit.report["outcome"] == "hit" and hit.report["looked"] == 1.0, told(hit)
    assert difference(hit.latent, full.latent) < 1.1 * difference(few.latent, full.latent)


@pytest.mark.parametrize(("steps", "at"), [(4, 1), (4, 2), (4, 3), (20, 6), (20, 7), (20, 10)])
def test_two_samplers_share_the_shorter_way(run, cache, steps, at):
    """The same model computes both parts, so nothing may differ, wherever the boundary falls."""
    run(looking(RED, cache=cache, steps=steps, seed=SOURCE_SEED))
    whole = run(changed(cache, steps=steps))
    split = run(split_in_two(changed(cache, steps=steps), at))
    assert split.report["outcome"] == "hit", told(split)
    for name in ("steps_computed", "step_equivalents", "k1", "k2", "token_share"):
        assert split.report[name] == whole.report[name], name
    assert difference(split.latent, whole.latent) < 1e-4


@pytest.mark.parametrize(("steps", "most"), [(4, 0.95), (20, 0.5)])
def test_outside_a_mask_of_more_than_half_of_the_picture_the_match_is_kept(run, cache, comfy_host, steps, most):
    source = run(looking(RED, cache=cache, steps=steps, seed=SOURCE_SEED))
    box = [(0, 0, 64, 96)]  # the upper two thirds
    hit = run(masked(looking(cache=cache, steps=steps, seed=OWN_SEED), box, comfy_host, visible=0))
    assert hit.report["outcome"] == "hit" and hit.report["looked"] == pytest.approx(2 / 3, abs=1e-4)
    assert "more than half" not in told(hit)
    other = run(plain(looking(cache=cache, steps=steps, seed=SOURCE_SEED)))
    below = (..., slice(-2, None), slice(None))  # a token away from the mask
    kept, apart = (difference(x.latent[below], source.latent[below]) for x in (hit, other))
    assert kept < most * apart  # of 4 steps, the last one computes a large part of the picture


@pytest.mark.parametrize("second", ["euler_ancestral", "lcm", "res_multistep_cfg_pp", "euler_cfg_pp"])
def test_a_second_sampler_of_a_kind_that_cannot_look_computes_all_its_steps(run, cache, second):
    settings = {"cache": cache, "steps": 20, "cfg": 3.0}
    run(looking(RED, **settings, seed=SOURCE_SEED))
    g = split_in_two(looking(**settings, seed=OWN_SEED), 8)
    samplers = [name for name, part in g.items() if part["class_type"] == "KSamplerAdvanced"]
    g[samplers[-1]]["inputs"]["sampler_name"] = second
    hit = run(g)
    assert hit.report["outcome"] == "hit", told(hit)
    assert hit.report["steps_computed"] == 2 + 12, "the first sampler computes the steps of its two looks"
    assert "the second sampler goes on by itself" in told(hit)


def test_a_limit_does_not_make_the_dearer_course_win(run, cache, comfy_host):
    """With `maximum` 0.3, F-FF is allowed and costs less than a course with selective steps that were made full."""
    run(looking(RED, cache=cache, steps=4, seed=SOURCE_SEED))
    g = masked(looking(cache=cache, steps=4, seed=OWN_SEED), [(32, 32, 64, 64)], comfy_host, visible=0)
    g["stage1"]["inputs"]["maximum"] = 0.3
    hit = run(g)
    assert hit.report["step_equivalents"] == 3
