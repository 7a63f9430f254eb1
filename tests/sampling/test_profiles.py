"""Runs kept in each of the store node's precisions serve as they should, and weigh what they should."""

import pytest
import torch
from safetensors import safe_open

from .conftest import difference
from .graphs import GREEN, RED, graph, node

STEPS = 8


@pytest.fixture
def stored(pack_module):
    """`stored(cache)`: (the cache, its entries, oldest first)."""

    def open_it(name):
        cache = pack_module("chorus.comfy.caches").open_cache(name)
        return cache, cache.entries()[::-1]

    return open_it


def state_bytes(cache, entry) -> int:
    """Of the states as they lie in the file."""
    with safe_open(cache.cache._blobs.path(entry.id), "pt") as content:
        tensors = [content.get_tensor(n) for n in entry.tensor_names if n.startswith("checkpoint/")]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(("precision", "states", "least"), [("small", 4, 20), ("near-lossless", 9, 5)])
def test_compressed_states_are_that_much_smaller_than_fp16(run, cache, stored, precision, states, least):
    for name, kept in ((f"{cache}-fp16", "fp16"), (f"{cache}-coded", precision)):
        g = graph(cache=name, steps=20, precision=kept)
        g["store"]["inputs"]["keep"] = 0.75
        run(g)
    half, coded = (stored(f"{cache}-{kind}") for kind in ("fp16", "coded"))
    checkpoints = [[n for n in entries[0].tensor_names if "checkpoint" in n] for _, entries in (half, coded)]
    assert [len(names) for names in checkpoints] == [15, states]
    assert set(checkpoints[1]) < set(checkpoints[0])
    assert state_bytes(half[0], half[1][0]) > least * state_bytes(coded[0], coded[1][0])


@pytest.mark.parametrize("precision", ["small", "near-lossless"])
def test_a_compressed_run_resumed_at_any_k1_is_nearly_the_uninterrupted_one(run, cache, precision):
    """Between the kept states the clean component is interpolated, so a K1 that was not kept serves as well."""
    cold = run(graph(cache=cache, cfg=3.0, k1=0.0, precision=precision))
    for k1 in range(1, STEPS):
        resumed = run(graph(cache=cache, cfg=3.0, k1=k1 / STEPS, precision=precision))
        assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", k1)
        assert difference(resumed.latent, cold.latent) < 0.12


@pytest.mark.parametrize("precision", ["fp32", "fp16", "near-lossless", "small"])
def test_an_identical_request_gets_its_result_bit_for_bit(run, cache, precision):
    first = run(graph(cache=cache, cfg=3.0, precision=precision))
    again = run(graph(cache=cache, cfg=3.0, precision=precision))
    assert (again.report["outcome"], again.report["steps_computed"]) == ("identical", 0)
    assert again.latent.dtype == first.latent.dtype
    assert torch.equal(again.latent, first.latent)


def test_every_state_of_a_sampler_that_draws_noise_is_kept_and_near_lossless(run, cache, stored):
    cold = run(graph(cache=cache, sampler="lcm", k1=0.0, precision="small"))
    _, [entry] = stored(cache)
    coding = {n: c for n, c in entry.coding.items() if n.startswith("checkpoint/")}
    assert len(coding) == STEPS - 1  # all but the first, with keep=1.0 in these graphs
    assert set(coding.values()) == {"dct/0.03"}
    resumed = run(graph(cache=cache, sampler="lcm", k1=3 / STEPS, precision="small"))
    assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", 3)
    assert 0.7 < float(resumed.latent.std() / cold.latent.std()) < 1.4


def test_a_hit_decodes_only_the_states_it_starts_from(run, cache, pack_module, monkeypatch):
    run(graph(RED, cache=cache, steps=20, precision="small"))
    codec = pack_module("chorus.cache.codec")
    decoded, decode = [], codec.decode
    monkeypatch.setattr(codec, "decode", lambda *given: decoded.append(given[1].coding) or decode(*given))
    hit = run(graph(GREEN, cache=cache, steps=20, k1=0.3, precision="small", mode="read only"))
    assert (hit.report["outcome"], hit.report["k1"]) == ("hit", 6)
    assert sorted(coding[:3] for coding in decoded) == ["dct", "dct", "row", "row"]  # σ_6 lies between σ_4 and σ_9


def test_words_masks_and_preview_survive_compression(run, cache, stored, comfy_host, pack_module):
    """The same words differ and the same tokens are masked as with an uncompressed source."""
    plans = {}
    for precision in ("fp32", "small"):
        g = graph(RED, cache=f"{cache}-{precision}", steps=20, precision=precision)
        g["decode"] = node("SmallWanVAELoader")
        g["frames"] = node("VAEDecode", samples=["sample", 0], vae=["decode", 0])
        g["store"]["inputs"]["frames"] = ["frames", 0]
        run(g)
        opened, [entry] = stored(f"{cache}-{precision}")
        assert opened.preview(entry.id)[8:12] == b"WEBP"
        frames = opened.load(entry.id, ["preview"])["preview"].float() / 255
        video = pack_module("chorus.comfy.store").preview(comfy_host.output("frames")[0][0]).float() / 255
        assert frames.shape == video.shape
        assert (frames - video).abs().mean() < 0.03
        hit = run(graph(GREEN, cache=f"{cache}-{precision}", steps=20, masks=True, tgaa=True, mode="read only"))
        assert hit.report["outcome"] == "hit"
        plans[precision] = comfy_host.output("srd")[0][0], hit.report["tokens"]
    assert [word for word, _ in plans["small"][1]] == [word for word, _ in plans["fp32"][1]] != []
    regions_of = pack_module("chorus.comfy.techniques.selective").regions_of
    masks = [regions_of(plan).base for plan, _ in plans.values()]
    assert (masks[0] ^ masks[1]).float().mean() < 0.02
