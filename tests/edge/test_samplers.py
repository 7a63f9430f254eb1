"""What is said of each sampler of the host, compared with what it does."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from small_wan import export, sampling, text_encoder

OWN_STEPS = {"dpm_fast", "dpm_adaptive"}
STEPS = 5


@pytest.fixture(scope="module")
def known_sampler(pack_module):
    return pack_module("chorus.comfy.sampling.samplers").known_sampler


@pytest.fixture(scope="module")
def model(comfy_host):
    return sampling.load(export.MODEL_FILE)


@pytest.fixture(scope="module")
def sampled(model):
    """`sampled(sampler, seed)`: the latent of always the same noise, a tiny one."""
    import comfy.sample

    noise = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    positive = [[text_encoder.encode("a red circle"), {}]]

    def of(sampler, seed: int = 1, steps: int = STEPS) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model,
                noise,
                1.0,
                sampler,
                sampling.sigmas(model, steps),
                positive,
                positive,
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=seed,
            )

    return of


def of_host(name: str, options: dict | None = None):
    import comfy.samplers

    return comfy.samplers.ksampler(name, dict(options)) if options else comfy.samplers.sampler_object(name)


@pytest.fixture(scope="module")
def names(comfy_host) -> list[str]:
    """Every name that the host's nodes offer, but those of samplers that choose their own steps."""
    import comfy.samplers

    assert set(comfy.samplers.SAMPLER_NAMES) > OWN_STEPS
    return [name for name in comfy.samplers.SAMPLER_NAMES if name not in OWN_STEPS]


def test_every_sampler_of_the_host_is_known(known_sampler, names):
    assert [name for name in names if known_sampler(of_host(name)) is None] == []


def test_samplers_draw_noise_exactly_where_it_is_said(known_sampler, sampled, names):
    said = {name: known_sampler(of_host(name)).draws_noise for name in names}
    one, same, other = ({name: sampled(of_host(name), seed) for name in names} for seed in (1, 1, 2))
    for name in names:
        assert one[name].isfinite().all() and torch.equal(one[name], same[name]), name
    assert {name: not torch.equal(one[name], other[name]) for name in names} == said


def test_one_step_is_the_models_estimate_but_of_samplers_that_need_more(known_sampler, sampled, names):
    """Stage 1 may leave a sampler a single step only where it can do something with it."""

    def far(name: str, steps: int) -> float:
        expected = sampled(of_host("euler"), steps=steps)
        return float((sampled(of_host(name), steps=steps) - expected).norm() / expected.norm())

    least = {name: known_sampler(of_host(name)).least_steps for name in names}
    assert {name for name in names if far(name, 1) > 0.01} == {name for name in names if least[name] > 1}
    for name in names:
        if least[name] > 1:
            assert far(name, least[name]) < 0.1 < far(name, least[name] - 1), name


@pytest.mark.parametrize("name", sorted(OWN_STEPS))
def test_samplers_that_choose_their_own_steps_are_not_known(known_sampler, name):
    assert known_sampler(of_host(name)) is None


def test_the_hosts_names_for_one_function_are_one_sampler(known_sampler):
    assert known_sampler(of_host("ddim")) == known_sampler(of_host("euler"))
    assert known_sampler(of_host("uni_pc")).name == "unipc"
    assert known_sampler(of_host("uni_pc_bh2")).name == "unipc_bh2"


@pytest.mark.parametrize(
    ("name", "options", "draws"),
    [
        ("euler", {"s_churn": 0.0}, False),
        ("res_multistep", {"s_noise": 1.0}, False),
        ("gradient_estimation", {"ge_gamma": 3.0}, False),
        ("euler_ancestral", {"eta": 0.5}, True),
    ],
)
def test_options_make_a_sampler_draw_noise(known_sampler, sampled, name, options, draws):
    assert known_sampler(of_host(name, options)).draws_noise is draws
    one, other = (sampled(of_host(name, options), seed) for seed in (1, 2))
    assert torch.equal(one, other) is not draws


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_asks_the_model_between_the_steps_and_is_left_alone(known_sampler, name):
    assert known_sampler(of_host(name, {"s_churn": 2.0})) is None


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """A pack's own sampler under the name of one of the host."""
    return x


def unknown() -> dict:
    import comfy.k_diffusion.sampling as host
    from comfy.samplers import KSAMPLER

    class OwnSampler(KSAMPLER):
        pass

    return {
        "a function of the same name": KSAMPLER(sample_euler),
        "a partial function": KSAMPLER(functools.partial(host.sample_euler, s_churn=1.0)),
        "a function without a name": KSAMPLER(SimpleNamespace()),
        "another function of that module": KSAMPLER(host.to_d),
        "one that is not called like a sampler": KSAMPLER(lambda *args: args),
        "a class of a pack": OwnSampler(host.sample_euler),
        "something else": SimpleNamespace(sampler_function=host.sample_euler, extra_options={}),
        "nothing": None,
    }


def test_what_is_not_the_hosts_own_function_is_not_known(known_sampler):
    assert {what: known_sampler(sampler) for what, sampler in unknown().items()} == dict.fromkeys(unknown())
