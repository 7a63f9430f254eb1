"""Which weights a model samples with: base weights whatever LoRA lies on them, LoRAs whatever model they lie on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
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
def weights(pack_module):
    return pack_module("chorus.comfy.networks.weights")


@pytest.fixture
def read(pack_module) -> Callable[[], int]:
    """The bytes of files and tensors that were read for digests since the last call."""
    counter = pack_module("chorus.comfy.content").counter
    last = [counter.bytes]

    def since() -> int:
        bytes_read, last[0] = counter.bytes - last[0], counter.bytes
        return bytes_read

    return since


@pytest.fixture(scope="module")
def folder(comfy_host, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_file(folder: Path, seed: int) -> Path:
    file = folder / f"model-{seed}.safetensors"
    if not file.exists():
        torch.manual_seed(seed)
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


def without_file(patcher):
    """The same model as a loader that tells the host nothing would hand it over."""
    patcher.cached_patcher_init = None
    return patcher


def network_of(patcher) -> torch.nn.Module:
    return patcher.model.diffusion_model


# -- base weights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_file(pack_module):
    """`by_file(file, …)`: the model of a file that a graph named before it was loaded."""
    digests = pack_module("chorus.comfy.files").file_digests()

    def load(file: Path, *lora):
        digests.note(file)
        return sampling.load(file, *lora)

    return load


def by_parameters(file: Path, *lora):
    return without_file(sampling.load(file, *lora))


@pytest.fixture(params=["by file", "by parameters"])
def known(request, by_file):
    """`known(file, …)`: a model that is digested in one of the two ways."""
    return by_file if request.param == "by file" else by_parameters


def test_equal_weights_have_equal_digests_in_every_load(weights, first_model, known):
    one, other = known(first_model), known(first_model)
    assert one.model is not other.model
    assert weights.weights_digest(one) == weights.weights_digest(other)


def test_other_weights_have_other_digests(weights, folder, first_model, known):
    other = known(model_file(folder, 1))
    assert weights.weights_digest(other) != weights.weights_digest(known(first_model))


def test_a_model_from_a_file_is_digested_by_the_file_once(weights, folder, read, by_file):
    file = model_file(folder, 2)
    one, other = by_file(file), by_file(file)
    read()
    weights.weights_digest(one)
    assert read() == file.stat().st_size
    weights.weights_digest(one)
    weights.weights_digest(one.clone())
    weights.weights_digest(other)
    assert read() == 0


def test_without_a_file_every_parameter_is_read_once(weights, first_model, read):
    model = by_parameters(first_model)
    tensors = [*network_of(model).parameters(), *network_of(model).buffers()]
    read()
    weights.weights_digest(model)
    assert read() == sum(t.numel() * t.element_size() for t in tensors)
    weights.weights_digest(model.clone())
    assert read() == 0


def test_one_changed_weight_is_another_model(weights, first_model):
    one, other = (by_parameters(first_model) for _ in range(2))
    network_of(other).blocks[2].ffn[0].weight.data[3, 4] += 1e-3
    assert weights.weights_digest(one) != weights.weights_digest(other)


def test_a_file_that_may_have_been_replaced_since_it_was_loaded_does_not_tell(weights, folder, read, by_file):
    file = model_file(folder, 3)
    expected = weights.weights_digest(by_parameters(file))
    assert weights.weights_digest(sampling.load(file)) == expected, "no graph named it, and it is younger than this"
    loaded = by_file(file)
    export.write(architecture.build().state_dict(), file, architecture.METADATA)
    assert weights.weights_digest(loaded) == expected


def test_weights_that_a_node_changed_in_place_are_not_the_files(weights, first_model, by_file):
    """Of every parameter a few values are looked at: enough for whoever scales, merges or casts one."""
    found = {weights.weights_digest(by_file(first_model))}
    for name in ("blocks.2.ffn.0.weight", "blocks.0.self_attn.norm_q.weight", "head.head.bias"):
        changed = by_file(first_model)
        network_of(changed).get_parameter(name).data.mul_(1.01).add_(1e-3)
        found.add(weights.weights_digest(changed))
    assert len(found) == 4


def test_tensors_beside_the_state_dict_count(weights, first_model, known):
    """Packs keep scales as plain attributes, and buffers that are not saved."""

    def model(name: str = "", value: float = 0.0):
        made = known(first_model)
        layer = network_of(made).blocks[1].ffn[0]
        if name == "attribute":
            layer.scale = torch.full((3,), value)
        elif name == "buffer":
            layer.register_buffer("scale", torch.full((3,), value), persistent=False)
        return weights.weights_digest(made)

    found = [model(), model("attribute", 1.0), model("attribute", 2.0), model("buffer", 3.0)]
    assert len(set(found)) == len(found)
    assert model("attribute", 1.0) == found[1]


def test_the_same_numbers_in_another_kind_of_layer_are_another_model(weights, first_model):
    class Linear(torch.nn.Linear):
        pass

    one, other = (by_parameters(first_model) for _ in range(2))
    network_of(other).blocks[0].ffn[0].__class__ = Linear
    assert weights.weights_digest(one) != weights.weights_digest(other)


def test_how_a_file_is_loaded_counts(weights, first_model, by_file):
    import comfy.sd

    by_file(first_model)
    options = [{}, {"dtype": torch.float8_e4m3fn}, {"dtype": torch.float8_e5m2}]
    options.append({"dtype": torch.float8_e4m3fn, "fp8_optimizations": True})
    models = [comfy.sd.load_diffusion_model(str(first_model), model_options=o) for o in options]
    assert network_of(models[1]).blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    found = [weights.weights_digest(model) for model in models]
    assert len(set(found)) == len(found)
    again = comfy.sd.load_diffusion_model(str(first_model), model_options=dict(options[-1]))
    assert weights.weights_digest(again) == found[-1]


@pytest.mark.parametrize("why", ["another loader", "options of a pack", "file is gone"])
def test_where_the_file_does_not_tell_the_parameters_do(weights, first_model, folder, by_file, why):
    from comfy.sd import load_diffusion_model

    def of_a_pack(path):
        return sampling.load(path)

    expected = weights.weights_digest(by_parameters(first_model))
    other = by_file(first_model)
    other.cached_patcher_init = {
        "another loader": (of_a_pack, (str(first_model),)),
        "options of a pack": (load_diffusion_model, (str(first_model), {"custom_operations": object()})),
        "file is gone": (load_diffusion_model, (str(folder / "gone.safetensors"), {})),
    }[why]
    assert weights.weights_digest(other) == expected


def test_a_placeholder_among_the_parameters_is_not_understood(weights, first_model, pack_module):
    model = by_parameters(first_model)
    layer = network_of(model).blocks[0].ffn[0]
    layer.weight = torch.nn.Parameter(torch.empty(layer.weight.shape, device="meta"), requires_grad=False)
    with pytest.raises(pack_module("chorus.comfy.content").NotUnderstood, match="placeholder"):
        weights.weights_digest(model)


@pytest.fixture
def load_quantised(comfy_host, folder):
    """`load_quantised(seed)`: a model whose state dict holds placeholders, as ComfyUI-GGUF loads it."""
    import folder_paths

    import nodes

    loader = nodes.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]
    pack = importlib.import_module(loader.__module__)
    folder_paths.add_model_folder_path("unet_gguf", str(folder))

    def load(seed: int):
        torch.manual_seed(seed)
        pack.write(architecture.build().state_dict(), folder / f"model-{seed}.gguf", architecture.METADATA)
        folder_paths.filename_list_cache.clear()
        return loader().load_unet(f"model-{seed}.gguf")[0]

    return load


def test_a_model_whose_state_dict_holds_placeholders_is_told_apart_by_its_packed_weights(weights, load_quantised):
    one, same, other = load_quantised(0), load_quantised(0), load_quantised(1)
    placeholders = [t for t in network_of(one).state_dict().values() if t.is_meta]
    assert placeholders, "this model shows nothing"
    assert weights.weights_digest(one) == weights.weights_digest(same) != weights.weights_digest(other)
    layer = next(m for m in network_of(same).modules() if hasattr(getattr(m, "weight", None), "tensor_type"))
    changed = load_quantised(0)
    inside = dict(network_of(same).named_modules())
    name = next(name for name, module in inside.items() if module is layer)
    network_of(changed).get_submodule(name).weight.packed[0, 5] += 1
    assert weights.weights_digest(changed) != weights.weights_digest(one)


def test_a_quantised_weight_is_looked_at_as_it_lies_in_memory(weights, first_model, monkeypatch, by_file):
    """Unpacking every weight of a large model for a few values would take seconds."""
    from comfy.quant_ops import QuantizedTensor

    def model(scale: float):
        made = by_file(first_model)
        layer = network_of(made).blocks[0].ffn[0]
        packed = QuantizedTensor.from_float(layer.weight.data.float(), "TensorCoreFP8E4M3Layout", scale=scale)
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)
        return made

    unpacked = []
    inner = QuantizedTensor.dequantize
    monkeypatch.setattr(QuantizedTensor, "dequantize", lambda self: unpacked.append(self) or inner(self))
    found = {weights.weights_digest(model(scale)) for scale in (1.0, 2.0, 1.0)}
    assert len(found) == 2
    assert not unpacked


# -- while a LoRA lies on them ----------------------------------------------------------------------------------


def test_the_digest_of_the_weights_ignores_a_lora(weights, first_model, lora, known):
    plain = weights.weights_digest(known(first_model))
    assert weights.weights_digest(known(first_model, lora)) == plain


def test_the_digest_of_the_weights_ignores_a_lora_that_is_patched_in(weights, first_model, lora, known):
    plain = weights.weights_digest(known(first_model))
    patched = known(first_model, lora)
    before = network_of(patched).blocks[0].self_attn.q.weight.clone()
    load_onto_device(patched)
    # Otherwise this would not show anything: the weights in place are no longer the model's own.
    assert not torch.equal(network_of(patched).blocks[0].self_attn.q.weight.cpu(), before)
    assert weights.weights_digest(patched) == plain


def test_a_clone_without_the_lora_sees_the_same_weights_while_it_is_patched_in(weights, first_model, lora, known):
    import comfy.sd
    import comfy.utils

    base = known(first_model)
    patched, _ = comfy.sd.load_lora_for_models(base, None, comfy.utils.load_torch_file(str(lora)), 1.0, 0.0)
    load_onto_device(patched)
    plain = weights.weights_digest(known(first_model))
    assert weights.weights_digest(base) == plain


# -- LoRAs ------------------------------------------------------------------------------------------------------


def test_without_patches_there_is_no_digest_of_loras(weights, first_model):
    assert weights.lora_digest(sampling.load(first_model)) == ""


def test_the_digest_of_loras_is_equal_in_every_load(weights, first_model, lora):
    one, other = sampling.load(first_model, lora), sampling.load(first_model, lora)
    assert one.patches_uuid != other.patches_uuid
    assert weights.lora_digest(one) == weights.lora_digest(other) != ""


def test_the_digest_of_loras_is_the_same_when_they_are_patched_in(weights, first_model, lora):
    patched = sampling.load(first_model, lora)
    load_onto_device(patched)
    assert weights.lora_digest(patched) == weights.lora_digest(sampling.load(first_model, lora))


def test_strength_and_content_change_the_digest_of_loras(weights, folder, first_model, lora):
    variants = [
        sampling.load(first_model, lora),
        sampling.load(first_model, lora, 0.5),
        sampling.load(first_model, lora, -1.0),
        sampling.load(first_model, lora_file(folder, seed=1)),
        sampling.load(first_model, lora_file(folder, size=0.0501)),
    ]
    assert len({weights.lora_digest(v) for v in variants}) == len(variants)


def test_a_second_lora_changes_the_digest_of_loras(weights, folder, first_model, lora):
    import comfy.sd
    import comfy.utils

    one = sampling.load(first_model, lora)
    plain = weights.lora_digest(one)
    second = comfy.utils.load_torch_file(str(lora_file(folder, seed=1)))
    both, _ = comfy.sd.load_lora_for_models(one, None, second, 1.0, 0.0)
    assert weights.lora_digest(both) != plain == weights.lora_digest(one)


def test_a_lora_is_read_once_however_often_the_model_is_cloned(weights, first_model, lora, read):
    model = sampling.load(first_model, lora)
    weights.lora_digest(model)
    assert read() > 0
    weights.lora_digest(model)
    weights.lora_digest(model.clone())
    assert read() == 0


def test_a_patch_of_an_unknown_kind_is_not_understood(weights, first_model, pack_module):
    class Adapter:
        pass

    model = sampling.load(first_model)
    name = "diffusion_model.blocks.0.ffn.0.weight"
    model.add_patches({name: (Adapter(),)}, 1.0)
    assert model.patches[name]
    with pytest.raises(pack_module("chorus.comfy.content").NotUnderstood, match="Adapter"):
        weights.lora_digest(model)
