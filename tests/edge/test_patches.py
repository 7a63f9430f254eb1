"""What other nodes have put on a model: all of it is found, and nothing that does not change the video."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from small_wan import sampling

from .test_weights import lora_file, model_file


@pytest.fixture(scope="module")
def foreign(pack_module):
    return pack_module("chorus.comfy.patches").foreign_patches


@pytest.fixture(scope="module")
def folder(comfy_host, tmp_path_factory):
    return tmp_path_factory.mktemp("patches")


@pytest.fixture(scope="module")
def model(folder):
    return sampling.load(model_file(folder, 0))


def patch(*args, **kwargs):
    return args


def other_patch(*args, **kwargs):
    return args


class Patch:
    def __call__(self, *args):
        return args


def _wrapper(model):
    import comfy.patcher_extension

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "pack", patch)


def _callback(model):
    import comfy.patcher_extension

    model.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, "pack", patch)


def _injection(model):
    import comfy.patcher_extension

    model.set_injections("pack", [comfy.patcher_extension.PatcherInjection(inject=patch, eject=patch)])


def _hooks(model):
    import comfy.hooks

    hook = comfy.hooks.WeightHook()
    model.add_hook_patches(hook, {"diffusion_model.blocks.0.ffn.0.weight": ((torch.zeros(768, 192),),)})


PATCHES: dict[str, Callable] = {
    "cfg function": lambda model: model.set_model_sampler_cfg_function(patch),
    "after CFG": lambda model: model.set_model_sampler_post_cfg_function(patch),
    "before CFG": lambda model: model.set_model_sampler_pre_cfg_function(patch),
    "whole network": lambda model: model.set_model_unet_function_wrapper(patch),
    "attention": lambda model: model.set_model_attn1_patch(patch),
    "attention output": lambda model: model.set_model_attn2_output_patch(patch),
    "attention replaced": lambda model: model.set_model_attn1_replace(patch, "double_block", 0),
    "block replaced": lambda model: model.set_model_patch_replace(patch, "dit", "double_block", 0),
    "object": lambda model: model.add_object_patch("diffusion_model.rope_embedder", Patch()),
    "weight wrapper": lambda model: model.add_weight_wrapper("diffusion_model.head.head.weight", patch),
    "attachment": lambda model: model.set_attachments("pack", Patch()),
    "another model": lambda model: model.set_additional_models("pack", [model.clone()]),
    "transformer option": lambda model: model.model_options["transformer_options"].update(pack=Patch()),
    "model option": lambda model: model.model_options.update(pack=Patch()),
    "wrapper": _wrapper,
    "callback": _callback,
    "injection": _injection,
    "hooks": _hooks,
}


@pytest.mark.parametrize("name", PATCHES)
def test_each_kind_of_patch_is_found(foreign, model, name):
    patched = model.clone()
    PATCHES[name](patched)
    found = foreign(patched)
    assert found != () == foreign(model)
    assert foreign(patched.clone()) == found
    again = model.clone()
    PATCHES[name](again)
    assert foreign(again) == found, "two nodes of the same kind give the same answer"


def test_each_kind_of_patch_is_another(foreign, model):
    found = []
    for put in PATCHES.values():
        patched = model.clone()
        put(patched)
        found.append(foreign(patched))
    assert len(set(found)) == len(PATCHES)


def test_the_order_of_patches_on_different_places_does_not_matter(foreign, model):
    forth, back = model.clone(), model.clone()
    for put in PATCHES.values():
        put(forth)
    for put in reversed(PATCHES.values()):
        put(back)
    assert foreign(forth) == foreign(back)


def test_which_code_a_patch_is_counts(foreign, model):
    one, other, both = model.clone(), model.clone(), model.clone()
    one.set_model_attn1_patch(patch)
    other.set_model_attn1_patch(other_patch)
    both.set_model_attn1_patch(patch)
    both.set_model_attn1_patch(other_patch)
    assert len({foreign(m) for m in (one, other, both)}) == 3


def test_parameters_of_a_patch_are_left_to_the_graph(foreign, model):
    """Running state of a patch, such as a moving average, must not make another model of it."""
    patched = model.clone()
    made = Patch()
    patched.set_model_attn1_patch(made)
    before = foreign(patched)
    made.average = torch.ones(3)
    assert foreign(patched) == before


def test_a_lora_is_no_foreign_patch_but_one_that_bypasses_the_weights_is(foreign, model, folder):
    import comfy.sd
    import comfy.utils

    lora = comfy.utils.load_torch_file(str(lora_file(folder)))
    assert foreign(comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]) == ()
    assert foreign(comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0.0)[0]) != ()


def _easy_cache(model):
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result[0]


def _lazy_cache(model):
    from comfy_extras.nodes_easycache import LazyCacheNode

    return LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result[0]


def _windows(model):
    from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

    return WanContextWindowsManualNode.execute(model, 81, 30, "standard_static", 1, False, "pyramid", False).result[0]


def _compiled(model):
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return TorchCompileModel.execute(model, "inductor").result[0]


def _shift(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


@pytest.mark.parametrize("put", [_easy_cache, _lazy_cache, _windows, _compiled, _shift])
def test_what_does_not_change_which_video_is_meant_is_no_patch(foreign, model, put):
    put_on = put(model)
    assert put_on is not model
    assert foreign(put_on) == ()


def test_chorus_itself_is_no_patch(foreign, model, pack_module):
    plan = pack_module("chorus.reuse.plan").Plan("id", "default", True, True, "", None)
    attached = pack_module("chorus.comfy.sampling.wrappers").attach(model, plan)
    assert attached.wrappers and foreign(attached) == ()
