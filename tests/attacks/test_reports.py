"""Wrong pictures under a true name, and reports that say what did not happen. Every test here fails on 300586d."""

from __future__ import annotations

import pytest
from identity.conftest import assert_same
from identity.graphs import GREEN, RED, in_cache, node, plain, request
from sampling import graphs as sampling


def _parts(solver="euler", sigmas=None, more=None, steps=6):
    base = node("BasicScheduler", model=["stage3", 0], scheduler="simple", steps=steps, denoise=1.0)
    return request(
        extra={
            "noise": node("RandomNoise", noise_seed=1),
            "guider": node(
                "CFGGuider", model=["stage3", 0], positive=["positive", 0], negative=["negative", 0], cfg=3.0
            ),
            "solver": node("KSamplerSelect", sampler_name=solver) if isinstance(solver, str) else solver,
            "base": base,
            "sigmas": sigmas or base,
            "sample": node(
                "SamplerCustomAdvanced",
                noise=["noise", 0],
                guider=["guider", 0],
                sampler=["solver", 0],
                sigmas=["sigmas", 0],
                latent_image=["latent", 0],
            ),
            **(more or {}),
        }
    )


@pytest.mark.parametrize(
    "area", [{"width": 0.5, "height": 0.5, "temporal": 0.5}, {"width": 1.0, "height": 0.5, "temporal": 1.0}]
)
def test_k1_is_what_was_set_when_the_prompt_has_an_area(run, cache, area):
    """Masks from attention recorded on the crop: the new prompt is ignored, more steps are skipped, nothing says so."""

    def asked(text):
        g = sampling.graph(text, cache=cache, masks=True, k1=0.3, k2=0.7, steps=8, cfg=3.0)
        g["area"] = node(
            "ConditioningSetAreaPercentageVideo",
            conditioning=["positive", 0],
            x=0.0,
            y=0.0,
            z=0.0,
            strength=1.0,
            **area,
        )
        for name in ("lookup", "sample"):
            g[name]["inputs"]["positive"] = ["area", 0]
        return g

    source = run(asked(RED))
    expected = run(plain(asked(GREEN))).latent
    hit = run(asked(GREEN))
    assert hit.outcome == "hit"
    assert hit.report["k1"] == 2 or hit.report["notes"], (
        f"K1 set to 0.3 of 8 steps, was {hit.report['k1']}, {hit.steps_computed} steps computed, no note; "
        f"{float((hit.latent - source.latent).norm() / source.latent.norm()):.3f} from the source's video, "
        f"{float((hit.latent - expected).norm() / expected.norm()):.3f} from the prompt's own"
    )


@pytest.mark.parametrize("kind", ["set first sigma", "rising", "churn", "laplace"])
def test_every_step_of_a_run_in_full_counts(run, cache, kind):
    g = {
        "set first sigma": lambda: _parts(sigmas=node("SetFirstSigma", sigmas=["base", 0], sigma=0.95)),
        "rising": lambda: _parts(sigmas=node("ManualSigmas", sigmas="1.0, 0.5, 0.7, 0.0")),
        "churn": lambda: _parts(node("ChurnSampler", s_churn=3.0)),
        "laplace": lambda: _parts(
            sigmas=node("LaplaceScheduler", steps=6, sigma_max=1.0, sigma_min=0.03, mu=0.0, beta=0.5)
        ),
    }[kind]()
    answer = run(in_cache(g, cache))
    assert_same(answer.latent, run(plain(g)).latent, "the run in full")
    # A schedule that does not fall, or is left in between, is none that Chorus can count: it leaves such a run alone.
    assert answer.outcome == "bypassed" or answer.steps_computed == answer.report["steps"]


def test_a_schedule_without_steps_is_no_error_of_chorus(run, cache):
    """SplitSigmas at the last step: the rest holds one σ, and the host passes the latent on."""
    g = _parts(sigmas=node("SplitSigmas", sigmas=["base", 0], step=6))
    g["sample"]["inputs"]["sigmas"] = ["sigmas", 1]
    answer = run(in_cache(g, cache))
    assert "error" not in answer.report["reason"], answer.report["reason"]


def test_an_identical_request_in_two_parts_of_one_model_has_no_false_notes(run, cache):
    """KSamplerAdvanced 0–3 and 3–6, the same model in both, nothing is computed and nothing drawn the second time."""
    g = request(steps=6)
    shared = {
        "model": ["stage3", 0],
        "noise_seed": 1,
        "steps": 6,
        "cfg": 3.0,
        "sampler_name": "euler_ancestral",
        "scheduler": "simple",
        "positive": ["positive", 0],
        "negative": ["negative", 0],
    }
    g["first"] = node(
        "KSamplerAdvanced",
        **shared,
        latent_image=["latent", 0],
        add_noise="enable",
        start_at_step=0,
        end_at_step=3,
        return_with_leftover_noise="enable",
    )
    g["sample"] = node(
        "KSamplerAdvanced",
        **shared,
        latent_image=["first", 0],
        add_noise="disable",
        start_at_step=3,
        end_at_step=10000,
        return_with_leftover_noise="disable",
    )
    run(in_cache(g, cache))
    again = run(in_cache(g, cache))
    assert again.outcome == "identical"
    assert again.report["notes"] == []
