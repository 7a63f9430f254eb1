"""Encodings, sockets and latents that Chorus cannot use: sampled as without it, and told so."""

from __future__ import annotations

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, Graph, graph, node, plain

from . import odd_nodes
from .conftest import told
from .sampling_reference import evaluations, resumed, sampler_calls, state_at

MODES = ("read and write", "write only", "read only")


def zeroed(g: Graph) -> Graph:
    g["zero"] = node("ConditioningZeroOut", conditioning=["positive", 0])
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["zero", 0]
    return g


def with_positive(g: Graph, change) -> Graph:
    """The graph with a CONDITIONING that another pack's node made of the encoded prompt."""
    odd_nodes.given["positive"] = change
    g["changed"] = node("Conditioned", conditioning=["positive", 0], name="positive")
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["changed", 0]
    return g


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stages", [{}, {"masks": True, "tgaa": True}], ids=["stage 1", "all stages"])
def test_an_encoding_of_zeros(as_without_chorus, cache, mode, stages):
    for prompt in (RED, GREEN):
        result = as_without_chorus(zeroed(graph(prompt, cache=cache, mode=mode, **stages)))
        assert result.report["outcome"] in ("miss", "bypassed", "identical") and result.report["reason"] in told(result)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_prompt(as_without_chorus, run, cache, mode):
    run(graph(RED, cache=cache))
    result = as_without_chorus(graph("", cache=cache, mode=mode, masks=True, tgaa=True))
    assert result.report["outcome"] in ("miss", "bypassed")
    run(graph(RED, cache=cache, masks=True, tgaa=True))


def test_an_encoding_without_tokens_is_not_chorus_to_refuse(run, cache):
    """[1, 0, C]: whatever the host makes of it, the look-up and the store take it."""

    def emptied(g: Graph) -> Graph:
        return with_positive(g, lambda cond: [[tokens[:, :0], options] for tokens, options in cond])

    g = emptied(graph(RED, cache=cache, masks=True, tgaa=True))
    expected = run(plain(g)).latent
    result = run(g)
    assert torch.equal(torch.nan_to_num(result.latent), torch.nan_to_num(expected))
    assert result.report["outcome"] in ("miss", "bypassed")


@pytest.mark.parametrize("mode", MODES)
def test_only_the_required_sockets_of_the_look_up_are_wired(as_without_chorus, cache, mode):
    g = graph(RED, cache=cache, mode=mode, masks=True, tgaa=True)
    for socket in ("clip", "positive", "embedding"):
        del g["lookup"]["inputs"][socket]
    g["lookup"]["inputs"]["embedding"] = "auto"
    result = as_without_chorus(g)
    assert result.report["outcome"] in ("miss", "bypassed") and result.report["reason"] in told(result)


@pytest.mark.parametrize("embedding", ["open_clip", "clip socket", "conditioning"])
def test_a_way_of_embedding_that_is_not_open(as_without_chorus, cache, embedding):
    g = graph(RED, cache=cache)
    g["lookup"]["inputs"]["embedding"] = embedding
    for socket in ("clip", "positive"):
        del g["lookup"]["inputs"][socket]
    result = as_without_chorus(g)
    assert result.report["outcome"] in ("miss", "bypassed")
    assert "open_clip" in told(result) or "connect" in told(result).lower()


def doubled(cond: list) -> list:
    """[2, L, C]: the prompt's own encoding, and a weaker one."""
    return [[torch.cat([tokens, 0.5 * tokens]), options] for tokens, options in cond]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_positive_of_two_rows(as_without_chorus, run, cache, batch, cfg):
    def two(prompt: str, **settings) -> Graph:
        return with_positive(graph(prompt, cache=cache, batch=batch, cfg=cfg, **settings), doubled)

    with evaluations() as seen, sampler_calls() as calls:
        cold = as_without_chorus(two(RED, masks=True, tgaa=True))
    assert cold.report["outcome"] in ("miss", "bypassed")
    # With every stage it must run, and stage 1 alone must be the host's own run from the source's state.
    assert torch.isfinite(run(two(GREEN, masks=True, tgaa=True)).latent).all()
    hit = run(two(GREEN, k1=0.25))
    if hit.report["outcome"] == "hit":
        expected = run(resumed(two(GREEN), state_at(seen, calls[0][2]), calls[0][2:])).latent
        assert difference(hit.latent, expected) < 1e-3
    else:
        assert torch.equal(hit.latent, run(plain(two(GREEN))).latent)


def test_a_latent_of_several_streams(run, cache):
    """Core's node puts video and audio in one latent; the network is a function that takes any shape."""

    import comfy.latent_formats

    def any_shape(patcher) -> None:
        patcher.add_object_patch("latent_format", comfy.latent_formats.LatentFormat())
        patcher.set_model_unet_function_wrapper(lambda apply, args: 0.7 * args["input"])

    odd_nodes.given["any shape"] = any_shape

    def streams(prompt: str) -> Graph:
        g = graph(prompt, cache=cache, masks=True, tgaa=True)
        g["any"] = node("Patched", model=["model", 0], name="any shape")
        g["audio"] = node("EmptyLatentAudio", seconds=1.0, batch_size=1)
        g["both"] = node("LTXVConcatAVLatent", video_latent=["latent", 0], audio_latent=["audio", 0])
        for name in ("lookup", "stage1"):
            g[name]["inputs"]["model"] = ["any", 0]
        g["lookup"]["inputs"]["latent"] = g["sample"]["inputs"]["latent_image"] = ["both", 0]
        return g

    for prompt in (RED, GREEN):
        without = plain(streams(prompt))
        without["sample"]["inputs"]["model"] = ["any", 0]
        del without["keep"]
        without["keep"] = node("PreviewAny", source=["sample", 0])
        expected = run(without).latent.unbind()
        result = run(streams(prompt))
        assert len(expected) == 2
        assert all(torch.equal(a, b) for a, b in zip(result.latent.unbind(), expected, strict=True))
    assert result.report["outcome"] in ("miss", "bypassed") and result.report["reason"] in told(result)


@pytest.fixture
def half_precision(comfy_host):
    """ComfyUI as under --fp16-intermediates."""
    from comfy.cli_args import args

    before, args.fp16_intermediates = args.fp16_intermediates, True
    yield
    args.fp16_intermediates = before


def test_latents_in_half_precision_are_stored_and_served(half_precision, as_without_chorus, run, cache):
    cold = as_without_chorus(graph(RED, cache=cache, masks=True, tgaa=True))
    assert cold.latent.dtype == torch.float16
    assert "stored" in cold.summary
    again = run(graph(RED, cache=cache, masks=True, tgaa=True))
    assert again.report["outcome"] == "identical" and again.report["steps_computed"] == 0
    assert again.latent.dtype == torch.float16 and torch.equal(again.latent, cold.latent)
    hit = run(graph(GREEN, cache=cache, k1=0.25))
    assert (hit.report["outcome"], hit.report["k1"]) == ("hit", 2)
