"""Hits across different weights or inputs. Every test here fails on 300586d."""

from __future__ import annotations

import copy

import pytest
from identity.graphs import GREEN, LORA, OTHER_LORA, OTHER_PICTURE, PICTURE, RED, SHIFT, in_cache, node, request


def green(g):
    g = copy.deepcopy(g)
    g["positive"]["inputs"]["text"] = g["lookup"]["inputs"]["prompt"] = GREEN
    return g


def _no_hit(run, source, similar, cache):
    run(in_cache(source, cache))
    answer = run(in_cache(green(similar), cache))
    assert answer.outcome in ("miss", "bypassed"), (
        f"{answer.outcome} {answer.report['match_score']}: {answer.report['reason']}"
    )


def _bypass(name, strength=1.0):
    return node("LoraLoaderBypassModelOnly", model=["shift", 0], lora_name=name, strength_model=strength)


def _branches(sampled):
    """One look-up, two branches of the model to compare: core nodes only."""
    g = request(extra={"a": _bypass(LORA), "b": _bypass(OTHER_LORA, 0.3)})
    g["lookup"]["inputs"]["model"] = ["a", 0]
    g["stage1"]["inputs"]["model"] = [sampled, 0]
    return g


def test_sampled_under_another_bypass_lora_than_the_look_up_saw(run, cache):
    """The run under B is stored in A's space; a later request wholly under A starts from it."""
    _no_hit(run, _branches("b"), _branches("a"), cache)


def test_a_hit_sampled_under_another_bypass_lora_than_the_look_up_saw(run, cache):
    """The source is wholly A's; the run that starts from its states is sampled under B."""
    _no_hit(run, _branches("a"), _branches("b"), cache)


def _pictures(sampled):
    def control(picture):
        return node("ControlPicture", model=["shift", 0], model_patch=["network", 0], image=[picture, 0], strength=0.7)

    g = request(
        extra={
            "network": node("OddModelPatchLoader", model=["unet", 0], columns=3, seed=0),
            "one": node("LoadImage", image=PICTURE),
            "two": node("LoadImage", image=OTHER_PICTURE),
            "a": control("one"),
            "b": control("two"),
        }
    )
    g["lookup"]["inputs"]["model"] = ["a", 0]
    g["stage1"]["inputs"]["model"] = [sampled, 0]
    return g


def test_sampled_under_another_control_picture_than_the_look_up_saw(run, cache):
    _no_hit(run, _pictures("b"), _pictures("a"), cache)


def test_patches_written_without_another_uuid(comfy_host, run, cache):
    def asked(gain):
        lora = node("LoraLoaderModelOnly", lora_name=LORA, strength_model=0.5)
        return request({"shift": SHIFT, "lora": lora, "direct": node("DirectPatch", gain=gain)})

    comfy_host.forget_outputs()
    run(in_cache(asked(0.1), cache), keep_nodes=True)
    answer = run(in_cache(green(asked(0.9)), cache), keep_nodes=True)
    assert answer.outcome in ("miss", "bypassed"), answer.report["reason"]


def _area(conditioning, x):
    return node("ConditioningSetArea", conditioning=[conditioning, 0], width=64, height=64, x=x, y=0, strength=1.0)


def test_another_input_on_the_negative(run, cache):
    """Only what the positive carries is compared (an area here; masks, references, control pictures alike)."""

    def asked(x):
        g = request(extra={"area": _area("negative", x)})
        g["sample"]["inputs"]["negative"] = ["area", 0]
        return g

    _no_hit(run, asked(0), asked(32), cache)


def test_another_input_on_a_guiders_second_conditioning(run, cache):
    def asked(x):
        return request(
            extra={
                "second": node("CLIPTextEncode", clip=["clip", 0], text="a small blue square"),
                "area": _area("second", x),
                "noise": node("RandomNoise", noise_seed=1),
                "guider": node(
                    "DualCFGGuider",
                    model=["stage3", 0],
                    cond1=["positive", 0],
                    cond2=["area", 0],
                    negative=["negative", 0],
                    cfg_conds=4.0,
                    cfg_cond2_negative=3.0,
                    style="regular",
                ),
                "solver": node("KSamplerSelect", sampler_name="euler"),
                "sigmas": node("BasicScheduler", model=["stage3", 0], scheduler="simple", steps=6, denoise=1.0),
                "sample": node(
                    "SamplerCustomAdvanced",
                    noise=["noise", 0],
                    guider=["guider", 0],
                    sampler=["solver", 0],
                    sigmas=["sigmas", 0],
                    latent_image=["latent", 0],
                ),
            }
        )

    _no_hit(run, asked(0), asked(32), cache)


@pytest.mark.parametrize("embedding", ["conditioning", "clip socket"])
def test_another_picture_among_the_tokens_of_the_text(run, cache, embedding):
    """A picture that went through the text encoder is no text; here the prompt and the seed stay the same."""

    def asked(picture, prompt=RED):
        g = request(extra={"picture": node("LoadImage", image=picture)})
        g["positive"] = node("EncodeTextAndImage", clip=["clip", 0], prompt=prompt, image=["picture", 0])
        g["lookup"]["inputs"] |= {"prompt": prompt, "embedding": embedding}
        return g

    first = run(in_cache(asked(PICTURE), cache))
    assert first.outcome == "miss", first.report["reason"]
    answer = run(in_cache(asked(OTHER_PICTURE), cache))
    assert answer.outcome in ("miss", "bypassed"), (
        f"{answer.outcome} {answer.report['match_score']}: {answer.report['reason']} {answer.report['notes']}"
    )
