"""Digests of loaded models: base weights whatever LoRA lies on them, LoRAs whatever model they lie on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from small_wan import architecture, distill, export, sampling

RANK = 2


def lora_file(folder: Path, seed: int = 0, size: float = 0.05) -> Path:
    generator = torch.Generator().manual_seed(seed)
    width = architecture.CONFIG["dim"]
    tensors = {}
    for name in ("blocks.0.self_attn.q", "blocks.1.cross_attn.v"):
        tensors[f"{distill.LORA_PREFIX}{name}.lora_A.weight"] = torch.randn(RANK, width, generator=generator)
        tensors[f"{distill.LORA_PREFIX}{name}.lora_B.weight"] = size * torch.randn(width, RANK, generator=generator)
    file = folder / f"lora-{seed}-{size}.safetensors"
    export.write(tensors, file)
    return file


@pytest.fixture(scope="module")
def folder(comfy_host, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_file(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    file = folder / f"model-{seed}.safetensors"
    export.write(architecture.build().state_dict(), file, architecture.METADATA)
    return file


@pytest.fixture(scope="module")
def first_model(folder) -> Path:
    return model_file(folder, 0)


@pytest.fixture(scope="module")
def lora(folder) -> Path:
    return lora_file(folder)


def load_onto_device(patcher) -> None:
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)


def test_equal_weights_have_equal_digests_in_every_load(digest_module, first_model):
    one, other = sampling.load(first_model), sampling.load(first_model)
    assert one.model is not other.model
    assert digest_module.weights_digest(one) == digest_module.weights_digest(other)


def test_other_weights_have_other_digests(digest_module, folder, first_model):
    other = sampling.load(model_file(folder, 1))
    assert digest_module.weights_digest(other) != digest_module.weights_digest(sampling.load(first_model))


def test_one_changed_weight_is_another_model(digest_module, first_model):
    one, other = sampling.load(first_model), sampling.load(first_model)
    other.model.diffusion_model.blocks[2].ffn[0].weight.data[3, 4] += 1e-3
    assert digest_module.weights_digest(one) != digest_module.weights_digest(other)


def test_the_digest_of_the_weights_ignores_a_lora(digest_module, first_model, lora):
    plain = digest_module.weights_digest(sampling.load(first_model))
    assert digest_module.weights_digest(sampling.load(first_model, lora)) == plain


def test_the_digest_of_the_weights_ignores_a_lora_that_is_patched_in(digest_module, first_model, lora):
    plain = digest_module.weights_digest(sampling.load(first_model))
    patched = sampling.load(first_model, lora)
    before = patched.model.diffusion_model.blocks[0].self_attn.q.weight.clone()
    load_onto_device(patched)
    # Otherwise this would not show anything: the weights in place are no longer the model's own.
    assert not torch.equal(patched.model.diffusion_model.blocks[0].self_attn.q.weight.cpu(), before)
    assert digest_module.weights_digest(patched) == plain


def test_a_clone_without_the_lora_sees_the_same_weights_while_it_is_patched_in(digest_module, first_model, lora):
    import comfy.sd
    import comfy.utils

    base = sampling.load(first_model)
    patched, _ = comfy.sd.load_lora_for_models(base, None, comfy.utils.load_torch_file(str(lora)), 1.0, 0.0)
    load_onto_device(patched)
    plain = digest_module.weights_digest(sampling.load(first_model))
    assert digest_module.weights_digest(base) == plain


def test_without_patches_there_is_no_digest_of_patches(digest_module, first_model):
    assert digest_module.patches_digest(sampling.load(first_model)) == ""


def test_the_digest_of_patches_is_equal_in_every_load(digest_module, first_model, lora):
    one, other = sampling.load(first_model, lora), sampling.load(first_model, lora)
    assert one.patches_uuid != other.patches_uuid
    assert digest_module.patches_digest(one) == digest_module.patches_digest(other) != ""


def test_the_digest_of_patches_is_the_same_when_they_are_patched_in(digest_module, first_model, lora):
    patched = sampling.load(first_model, lora)
    load_onto_device(patched)
    assert digest_module.patches_digest(patched) == digest_module.patches_digest(sampling.load(first_model, lora))


def test_strength_and_content_change_the_digest_of_patches(digest_module, folder, first_model, lora):
    variants = [
        sampling.load(first_model, lora),
        sampling.load(first_model, lora, 0.5),
        sampling.load(first_model, lora, -1.0),
        sampling.load(first_model, lora_file(folder, seed=1)),
        sampling.load(first_model, lora_file(folder, size=0.0501)),
    ]
    assert len({digest_module.patches_digest(v) for v in variants}) == len(variants)


def test_a_second_lora_changes_the_digest_of_patches(digest_module, folder, first_model, lora):
    import comfy.sd
    import comfy.utils

    one = sampling.load(first_model, lora)
    second = comfy.utils.load_torch_file(str(lora_file(folder, seed=1)))
    both, _ = comfy.sd.load_lora_for_models(one, None, second, 1.0, 0.0)
    assert digest_module.patches_digest(both) != digest_module.patches_digest(one)


def test_a_bypass_lora_counts_by_content_and_strength(digest_module, folder, first_model, lora):
    """The host's bypass LoRA adds to a layer's output instead of patching its weights."""
    import comfy.sd
    import comfy.utils

    def bypassed(base, file, strength):
        tensors = comfy.utils.load_torch_file(str(file))
        return comfy.sd.load_bypass_lora_for_models(base, None, tensors, strength, 0.0)[0]

    base = sampling.load(first_model)
    variants = [
        base,
        bypassed(base, lora, 1.0),
        bypassed(base, lora, 0.5),
        bypassed(base, lora_file(folder, seed=1), 1.0),
    ]
    assert len({digest_module.patches_digest(v) for v in variants}) == len(variants)
    again = bypassed(sampling.load(first_model), lora, 1.0)
    assert digest_module.patches_digest(again) == digest_module.patches_digest(variants[1])
