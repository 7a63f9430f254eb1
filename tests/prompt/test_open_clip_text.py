"""The open_clip text tower, with the real architecture and random weights in a file."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch

from chorus.prompt.embedding import OpenClipEmbedder

MODEL = "ViT-S-32-alt"  # the smallest text tower open_clip has with CLIP's tokenizer
LONG = "A red circle moves left over a black background, slowly and steadily. " * 12


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    open_clip = pytest.importorskip("open_clip", exc_type=Exception)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "clip.pt"
    torch.save(open_clip.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def embedder(weights):
    return OpenClipEmbedder(MODEL, weights)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_prompt_becomes_a_unit_vector_named_by_model_and_weights(embedder, weights):
    one, same = embedder("a red circle"), OpenClipEmbedder(MODEL, str(weights))("a red circle")
    assert one.embedder == same.embedder == embedder.name
    assert one.embedder.startswith(f"open_clip:{MODEL}/") and "clip.pt" not in one.embedder
    assert one.vector.dtype == np.float32 and np.linalg.norm(one.vector) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(one.vector, same.vector, atol=1e-6)


def test_a_short_prompt_gets_the_towers_own_vector(embedder, weights):
    open_clip = pytest.importorskip("open_clip", exc_type=Exception)
    model = open_clip.create_model(MODEL, pretrained=str(weights)).eval()
    with torch.inference_mode():
        own = model.encode_text(open_clip.get_tokenizer(MODEL)(["a red circle"]), normalize=True)[0]
    np.testing.assert_allclose(embedder("a red circle").vector, own, atol=1e-5)


def test_a_word_beyond_the_context_still_counts(embedder):
    one, other = embedder(LONG + "A cat watches."), embedder(LONG + "A dog watches.")
    assert one.vector @ other.vector < 1 - 1e-6
    assert np.linalg.norm(one.vector) == pytest.approx(1, abs=1e-6)


def test_empty_prompts_have_a_vector(embedder):
    assert np.isfinite(embedder("").vector).all() and np.isfinite(embedder("  \n").vector).all()


def test_available_says_nothing_when_the_weights_are_there(weights):
    assert OpenClipEmbedder.available(MODEL, weights) is None


def test_missing_weights_are_named_and_never_downloaded(weights, no_network, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    reason = OpenClipEmbedder.available()
    assert "laion2b_s34b_b79k" in reason and "not on this machine" in reason
    assert "nowhere.pt" in OpenClipEmbedder.available(MODEL, tmp_path / "nowhere.pt")
    with pytest.raises(RuntimeError, match="not on this machine"):
        OpenClipEmbedder()


def test_weights_in_the_hugging_face_cache_are_found(weights, no_network, tmp_path, monkeypatch):
    from huggingface_hub import try_to_load_from_cache

    snapshot = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda *names: try_to_load_from_cache(*names, cache_dir=tmp_path),
    )
    assert OpenClipEmbedder.available() is None
    assert OpenClipEmbedder.default_weights_cached()


def test_the_quick_look_knows_open_clips_own_names():
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    from chorus.prompt import open_clip_text as module

    settings = open_clip.get_pretrained_cfg(module.MODEL, module.PRETRAINED)
    assert settings["hf_hub"].rstrip("/") == module.REPOSITORY
    assert module.FILES == (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)


def test_models_that_need_a_hub_or_do_not_exist_are_refused_in_a_line(weights, no_network):
    assert "ViT-B-16-SigLIP" in OpenClipEmbedder.available("ViT-B-16-SigLIP", weights)
    assert "'hf-hub:some/model'" in OpenClipEmbedder.available("hf-hub:some/model", weights)


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("chorus.prompt.open_clip_text.find_spec", lambda name: None)
    assert OpenClipEmbedder.available() == "open_clip is not installed: pip install open_clip_torch"
