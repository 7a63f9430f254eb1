"""The space of a request: what separates two requests whatever their prompts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from small_wan import sampling

from .test_weights import lora_file, model_file

EMPTY = torch.zeros(1, 16, 4, 12, 12)


@pytest.fixture(scope="module")
def space(pack_module):
    return pack_module("chorus.comfy.space")


@pytest.fixture(scope="module")
def folder(comfy_host, tmp_path_factory):
    return tmp_path_factory.mktemp("space")


@pytest.fixture(scope="module")
def model(folder):
    return sampling.load(model_file(folder, 0))


@pytest.fixture(scope="module")
def model_with_lora(folder):
    return sampling.load(folder / "model-0.safetensors", lora_file(folder))


@pytest.fixture(scope="module")
def not_understood(pack_module):
    return pack_module("chorus.comfy.content").NotUnderstood


def picture(seed: int = 0, shape=(1, 16, 4, 12, 12)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(**extra) -> list:
    return [[torch.ones(1, 8, 24), {"pooled_output": None, **extra}]]


def of(space, models, latent=EMPTY, image=None, cond=None, **extra):
    return space.space_of(models, {"samples": latent, **extra}, image, cond, None)


# -- conditioning beside text -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def carried(space, networks, model):
    """`carried(cond)`: digest of what a conditioning of the small Wan carries beside text."""
    return lambda cond, network=None: space.carried_inputs(cond, network or networks.network_of(model))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"pooled_output": torch.ones(4)},
        {"attention_mask": torch.ones(1, 8)},
        {"start_percent": 0.2},
        {"guidance": 3.5},
        {"uuid": "another"},
        {"concat_latent_image": None},
    ],
    ids=repr,
)
def test_a_text_only_conditioning_carries_nothing(carried, extra):
    assert carried(conditioning(**extra)) == ""
    assert carried([]) == ""


@pytest.mark.parametrize(
    "key", ["concat_latent_image", "concat_mask", "clip_vision_output", "reference_latents", "audio_embed", "area"]
)
def test_what_a_conditioning_carries_counts_by_content(carried, key):
    one, same, other = (carried(conditioning(**{key: picture(s)})) for s in (0, 0, 1))
    assert one == same != ""
    assert one != other


def test_under_which_name_it_is_carried_and_in_which_part_counts(carried):
    alone, named = conditioning(concat_mask=picture()), conditioning(concat_latent_image=picture())
    found = [alone, named, [*alone, *conditioning()], [*conditioning(), *alone]]
    assert len({carried(cond) for cond in found}) == len(found)


def test_for_which_steps_an_input_applies_counts_and_for_which_a_text_applies_does_not(carried):
    whole, first, half = (
        carried(conditioning(pose_video_latent=picture(), **steps))
        for steps in ({}, {"end_percent": 0.8}, {"end_percent": 0.5})
    )
    assert len({whole, first, half}) == 3
    assert carried([*conditioning(end_percent=0.8), *conditioning(start_percent=0.8)]) == ""


def test_what_is_text_to_one_family_is_an_input_to_another(carried, networks):
    cond = conditioning(conditioning_byt5small=picture())
    assert carried(cond, networks.HunyuanVideo(torch.nn.Module())) == ""
    assert carried(cond, networks.Wan(torch.nn.Module())) != ""


@pytest.mark.parametrize("value", [object(), float("nan"), lambda: 0], ids=["object", "NaN", "function"])
def test_an_input_that_cannot_be_told_apart_is_not_understood(carried, not_understood, value):
    with pytest.raises(not_understood, match="control"):
        carried(conditioning(control=value))


def test_the_conditioning_of_a_graph_and_of_a_guider_carry_the_same(carried):
    import comfy.sampler_helpers

    cond = conditioning(concat_latent_image=picture())
    assert carried(comfy.sampler_helpers.convert_cond(cond)) == carried(cond)
    assert carried(comfy.sampler_helpers.convert_cond(conditioning())) == ""


# -- tasks ------------------------------------------------------------------------------------------------------


def test_an_empty_latent_and_text_are_text_to_video(space, model):
    assert of(space, [model]).task == "t2v"
    assert of(space, [model], cond=conditioning()).task == "t2v"


def test_a_start_image_makes_a_task_of_its_own(space, model):
    tasks = [
        of(space, [model], image=torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(s))).task
        for s in (0, 0, 1)
    ]
    assert tasks[0].startswith("i2v:") and tasks[0] == tasks[1] != tasks[2]


def test_a_start_image_in_the_conditioning_does_too(space, model):
    tasks = [of(space, [model], cond=conditioning(concat_latent_image=picture(s))).task for s in (0, 0, 1)]
    assert tasks[0].startswith("i2v:") and tasks[0] == tasks[1] != tasks[2]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"audio_embed": picture(1)}, ["other audio"]),
        ({"concat_mask": picture(1)}, ["other mask"]),
        ({"audio_embed": None}, ["other audio"]),
        ({"concat_mask": picture(1), "audio_embed": picture(1)}, ["other audio", "other mask"]),
        ({"unheard_of": picture(1)}, ["other start image, control video, audio or reference"]),
    ],
    ids=lambda one: " ".join(one),
)
def test_the_inputs_that_differ_are_named(space, model, changed, words):
    same = {"audio_embed": picture(), "concat_mask": picture()}
    here, there = (of(space, [model], cond=conditioning(**same | more)) for more in ({}, changed))
    assert [str(one) for one in there.differences(here)] == words


def test_another_start_image_is_named_and_not_the_frames_that_follow_from_it(space, model):
    first, later = picture(), picture()
    first[:, :, :], later[:, :, 1:] = picture(1), picture(1)[:, :, 1:]
    here, other_start, other_end = (
        of(space, [model], cond=conditioning(concat_latent_image=latent)) for latent in (picture(), first, later)
    )
    assert [str(one) for one in other_start.differences(here)] == ["other start image"]
    assert [str(one) for one in other_end.differences(here)] == ["other end image or later frames"]


def test_a_start_latent_makes_a_task_of_its_own(space, model):
    tasks = [of(space, [model], picture(s)).task for s in (0, 0, 1)]
    assert tasks[0].startswith("v2v:") and tasks[0] == tasks[1] != tasks[2]


def test_start_latents_separate_requests_with_the_same_start_image(space, model):
    cond = conditioning(concat_latent_image=picture(7))
    tasks = {of(space, [model], latent, cond=cond).task for latent in (EMPTY, picture(0), picture(1))}
    assert len(tasks) == 3


# -- latents ----------------------------------------------------------------------------------------------------


def test_an_empty_latent_has_the_channels_of_the_model(space, model):
    assert of(space, [model], torch.zeros(1, 4, 4, 12, 12)).shape == (1, 16, 4, 12, 12)
    assert of(space, [model], torch.zeros(1, 48, 4, 12, 12)).shape == (1, 16, 4, 12, 12)
    assert of(space, [model], torch.zeros(2, 4, 12, 12)).shape == (2, 16, 1, 12, 12)


def test_an_empty_latent_of_another_scale_is_rescaled_as_the_host_does(space, model):
    shape = of(space, [model], torch.zeros(1, 48, 2, 6, 6), downscale_ratio_spacial=16).shape
    assert shape == (1, 16, 2, 12, 12)


def test_several_streams_in_one_latent_are_declined(space, model, pack_module):
    import comfy.nested_tensor

    nested = comfy.nested_tensor.NestedTensor([EMPTY, torch.zeros(1, 8, 32)])
    with pytest.raises(pack_module("chorus.comfy.faults").Unsuitable, match="several streams"):
        of(space, [model], nested)


def test_shape_and_format_are_the_models(space, model):
    found = of(space, [model])
    assert (found.latent_format, found.shape, found.prediction) == ("Wan21", tuple(EMPTY.shape), "flow")


# -- models -----------------------------------------------------------------------------------------------------


def test_a_lora_makes_another_space_on_the_same_weights(space, model, model_with_lora):
    plain, patched = of(space, [model]), of(space, [model_with_lora])
    assert plain.weights == patched.weights and plain.patches == "" != patched.patches


def test_two_experts_are_another_space_than_one(space, model, folder):
    second = sampling.load(model_file(folder, 1))
    keys = {of(space, models).key() for models in ([model], [second], [model, second], [second, model])}
    assert len(keys) == 4


def test_which_expert_a_lora_lies_on_counts(space, model, model_with_lora, folder):
    second = sampling.load(folder / "model-1.safetensors")
    second_with_lora = sampling.load(folder / "model-1.safetensors", lora_file(folder))
    experts = [
        [model, second],
        [model_with_lora, second],
        [model, second_with_lora],
        [model_with_lora, second_with_lora],
    ]
    assert len({of(space, pair).key() for pair in experts}) == len(experts)


def test_a_patched_model_without_a_graph_is_not_understood(space, model, not_understood):
    """Only the graph tells with which settings another node patched it."""
    patched = model.clone()
    patched.set_model_attn1_patch(lambda *args: args)
    with pytest.raises(not_understood, match="patches of other nodes"):
        of(space, [patched])
    assert of(space, [model]).patches == ""


def test_an_expert_is_its_weights_its_loras_and_where_patches_lie_on_it(space, model, model_with_lora, folder):
    patched = model.clone()
    patched.set_model_attn1_patch(print)
    experts = [space.expert(m) for m in (model, model_with_lora, patched, sampling.load(model_file(folder, 1)))]
    assert len(set(experts)) == 4
    assert [lora for _, lora, _ in experts].count("") == 3
    assert [bool(foreign) for *_, foreign in experts] == [False, False, True, False]
    assert space.expert(model.clone()) == experts[0]


def prediction(space, kind: str) -> str:
    import comfy.model_base

    config = SimpleNamespace(sampling_settings={}, unet_config={})
    sampling_object = comfy.model_base.model_sampling(config, getattr(comfy.model_base.ModelType, kind))
    return space.prediction_of(SimpleNamespace(get_model_object=lambda name: sampling_object))


@pytest.mark.parametrize("kind", ["FLOW", "FLUX"])
def test_rectified_flow_can_be_reused(space, kind):
    assert prediction(space, kind) == "flow"


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM", "FLOW_COSMOS", "IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_other_predictions_are_named_and_not_called_flow(space, kind):
    assert prediction(space, kind) not in ("flow", "")
