"""Other packs' patches, reference tokens and context windows beside Chorus."""

from __future__ import annotations

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, Graph, graph, node, plain
from sampling.test_regions import masked

from . import odd_nodes
from .conftest import told
from .sampling_reference import block_lengths, evaluations, patched, resumed, sampler_calls, state_at

GRID = (4, 6, 6)
TOKENS = 144
BOX = [(32, 32, 64, 64)]  # 2 × 2 of 6 × 6 tokens a frame; with one around them 4 × 4
VISIBLE = 64


# -- patches that need every token of the grid --------------------------------------------------------------------


def _per_frame(x: torch.Tensor, options: dict) -> torch.Tensor:
    frames, height, width = (int(n) for n in options["grid_sizes"])
    return x * torch.linspace(0.9, 1.1, frames).repeat_interleave(height * width)[None, :, None].to(x)


def speech_after_cross_attention(patcher) -> None:
    """As core's WanInfiniteTalkToVideo: adds to each frame's tokens what is spoken in it."""
    patcher.set_model_patch(lambda args: _per_frame(args["x"], args["transformer_options"]), "attn2_patch")


def frames_after_self_attention(patcher) -> None:
    """As packs that enhance a video by how much its frames look at each other."""

    def enhance(args: dict) -> torch.Tensor:
        x, grid = args["x"], args["transformer_options"]["grid_sizes"]
        frames = x.unflatten(1, tuple(int(n) for n in grid))
        return (frames + 0.1 * frames.mean((2, 3), keepdim=True)).flatten(1, 3)

    patcher.set_model_patch(enhance, "attn1_patch")


def neighbours_without_a_look_at_the_length(patcher) -> None:
    """Mixes each token with the one a row below: runs with fewer tokens too, and is then wrong without an error."""
    patcher.set_model_patch(lambda args: 0.9 * args["x"] + 0.1 * args["x"].roll(GRID[2], 1), "attn1_patch")


def attention_of_nearby_frames(patcher) -> None:
    """As sparse attention: an override that knows where each token lies."""

    def override(func, q, k, v, *args, **kwargs):
        if q.shape[1] != k.shape[1]:
            return func(q, k, v, *args, **kwargs)
        frames, height, width = GRID
        batch, tokens, _ = q.shape
        frame = torch.arange(frames).repeat_interleave(height * width)
        near = (frame[:, None] - frame[None, :]).abs() <= 1
        return func(q, k, v, *args, **{**kwargs, "mask": near[None].expand(batch, tokens, tokens)})

    patcher.model_options["transformer_options"]["optimized_attention_override"] = override


WHOLE_GRID = (
    speech_after_cross_attention,
    frames_after_self_attention,
    neighbours_without_a_look_at_the_length,
    attention_of_nearby_frames,
)


@pytest.mark.parametrize("patch", WHOLE_GRID, ids=lambda patch: patch.__name__)
def test_a_patch_that_needs_the_whole_grid_gets_it(as_without_chorus, run, comfy_host, cache, patch):
    def g(prompt: str, **settings) -> Graph:
        return patched(graph(prompt, cache=cache, **settings), patch)

    cold = as_without_chorus(g(RED, tgaa=True))
    assert cold.report["outcome"] == "miss"
    full = run(g(GREEN, k1=0.25, k2=0.25))
    hit = run(masked(g(GREEN, k1=0.25, k2=0.75), BOX, comfy_host, visible=1))
    assert (hit.report["outcome"], hit.report["k1"]) == ("hit", 2)
    assert hit.report["step_equivalents"] == 6 and all(share == 1.0 for share in hit.report["token_share"])
    assert hit.report["notes"], "nothing is said about the selective steps that are full ones"
    assert torch.equal(hit.latent, full.latent)


# -- guidance in cross-attention ----------------------------------------------------------------------------------


class _Guided:
    """Cross-attention that splits the batch at CFG > 1 and guides the positive rows, as KJNodes' WanVideoNAG does."""

    def __init__(self, module: torch.nn.Module, negative: torch.Tensor) -> None:
        self.module, self.negative = module, negative

    def __call__(self, x, context, transformer_options=None, **_kwargs):
        from comfy.ldm.modules.attention import optimized_attention

        attention, options = self.module, transformer_options or {}
        order = options.get("cond_or_uncond", [0])
        each = x.shape[0] // len(order)
        out = []
        for index, kind in enumerate(order):
            rows = slice(index * each, (index + 1) * each)
            q = attention.norm_q(attention.q(x[rows]))

            def look_at(text, q=q):
                k, v = attention.norm_k(attention.k(text)), attention.v(text)
                return optimized_attention(q, k, v, heads=attention.num_heads, transformer_options=options)

            seen = look_at(context[rows])
            if kind == 0:
                other = look_at(self.negative.to(x).expand(each, -1, -1))
                seen = seen + 0.5 * (seen - other)
            out.append(seen)
        return attention.o(torch.cat(out))


def guided_cross_attention(patcher) -> None:
    network = patcher.get_model_object("diffusion_model")
    text = torch.randn(1, 32, 256, generator=torch.Generator().manual_seed(5))
    negative = network.text_embedding(text.to(network.patch_embedding.weight.dtype))
    for index, block in enumerate(network.blocks):
        key = f"diffusion_model.blocks.{index}.cross_attn.forward"
        patcher.add_object_patch(key, _Guided(block.cross_attn, negative))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_guided_cross_attention_is_a_source_and_a_hit(as_without_chorus, run, cache, cfg):
    def g(prompt: str, **settings) -> Graph:
        return patched(graph(prompt, cache=cache, cfg=cfg, **settings), guided_cross_attention)

    with evaluations() as seen, sampler_calls() as calls:
        cold = as_without_chorus(g(RED, masks=True, tgaa=True))
    assert cold.report["outcome"] == "miss" and "recording failed" not in told(cold)
    hit = run(g(GREEN, k1=0.25))
    assert (hit.report["outcome"], hit.report["k1"]) == ("hit", 2)
    expected = run(resumed(g(GREEN), state_at(seen, calls[0][2]), calls[0][2:])).latent
    assert difference(hit.latent, expected) < 1e-3
    loud = run(g(GREEN, masks=True, tgaa=True, k1=0.25, k2=0.75))
    assert loud.report["outcome"] == "hit" and 0.7 < float(loud.latent.std() / expected.std()) < 1.4


def test_cores_guidance_after_self_attention(as_without_chorus, run, comfy_host, cache):
    """Core's NAGuidance takes the rows of a batch apart by `cond_or_uncond`; Wan does not call it, but others do."""

    def g(prompt: str, **settings) -> Graph:
        made = graph(prompt, cache=cache, cfg=3.0, **settings)
        made["nag"] = node("NAGuidance", model=["unet", 0], nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
        made["model"]["inputs"]["model"] = ["nag", 0]
        return made

    as_without_chorus(g(RED, masks=True, tgaa=True))
    hit = run(masked(g(GREEN, tgaa=True, k1=0.25, k2=0.75), BOX, comfy_host, visible=1))
    assert hit.report["outcome"] == "hit" and torch.isfinite(hit.latent).all()


# -- tokens beside the video's own --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_reference_tokens(comfy_host) -> str:
    """The small Wan with the layer that models of the Fun Control family have for a reference picture."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    folder = comfy_host.base / "models" / "diffusion_models"
    original = folder / "small_wan_t2v.safetensors"
    with safe_open(original, "pt") as file:
        metadata = file.metadata() or {}
    tensors, generator = load_file(original), torch.Generator().manual_seed(3)
    width = tensors["patch_embedding.bias"].shape[0]
    tensors["ref_conv.weight"] = (torch.randn(width, 16, 2, 2, generator=generator) * 0.1).half()
    tensors["ref_conv.bias"] = torch.zeros(width).half()
    save_file(tensors, folder / "reference.safetensors", metadata)
    return "reference.safetensors"


def _reference(g: Graph, kind: str, file: str) -> Graph:
    """The graph with 36 reference tokens, in one of the ways that the host's nodes make them."""
    g["vae"] = node("SmallWanVAELoader")
    g["picture"] = node("EmptyImage", width=96, height=96, batch_size=1, color=0x3366CC)
    if kind == "phantom":
        size = {"width": 96, "height": 96, "length": 13, "batch_size": 1}
        both = {"positive": ["positive", 0], "negative": ["negative", 0]}
        g["changed"] = node("WanPhantomSubjectToVideo", vae=["vae", 0], images=["picture", 0], **size, **both)
    elif kind == "fun control":
        g["unet"]["inputs"]["unet_name"] = file
        g["encoded"] = node("VAEEncode", pixels=["picture", 0], vae=["vae", 0])
        g["changed"] = node("ReferenceLatent", conditioning=["positive", 0], latent=["encoded", 0])
    else:
        latent = torch.randn(1, 16, 1, 12, 12, generator=torch.Generator().manual_seed(4))
        added = {"context_latents": [latent]}
        odd_nodes.given["reference"] = lambda cond: [[tokens, {**options, **added}] for tokens, options in cond]
        g["changed"] = node("Conditioned", conditioning=["positive", 0], name="reference")
    for name in ("lookup", "sample"):
        g[name]["inputs"]["positive"] = ["changed", 0]
    return g


@pytest.mark.parametrize("kind", ["phantom", "fun control", "bernini"])
def test_reference_tokens_stay_and_do_not_count(as_without_chorus, run, comfy_host, cache, with_reference_tokens, kind):
    def g(prompt: str, **settings) -> Graph:
        return _reference(graph(prompt, cache=cache, **settings), kind, with_reference_tokens)

    with block_lengths() as lengths:
        cold = as_without_chorus(g(RED))
    assert set(lengths) == {TOKENS + 36}
    assert cold.report["outcome"] == "miss" and cold.report["steps_computed"] == 8
    assert cold.report["step_equivalents"] == 8
    full = run(g(GREEN, k1=0.25, k2=0.25))
    assert (full.report["outcome"], full.report["step_equivalents"]) == ("hit", 6)
    with block_lengths() as lengths:
        hit = run(masked(g(GREEN, k1=0.25, k2=0.5), BOX, comfy_host, visible=1))
    assert (hit.report["outcome"], hit.report["k1"]) == ("hit", 2)
    if set(lengths) == {TOKENS + 36}:  # full steps: then really, and said
        assert hit.report["notes"] and hit.report["step_equivalents"] == 6
        assert torch.equal(hit.latent, full.latent)
    else:
        assert set(lengths) == {TOKENS + 36, VISIBLE + 36}
        assert hit.report["step_equivalents"] == pytest.approx(5 + VISIBLE / TOKENS, abs=0.2)


@pytest.mark.parametrize("kind", ["phantom", "fun control", "bernini"])
def test_reference_tokens_enter_every_step_after_a_look(
    run, comfy_host, cache, with_reference_tokens, kind, pack_module, monkeypatch
):
    """Keys and values stand for the video's tokens that are left out, and for no others."""
    shared, attended = pack_module("chorus.comfy.networks.tokens").SelfAttention, set()
    inner = shared.__call__

    def watched(self, block, k, v):
        keys = inner(self, block, k, v)
        attended.add((k.shape[1], keys[0].shape[1], keys[1].shape[1]))
        return keys

    monkeypatch.setattr(shared, "__call__", watched)

    def g(prompt: str) -> Graph:
        return _reference(graph(prompt, cache=cache, steps=4, start=0.0), kind, with_reference_tokens)

    run(g(RED))
    with block_lengths() as lengths:
        hit = run(masked(g(GREEN), BOX, comfy_host, visible=0))
    inside, every = 4 * 2 * 2 + 36, TOKENS + 36
    assert hit.report["outcome"] == "hit" and hit.report["looked"] == pytest.approx(16 / TOKENS, abs=1e-4)
    assert torch.isfinite(hit.latent).all()
    if set(lengths) == {every}:
        assert any("no selective steps" in note for note in hit.report["notes"])
    else:
        assert set(lengths) == {every, inside}
        assert attended == {(every, every, every), (inside, every, every)}


# -- the schedule as others see it --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, 0.2, 1.0, "look"], ids=["calibrated start", "at 20 %", "at K1", "look"])
@pytest.mark.parametrize("selective", [False, True], ids=["full", "selective"])
def test_every_sigma_lies_where_sample_sigmas_says(run, comfy_host, cache, start, selective):
    """Packs look their step up in `sample_sigmas`: it holds the path that is walked."""
    seen: list[tuple[float, tuple[float, ...]]] = []

    def looking(patcher) -> None:
        def wrapper(apply, args):
            options = args["c"]["transformer_options"]
            seen.append((float(args["timestep"][0]), tuple(float(s) for s in options["sample_sigmas"])))
            return apply(args["input"], args["timestep"], **args["c"])

        patcher.set_model_unet_function_wrapper(wrapper)

    def g(prompt: str, **settings) -> Graph:
        return patched(graph(prompt, cache=cache, **settings), looking)

    run(g(RED))
    seen.clear()
    looks = start == "look"
    if looks:
        asked = g(GREEN, start=0.0, k1=None if selective else 0.5)
    else:
        asked = g(GREEN, k1=0.5, k2=0.75, start=start, method="early start")
    hit = run(masked(asked, BOX, comfy_host, visible=0 if looks else 1) if selective else asked)
    assert (hit.report["outcome"], hit.report["looked"] is not None) == ("hit", looks)
    # A wrapper around the model may use the whole picture, so a look leaves no token out: steps are skipped.
    assert hit.report["steps_computed"] == len(seen) == (5 if selective and looks else 4)
    [walked] = {sigmas for _, sigmas in seen}
    steps = len(walked) - 1
    assert list(walked) == sorted(walked, reverse=True)
    # With a look, the steps between the first one and K1 are skipped.
    asked_at = [walked[0], *walked[9 - len(seen) : 8]] if looks else walked[steps - len(seen) : steps]
    assert [sigma for sigma, _ in seen] == pytest.approx(asked_at, abs=1e-4)


def test_a_context_window_that_depends_on_the_step(run, cache):
    def g(prompt: str, **settings) -> Graph:
        made = graph(prompt, cache=cache, **settings)
        made["latent"]["inputs"]["length"] = 21  # 6 latent frames, in windows of 3
        made["windows"] = node(
            "ContextWindowsManual",
            model=["unet", 0],
            context_length=3,
            context_overlap=1,
            context_schedule="standard_uniform",
            context_stride=2,
            closed_loop=False,
            fuse_method="pyramid",
            dim=2,
            freenoise=False,
            cond_retain_index_list="",
            split_conds_to_windows=False,
            latent_retain_index_list="",
            causal_window_fix=False,
        )
        made["model"]["inputs"]["model"] = ["windows", 0]
        return made

    red = g(RED)
    assert torch.equal(run(red).latent, run(plain(red)).latent)
    with evaluations() as seen:
        hit = run(g(GREEN, k1=0.5, start=0.0, method="early start"))
    assert (hit.report["outcome"], hit.report["steps_computed"]) == ("hit", 4)
    walked = [sigma for sigma, _ in seen] + [0.0]
    expected = run(resumed(g(GREEN), seen[0][1], walked)).latent
    # With the windows of the steps that were asked for, and not walked, it is 0.19 away.
    assert difference(hit.latent, expected) < 1e-3
