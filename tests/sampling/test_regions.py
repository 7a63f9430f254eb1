"""Selective steps: blocks see the visible tokens only, and outside the edit mask the run's own estimate stands."""

import pytest
import torch

from .conftest import difference
from .graphs import GREEN, RED, graph, node

GRID = (4, 6, 6)
CELLS = (4, 12, 12)


def masked(g, mask: torch.Tensor, host, *, edit: int = 0, visible: int = 0):
    """The graph with a given MASK [N, H, W], handed over by a latent-free node of the host."""
    solid = {"mask": node("SolidMask", value=0.0, width=96, height=96)}
    boxes = []
    for index, (top, left, bottom, right) in enumerate(mask):
        name = f"box{index}"
        solid[name] = node("SolidMask", value=1.0, width=right - left, height=bottom - top)
        previous = boxes[-1] if boxes else "mask"
        solid[f"at{index}"] = node(
            "MaskComposite",
            destination=[previous, 0],
            source=[name, 0],
            x=left,
            y=top,
            operation="add",
        )
        boxes.append(f"at{index}")
    g = {**g, **solid}
    g["srd"] = node(
        "ChorusSRDMask",
        chorus=["lookup", 0],
        masks_from="mask",
        edit_dilation=edit,
        visible_dilation=visible,
        mask=[boxes[-1] if boxes else "mask", 0],
    )
    g["stage1"]["inputs"]["chorus"] = ["srd", 0]
    return g


@pytest.fixture
def lengths(comfy_host, monkeypatch):
    """Token counts seen by every block call of the model."""
    import comfy.ldm.wan.model as wan

    seen: list[int] = []
    forward = wan.WanAttentionBlock.forward

    def counting(self, x, *args, **kwargs):
        seen.append(x.shape[1])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(wan.WanAttentionBlock, "forward", counting)
    return seen


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_blocks_see_exactly_the_visible_tokens(run, cache, lengths, comfy_host, cfg):
    run(graph(RED, cache=cache, cfg=cfg))
    lengths.clear()
    # 32 × 32 pixels at (32, 32): 2 × 2 tokens of 16 pixels in each of 4 frames; grown by one token: 4 × 4
    g = masked(graph(GREEN, cache=cache, cfg=cfg, k1=0.25, k2=0.5), [(32, 32, 64, 64)], comfy_host, visible=1)
    hit = run(g)
    assert (hit.report["k1"], hit.report["k2"]) == (2, 4)
    assert hit.report["token_share"] == [1.0, round(64 / 144, 4)]
    assert hit.report["step_equivalents"] == pytest.approx(5 + 64 / 144, abs=1e-3)
    blocks, calls = 5, 1  # cond and uncond share a call where memory allows
    assert lengths == [tokens for tokens in (144, 64, 144, 144, 144, 144) for _ in range(blocks * calls)]


def test_outside_the_edit_mask_the_estimate_of_the_first_full_step_stands_until_k2(run, cache, comfy_host, pack_module):
    """So with K2 at the end that estimate is the result there, whatever the later steps see."""
    run(graph(RED, cache=cache))
    estimates = []
    runs = pack_module("chorus.comfy.sampling.run").Run
    leave = runs.after_evaluation

    def watched(self, x0):
        left = leave(self, x0)
        estimates.append(left[0])
        return left

    runs.after_evaluation = watched
    try:
        g = masked(graph(GREEN, cache=cache, k1=0.25, k2=1.0), [(32, 32, 64, 64)], comfy_host, visible=1)
        hit = run(g)
    finally:
        runs.after_evaluation = leave
    edit = torch.zeros(CELLS, dtype=torch.bool)
    edit[:, 4:8, 4:8] = True
    assert hit.report["steps_computed"] == len(estimates) == 6 and hit.report["k2"] == 8
    for later in estimates[1:]:
        assert torch.equal(later[..., ~edit], estimates[0][..., ~edit])
        assert difference(later[..., edit], estimates[0][..., edit]) > 0.01


def test_a_mask_over_everything_is_a_full_step(run, cache, comfy_host):
    run(graph(RED, cache=cache))
    whole = masked(graph(GREEN, cache=cache, k1=0.25, k2=0.5), [(0, 0, 96, 96)], comfy_host)
    selective = run(whole)
    full = run(graph(GREEN, cache=cache, k1=0.25, k2=0.25))
    assert selective.report["token_share"] == []
    assert selective.report["steps_computed"] == full.report["steps_computed"] == 6
    assert torch.equal(selective.latent, full.latent)


def test_all_but_one_token_edited_is_nearly_the_full_run(run, cache, comfy_host):
    """All tokens go through the dropping path; only a corner is not edited."""
    run(graph(RED, cache=cache))
    g = masked(
        graph(RED, cache=cache, seed=1, k1=0.25, k2=0.5), [(0, 0, 96, 80), (0, 80, 80, 96)], comfy_host, visible=1
    )
    selective = run(g)
    assert selective.report["token_share"] == [1.0, 1.0]
    full = run(graph(RED, cache=cache, k1=0.25, k2=0.25))
    assert difference(selective.latent, full.latent) < 2e-3  # the corner keeps an estimate one step old


def test_an_empty_mask_leaves_the_steps_full(run, cache, comfy_host):
    run(graph(RED, cache=cache))
    hit = run(masked(graph(GREEN, cache=cache, k1=0.25, k2=0.5), [], comfy_host))
    assert (hit.report["k1"], hit.report["k2"], hit.report["steps_computed"]) == (2, 2, 6)
    assert torch.equal(hit.latent, run(graph(GREEN, cache=cache, k1=0.25, k2=0.25)).latent)


def test_recorded_attention_makes_a_mask_for_the_changed_words(run, cache, comfy_host):
    run(graph(RED, cache=cache, steps=20, cfg=3.0))
    hit = run(graph(GREEN, cache=cache, steps=20, cfg=3.0, masks=True))
    assert hit.report["outcome"] == "hit"
    assert hit.report["k2"] > hit.report["k1"] > 0
    first, *others = hit.report["token_share"]
    assert first == 1.0 and others and all(0 < share < 1 for share in others)


def test_words_that_are_only_added_give_full_steps_and_say_so(run, cache):
    run(graph(RED, cache=cache))
    more = RED.replace("right over", "right and a small yellow square on the top over")
    g = graph(more, cache=cache, masks=True, k1=0.25)
    g["lookup"]["inputs"]["threshold"] = 0.05
    hit = run(g)
    assert hit.report["outcome"] == "hit" and hit.report["steps_computed"] == 6
    assert hit.report["token_share"] == [] and "only adds words" in " ".join(hit.report["notes"])


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m", "res_multistep", "lcm", "euler_ancestral", "heun"])
def test_selective_steps_work_with_every_sampler(run, cache, comfy_host, sampler):
    run(graph(RED, cache=cache, sampler=sampler))
    g = masked(graph(GREEN, cache=cache, sampler=sampler, k1=0.25, k2=1.0), [(32, 32, 64, 64)], comfy_host, visible=1)
    hit = run(g)
    assert (hit.report["outcome"], hit.report["k1"], hit.report["k2"]) == ("hit", 2, 8)
    assert hit.report["token_share"] == [1.0] + [round(64 / 144, 4)] * 5
    assert torch.isfinite(hit.latent).all() and 0.5 < float(hit.latent.std()) < 6
