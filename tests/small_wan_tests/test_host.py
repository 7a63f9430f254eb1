"""The small Wan as ComfyUI sees it: text encoder, VAE, model file, LoRA file. Weights here are random."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from small_wan import architecture, codec, distill, export, sampling, text_encoder

pytestmark = pytest.mark.usefixtures("comfy_host")

PROMPT = "A red circle, moving left over a navy background"


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    """A model with fresh weights whose head is not zero, so that it predicts something."""
    torch.manual_seed(0)
    model = architecture.build().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.05)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


@pytest.fixture(scope="module")
def model_file(comfy_host, trained, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("small_wan") / "model.safetensors"
    export.write(trained.state_dict(), file, architecture.METADATA)
    return file


@pytest.fixture
def plain_rope(monkeypatch):
    """`architecture.training_rope` for one test only: other tests sample with the host's own."""
    import comfy.ldm.wan.model as wan

    monkeypatch.setattr(wan, "apply_rope1", wan.apply_rope1)
    architecture.training_rope()


@pytest.fixture
def clip():
    from small_wan.nodes import load_clip

    return load_clip()


@pytest.fixture
def vae():
    from small_wan.nodes import CodecVAE

    videos = torch.rand(8, 4, 6, 8, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return CodecVAE(codec.fit(videos.numpy()))


def test_clip_text_encode_gives_the_training_encoding(clip):
    import nodes

    [[cond, extra]] = nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
    assert torch.equal(cond, text_encoder.encode(PROMPT))
    assert extra["pooled_output"] is None


def test_tokens_give_the_words_back(clip):
    tokens = clip.clone().tokenize(PROMPT)
    pairs = clip.tokenizer.untokenize(tokens["umt5xxl"][0])
    assert [word for _, word in pairs] == text_encoder.words(PROMPT)


def test_empty_prompt_encodes_to_zeros(clip):
    assert not clip.encode_from_tokens(clip.tokenize("")).any()


def test_clip_patch_reaches_the_encoding(clip):
    patched = clip.clone()
    assert patched.add_patches({"scale": (torch.ones(1),)}, 1.0) == ["scale"]
    tokens = clip.tokenize(PROMPT)
    assert torch.allclose(patched.encode_from_tokens(tokens), 2 * clip.encode_from_tokens(tokens))


def test_vae_decodes_one_image_a_latent_frame(vae):
    import nodes

    latent = vae.latent_format.process_out(torch.randn(2, 16, 4, 6, 8))
    images = nodes.VAEDecode().decode(vae, {"samples": latent})[0]
    assert images.shape == (8, 48, 64, 3)
    assert images.min() >= 0 and images.max() <= 1


def test_vae_round_trip_keeps_the_picture(vae):
    pixels = torch.rand(4, 6, 8, 3).repeat_interleave(8, 1).repeat_interleave(8, 2)
    latent = vae.encode(pixels)
    assert latent.shape == (1, 16, 4, 6, 8)
    assert torch.allclose(vae.decode(latent)[0], pixels, atol=1e-3)


def test_exported_model_loads_with_its_true_dimensions(model_file):
    model = sampling.load(model_file).model.diffusion_model
    assert (model.dim, model.num_heads, len(model.blocks)) == tuple(
        architecture.CONFIG[key] for key in ("dim", "num_heads", "num_layers")
    )
    assert model.text_embedding[0].in_features == text_encoder.DIM
    assert model_file.stat().st_size <= 12e6


def test_host_predicts_what_training_computes(model_file, trained, plain_rope, monkeypatch):
    x, context = torch.randn(2, 16, 4, 12, 12), torch.cat([text_encoder.encode(PROMPT)] * 2)
    timestep = torch.tensor([300.0, 900.0])
    expected = trained(x, timestep, context)
    monkeypatch.undo()
    loaded = sampling.load(model_file).model.diffusion_model
    assert torch.allclose(loaded(x, timestep, context), expected, atol=1e-5)


def test_batch_row_equals_the_same_prompt_alone(model_file):
    model = sampling.load(model_file)
    both = sampling.sample(model, [PROMPT, "a green cross"], [5, 6], steps=2, cfg=2.0)
    alone = sampling.sample(model, ["a green cross"], [6], steps=2, cfg=2.0)
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_lora_file_makes_the_host_the_student(model_file, tmp_path, plain_rope, monkeypatch, caplog):
    """Every factor is applied without a warning, and the host reaches the states the student trained on."""
    model = sampling.load(model_file)
    torch.manual_seed(3)
    student = distill.Student(model_file, rank=4, sigmas=sampling.sigmas(model, distill.STEPS))
    for name, factor in student.factors.items():
        factor.data = (factor + ("lora_B" in name) * 0.05 * torch.randn_like(factor)).detach().half().float()
    noise = sampling.noise([9])
    reached = student.reach(noise, torch.tensor([3]), text_encoder.encode(PROMPT))

    monkeypatch.undo()
    file = tmp_path / "lora.safetensors"
    export.write({distill.LORA_PREFIX + name: f.detach() for name, f in student.factors.items()}, file)
    with caplog.at_level(logging.WARNING):
        patched = sampling.load(model_file, file)
    assert not [r for r in caplog.records if "lora" in r.message.lower() or "NOT LOADED" in r.message]
    assert len(patched.patches) == len(student.factors) // 2 == 10 * architecture.CONFIG["num_layers"]
    seen = {}
    sampling.sample(patched, [PROMPT], [9], steps=4, callback=lambda i, _x0, x, _n: seen.update({i: x.clone()}))
    assert torch.allclose(seen[3], reached, atol=1e-4)
    plain = {}
    sampling.sample(model, [PROMPT], [9], steps=4, callback=lambda i, _x0, x, _n: plain.update({i: x.clone()}))
    assert not torch.allclose(plain[3], reached, atol=1e-3)


def test_distillation_resumes_and_learns(model_file, tmp_path, monkeypatch, capsys):
    import comfy.ldm.wan.model as wan

    monkeypatch.setattr(wan, "apply_rope1", wan.apply_rope1)
    monkeypatch.setattr(distill, "BATCH", 4)
    states, texts = distill.make_pairs(model_file, tmp_path, batches=1, cfg=1.0, seed=2)
    assert states.shape == (4, distill.STEPS + 1, *sampling.LATENT_SHAPE)
    assert len(texts) == 4
    again, _ = distill.make_pairs(model_file, tmp_path, batches=1, cfg=1.0, seed=2)
    assert torch.equal(states, again)

    sigmas = sampling.sigmas(sampling.load(model_file), distill.STEPS)
    student = distill.Student(model_file, rank=4, sigmas=sigmas)
    distill.train(student, states, texts, tmp_path, steps=2, seed=0)
    resumed = distill.Student(model_file, rank=4, sigmas=sigmas)
    distill.train(resumed, states, texts, tmp_path, steps=2, seed=0)
    assert all(torch.equal(resumed.factors[k], v) for k, v in student.factors.items())
    assert any(v.any() for k, v in resumed.factors.items() if "lora_B" in k)
    assert '"step": 2' in capsys.readouterr().out
