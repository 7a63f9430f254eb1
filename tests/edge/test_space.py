"""The space of a request: what separates two requests whatever their prompts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from small_wan import sampling

from .test_model_digests import lora_file, model_file

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


def picture(seed: int = 0, shape=(1, 16, 4, 12, 12)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(**extra) -> list:
    return [[torch.ones(1, 8, 24), {"pooled_output": None, **extra}]]


def of(space, models, latent=EMPTY, image=None, cond=None, **extra):
    return space.space_of(models, {"samples": latent, **extra}, image, cond)


# -- conditioning beside text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra", [{}, {"pooled_output": torch.ones(4)}, {"start_percent": 0.2}, {"concat_latent_image": None}]
)
def test_a_text_only_conditioning_carries_nothing(space, extra):
    assert space.image_conditioning(conditioning(**extra)) == ""
    assert space.image_conditioning([]) == ""


@pytest.mark.parametrize("key", ["concat_latent_image", "concat_mask", "clip_vision_output", "reference_latents"])
def test_what_a_conditioning_carries_counts_by_content(space, key):
    one, same, other = (space.image_conditioning(conditioning(**{key: picture(s)})) for s in (0, 0, 1))
    assert one == same != ""
    assert one != other


def test_the_conditioning_of_a_graph_and_of_a_guider_carry_the_same(space):
    import comfy.sampler_helpers

    cond = conditioning(concat_latent_image=picture())
    assert space.image_conditioning(comfy.sampler_helpers.convert_cond(cond)) == space.image_conditioning(cond)
    assert space.image_conditioning(comfy.sampler_helpers.convert_cond(conditioning())) == ""


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


def test_several_streams_in_one_latent_are_refused(space, model):
    import comfy.nested_tensor

    nested = comfy.nested_tensor.NestedTensor([EMPTY, torch.zeros(1, 8, 32)])
    with pytest.raises(ValueError, match="several streams"):
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
