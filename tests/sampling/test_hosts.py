"""The ways people sample: samplers' nodes, batches, other patches on the same model."""

import pytest
import torch
from safetensors.torch import save_file

from .conftest import difference
from .graphs import GREEN, RED, graph, node


@pytest.fixture(scope="session")
def lora(comfy_host):
    """The file name of a small random LoRA for the small Wan."""
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for block in range(5):
        key = f"diffusion_model.blocks.{block}.self_attn.q"
        weights[f"{key}.lora_A.weight"] = torch.randn(4, 192, generator=generator) * 0.2
        weights[f"{key}.lora_B.weight"] = torch.randn(192, 4, generator=generator) * 0.2
    folder = comfy_host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "test_random.safetensors")
    return "test_random.safetensors"


def with_lora(g, lora: str, strength: float):
    g["lora"] = node("LoraLoaderModelOnly", model=["unet", 0], lora_name=lora, strength_model=strength)
    g["model"]["inputs"]["model"] = ["lora", 0]
    return g


def split_in_two(g, at: int):
    """The schedule shared by two samplers, as for two experts."""
    return split_at(g, at)


def split_at(g, *at: int):
    """The schedule shared by several samplers, the first of them "high" and the last one "sample"."""
    whole = g.pop("sample")["inputs"]
    names = ["high", *(f"middle {k}" for k in range(len(at) - 1)), "sample"]
    for number, name in enumerate(names):
        first, last = number == 0, number == len(at)
        g[name] = node(
            "KSamplerAdvanced",
            model=whole["model"],
            latent_image=whole["latent_image"] if first else [names[number - 1], 0],
            add_noise="enable" if first else "disable",
            start_at_step=0 if first else at[number - 1],
            end_at_step=10000 if last else at[number],
            return_with_leftover_noise="disable" if last else "enable",
            noise_seed=whole["seed"],
            **{key: whole[key] for key in ("steps", "cfg", "sampler_name", "scheduler", "positive", "negative")},
        )
    return g


def custom_advanced(g):
    whole = g["sample"]["inputs"]
    g["noise"] = node("RandomNoise", noise_seed=whole["seed"])
    g["guider"] = node(
        "CFGGuider",
        model=whole["model"],
        positive=whole["positive"],
        negative=whole["negative"],
        cfg=whole["cfg"],
    )
    g["which"] = node("KSamplerSelect", sampler_name=whole["sampler_name"])
    g["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=whole["steps"], denoise=1.0)
    g["sample"] = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["which", 0],
        sigmas=["sigmas", 0],
        latent_image=whole["latent_image"],
    )
    return g


def easycache(g):
    g["easycache"] = node(
        "EasyCache",
        model=["stage3", 0],
        reuse_threshold=0.2,
        start_percent=0.15,
        end_percent=0.95,
        verbose=False,
    )
    g["sample"]["inputs"]["model"] = ["easycache", 0]
    return g


def test_batch_of_two(run, cache):
    cold = run(graph(RED, cache=cache, batch=2, cfg=3.0, k1=0.0))
    own = run(graph(RED, cache=cache, batch=2, cfg=3.0, k1=0.5))
    assert own.report["k1"] == 4 and difference(own.latent, cold.latent) < 1e-5
    hit = run(graph(GREEN, cache=cache, batch=2, cfg=3.0, masks=True, tgaa=True))
    assert hit.report["outcome"] == "hit" and torch.isfinite(hit.latent).all()
    single = run(graph(GREEN, cache=cache, batch=1))
    assert single.report["outcome"] == "miss" and "other shape" in single.report["reason"]


def test_ksampler_advanced_in_two_parts_is_one_request(run, cache):
    whole = run(graph(RED, cache=cache, k1=0.0))
    parts = run(split_in_two(graph(RED, cache=f"{cache}-b", k1=0.0), at=4))
    assert difference(parts.latent, whole.latent) < 1e-5
    assert (parts.report["outcome"], parts.report["steps"], parts.report["steps_computed"]) == ("miss", 8, 8)
    resumed = run(split_in_two(graph(RED, cache=f"{cache}-b", k1=0.25), at=4))
    assert (resumed.report["k1"], resumed.report["steps_computed"]) == (2, 6)
    assert difference(resumed.latent, whole.latent) < 1e-5


def test_the_first_expert_is_never_sampled_when_k1_passes_the_boundary(run, cache, comfy_host, monkeypatch):
    cold = run(split_in_two(graph(RED, cache=cache, k1=0.0), at=3))
    import comfy.samplers

    sampled = []
    inner = comfy.samplers.CFGGuider.inner_sample

    def counting(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs):
        sampled.append(len(sigmas) - 1)
        return inner(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers.CFGGuider, "inner_sample", counting)
    hit = run(split_in_two(graph(RED, cache=cache, k1=0.5), at=3))
    assert sampled == [5]  # the second part only, which itself starts at step 4
    assert (hit.report["k1"], hit.report["steps_computed"]) == (4, 4)
    assert difference(hit.latent, cold.latent) < 1e-5


def test_two_experts_with_different_weights(run, cache, comfy_host, pack_module, lora):
    """The low-noise expert is another model; the look-up knows both."""

    def experts(prompt, **kw):
        g = split_in_two(graph(prompt, cache=cache, **kw), at=4)
        g["low"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name=lora, strength_model=0.5)
        g["lookup"]["inputs"]["low_noise_model"] = ["low", 0]
        g["low1"] = node(**{"class_type": "ChorusStage1Reuse"}, **{**g["stage1"]["inputs"], "model": ["low", 0]})
        g["low3"] = node(
            **{"class_type": "ChorusStage3Refine"},
            **{**g["stage3"]["inputs"], "model": ["low1", 0], "chorus": ["low1", 1]},
        )
        g["sample"]["inputs"]["model"] = ["low3", 0]
        return g

    cold = run(experts(RED, k1=0.0))
    assert cold.report["outcome"] == "miss" and "stored" in cold.summary
    hit = run(experts(GREEN, k1=0.25))
    assert (hit.report["outcome"], hit.report["k1"], hit.report["steps_computed"]) == ("hit", 2, 6)
    newest, oldest = pack_module("chorus.comfy.caches").open_cache(cache).entries()
    assert (newest.parent, newest.is_source, oldest.is_source) == (oldest.id, False, True)


def test_sampler_custom_advanced(run, cache):
    cold = run(custom_advanced(graph(RED, cache=cache, cfg=3.0, k1=0.0)))
    resumed = run(custom_advanced(graph(RED, cache=cache, cfg=3.0, k1=0.5)))
    assert (resumed.report["outcome"], resumed.report["steps_computed"]) == ("hit", 4)
    assert difference(resumed.latent, cold.latent) < 1e-5


def test_with_easycache_on_the_same_model(run, cache):
    cold = run(easycache(graph(RED, cache=cache, steps=20, k1=0.0)))
    assert cold.report["steps_computed"] < 20  # EasyCache skipped some
    # In fp32 EasyCache changes the sampler's own latent, which is its loss without Chorus, too.
    assert torch.equal(cold.latent, run(easycache(graph(RED, cache=cache, steps=20, mode="off"))).latent)
    run(graph(RED, cache=f"{cache}-b", steps=20))
    hit = run(easycache(graph(GREEN, cache=f"{cache}-b", steps=20, masks=True, tgaa=True)))
    assert hit.report["outcome"] == "hit"
    assert 3 <= hit.report["steps_computed"] < 20 - hit.report["k1"]
    assert hit.report["token_share"] == [] and "EasyCache" in " ".join(hit.report["notes"])
    whole = run(graph(GREEN, cache=f"{cache}-b", steps=20, tgaa=True))
    assert difference(hit.latent, whole.latent) < 0.3  # EasyCache's own loss, and no more


def test_a_lora_is_another_space_and_so_is_its_strength(run, cache, lora):
    run(graph(RED, cache=cache))
    first = run(with_lora(graph(RED, cache=cache), lora, 0.5))
    assert first.report["outcome"] == "miss" and "other LoRAs or model patches" in first.report["reason"]
    other = run(with_lora(graph(RED, cache=cache), lora, 0.6))
    assert other.report["outcome"] == "miss" and "other LoRAs or model patches" in other.report["reason"]
    same = run(with_lora(graph(GREEN, cache=cache), lora, 0.5))
    assert same.report["outcome"] == "hit"


def test_a_lora_behind_the_look_up_is_noticed(run, cache, lora):
    run(graph(RED, cache=cache))
    g = graph(GREEN, cache=cache)
    g["lora"] = node("LoraLoaderModelOnly", model=["stage3", 0], lora_name=lora, strength_model=0.5)
    g["sample"]["inputs"]["model"] = ["lora", 0]
    untouched = run(g)
    assert untouched.report["outcome"] == "bypassed" and "LoRAs are not those" in untouched.summary
    cold = run(with_lora(graph(GREEN, cache=cache, mode="off"), lora, 0.5))
    assert torch.equal(untouched.latent, cold.latent)


def test_another_shift_is_the_same_space(run, cache):
    run(graph(RED, cache=cache))
    g = graph(GREEN, cache=cache, k1=0.25)
    g["model"]["inputs"]["shift"] = 3.0
    hit = run(g)
    assert hit.report["outcome"] == "hit" and torch.isfinite(hit.latent).all()


def test_a_context_window_node(run, cache):
    def windows(g):
        g["windows"] = node(
            "ContextWindowsManual",
            model=["stage3", 0],
            context_length=3,
            context_overlap=1,
            context_schedule="standard_static",
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=2,
            freenoise=False,
            cond_retain_index_list="",
            split_conds_to_windows=False,
            latent_retain_index_list="",
            causal_window_fix=False,
        )
        g["sample"]["inputs"]["model"] = ["windows", 0]
        return g

    cold = run(windows(graph(RED, cache=cache, k1=0.0)))
    resumed = run(windows(graph(RED, cache=cache, k1=0.5)))
    assert (resumed.report["outcome"], resumed.report["k1"]) == ("hit", 4)
    assert difference(resumed.latent, cold.latent) < 1e-5
    hit = run(windows(graph(GREEN, cache=cache, masks=True)))
    assert hit.report["outcome"] == "hit" and hit.report["token_share"] == []


def test_a_noise_mask_bypasses_chorus(run, cache):
    def masked(g):
        g["half"] = node("SolidMask", value=1.0, width=48, height=96)
        g["set"] = node("SetLatentNoiseMask", samples=["latent", 0], mask=["half", 0])
        g["sample"]["inputs"]["latent_image"] = ["set", 0]
        return g

    run(graph(RED, cache=cache))
    bypassed = run(masked(graph(GREEN, cache=cache)))
    plain = run(masked(graph(GREEN, cache=cache, mode="off")))
    assert bypassed.report["outcome"] == "bypassed" and "noise mask" in bypassed.summary
    assert torch.equal(bypassed.latent, plain.latent)


def test_progress_counts_the_whole_schedule(run, cache, comfy_host, monkeypatch):
    import comfy.utils

    run(graph(RED, cache=cache))
    seen = []
    monkeypatch.setattr(
        comfy.utils.ProgressBar,
        "update_absolute",
        lambda self, value, total=None, preview=None: seen.append((value, total)),
    )
    hit = run(graph(GREEN, cache=cache, k1=0.25, masks=True))
    assert seen == [(step + 1, 8) for step in range(hit.report["k1"], 8)]


@pytest.mark.parametrize("denoise", [0.6])
def test_partial_denoise_of_an_empty_latent(run, cache, denoise):
    def partly(g):
        g["sample"]["inputs"]["denoise"] = denoise
        return g

    cold = run(partly(graph(RED, cache=cache, k1=0.0)))
    resumed = run(partly(graph(RED, cache=cache, k1=0.8)))
    assert resumed.report["outcome"] == "hit" and resumed.report["k1"] > 0
    assert difference(resumed.latent, cold.latent) < 1e-5
