"""Another request's video served as "identical". Every test here fails on 300586d."""

from __future__ import annotations

import os
import shutil

import pytest
import safetensors.torch
from identity import files
from identity.conftest import assert_same
from identity.graphs import GREEN, LORA, MODEL, OTHER_LORA, SHIFT, in_cache, node, plain, request

from . import nodes_here


def _answers_like_plain(run, g, cache):
    expected = run(plain(g)).latent
    answer = run(in_cache(g, cache))
    assert_same(
        answer.latent, expected, f"outcome {answer.outcome!r}, {answer.steps_computed} steps computed, plain run"
    )


def _bypass(**kw):
    lora = node("LoraLoaderBypassModelOnly", lora_name="mine.safetensors", strength_model=1.0)
    return request({"shift": SHIFT, "lora": lora}, **kw)


@pytest.fixture
def lora_file(comfy_host):
    folder = comfy_host.base / "models" / "loras"

    def put(name):
        shutil.copyfile(folder / name, folder / "mine.safetensors")

    put.path = folder / "mine.safetensors"
    return put


@pytest.mark.parametrize("first_with_chorus", [True, False])
def test_a_bypass_lora_trained_anew_under_its_name_while_it_is_loaded(
    comfy_host, run, cache, lora_file, first_with_chorus
):
    """Core's LoraLoaderBypassModelOnly: v1 is loaded, the file becomes v2, the host goes on with v1."""
    lora_file(LORA)
    comfy_host.forget_outputs()
    first = in_cache(_bypass(prompt=GREEN, asked=GREEN), cache)
    run(first if first_with_chorus else plain(first), keep_nodes=True)
    lora_file(OTHER_LORA)
    g = _bypass()
    run(in_cache(g, cache), keep_nodes=True)  # sampled with v1, stored under v2's digest
    _answers_like_plain(run, g, cache)  # restart: v2 is loaded


def test_a_bypass_lora_replaced_by_one_of_the_same_size_and_time(run, cache, lora_file, comfy_host):
    """cp -p, rsync -t, a restored backup."""
    tensors, _ = files.read(comfy_host.base / "models" / "loras" / LORA)

    def write(scale):
        held = {name: t.clone().contiguous() for name, t in tensors.items()}
        held[min(held)] *= scale
        lora_file.path.write_bytes(safetensors.torch.save(held))

    write(1.0)
    before = lora_file.path.stat()
    run(in_cache(_bypass(), cache))
    write(-3.0)
    os.utime(lora_file.path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    _answers_like_plain(run, _bypass(), cache)


def test_a_patch_that_takes_its_number_from_the_hidden_prompt(run, cache):
    """As KJNodes' WidgetToString and "get widget value" nodes: another node's widget, without a link."""

    def asked(value):
        g = request(
            {"shift": SHIFT, "patch": node("FromPrompt", node="note")},
            extra={"note": node("PrimitiveFloat", value=value)},
        )
        return g

    run(in_cache(asked(1.0), cache))
    _answers_like_plain(run, asked(1.5), cache)


def test_a_pack_updated_between_two_runs(run, cache, monkeypatch):
    """The same class and widgets; the patch's code computes something else after the update and a restart."""
    g = request({"shift": SHIFT, "patch": node("GainPatch", gain=1.2)})
    run(in_cache(g, cache))

    def updated(self, kwargs):
        x = kwargs["x"]
        return x * self.gain * 1.3 if kwargs["transformer_options"].get("block_index") == 1 else x

    monkeypatch.setattr(nodes_here._Gain, "__call__", updated)
    _answers_like_plain(run, g, cache)


def test_dtypes_of_the_command_line_under_dynamic_memory(comfy_host, pack_module, monkeypatch):
    """--bf16-unet against --fp8_e4m3fn-unet: where the host moves weights in and out."""
    import comfy.cli_args
    import comfy.sd

    weights = pack_module("chorus.comfy.networks.weights")
    digests = []
    for option in ("bf16_unet", "fp8_e4m3fn_unet"):
        with monkeypatch.context() as m:
            m.setattr(comfy.cli_args.args, option, True)
            model = comfy.sd.load_diffusion_model(str(comfy_host.base / "models" / "diffusion_models" / MODEL))
        with monkeypatch.context() as m:
            m.setattr(type(model), "is_dynamic", lambda self: True)
            digests.append((model.model_dtype(), weights.weights_digest(model)))
    assert digests[0][0] != digests[1][0]
    assert digests[0][1] != digests[1][1]
