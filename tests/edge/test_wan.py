"""Dropping tokens in a real Wan: the blocks see the visible ones only, and the rest comes back as it went in."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from .conftest import TEXT_DIM

PATCH = (1, 2, 2)
LATENT = (3, 6, 8)  # T, H, W
GRID = (3, 3, 4)
TOKENS = 36
BLOCKS = 3


def inputs(rows: int = 1, shape=LATENT, channels: int = 16, per_frame: bool = False, text: int = 7):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, channels, *shape, generator=generator)
    context = torch.randn(rows, text, TEXT_DIM, generator=generator)
    timestep = torch.linspace(900.0, 300.0, rows * shape[0]).view(rows, -1) if per_frame else torch.full((rows,), 700.0)
    return x, timestep, context


def some(count: int, total: int = TOKENS) -> torch.Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(count))[:count].sort().values


@contextmanager
def block_inputs(model):
    """What reaches each block: one [B, V, C] tensor a block."""
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for b in model.blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def call(model, given, options=None, **conditions):
    return model(*given, transformer_options={} if options is None else options, **conditions)


@pytest.fixture
def dropped(blocks_module):
    """`dropped(indices, total)`: transformer options under which only these tokens go through the blocks."""

    def options(indices, total=TOKENS, base=None, seen=lambda tokens: None, count=BLOCKS):
        return blocks_module.patch_blocks(base or {}, count, blocks_module.TokenDrop(indices, total), seen)

    return options


def by_hand(model, given, indices, per_frame: bool = False):
    """The model with its own layers, its blocks run on the tokens of `indices` alone."""
    from comfy.ldm.common_dit import pad_to_patch_size
    from comfy.ldm.wan.model import sinusoidal_embedding_1d

    x, timestep, context = given
    size = x.shape[-3:]
    x = pad_to_patch_size(x, PATCH)
    embedded = model.patch_embedding(x)
    grid = embedded.shape[2:]
    tokens = embedded.flatten(2).transpose(1, 2)
    positions = model.rope_encode(*size, device=x.device, dtype=x.dtype)[:, indices]
    e = model.time_embedding(sinusoidal_embedding_1d(model.freq_dim, timestep.flatten()))
    e = e.reshape(timestep.shape[0], -1, e.shape[-1])
    modulation = model.time_projection(e).unflatten(2, (6, model.dim))
    if per_frame:
        modulation = modulation[:, indices // (grid[1] * grid[2])]
    visible, text = tokens[:, indices], model.text_embedding(context)
    for block in model.blocks:
        visible = block(visible, e=modulation, freqs=positions, context=text, context_img_len=None)
    tokens = tokens.clone()
    tokens[:, indices] = visible
    return model.unpatchify(model.head(tokens, e), grid)[..., : size[1], : size[2]]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("per_frame", [False, True])
def test_with_every_token_visible_the_output_is_the_unpatched_one(wan, dropped, rows, per_frame):
    given = inputs(rows, per_frame=per_frame)
    patched = call(wan, given, dropped(torch.arange(TOKENS)))
    assert torch.allclose(patched, call(wan, given), atol=1e-5)


def test_watching_the_blocks_changes_no_bit(wan, blocks_module):
    given = inputs(2)
    seen = []
    options = blocks_module.patch_blocks({}, BLOCKS, None, seen.append)
    assert torch.equal(call(wan, given, options), call(wan, given))
    assert seen == [TOKENS]


@pytest.mark.parametrize("count", [1, 5, 20, TOKENS - 1])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_block_sees_exactly_the_visible_tokens(wan, dropped, count, rows):
    seen = []
    with block_inputs(wan) as reached:
        out = call(wan, inputs(rows), dropped(some(count), seen=seen.append))
    assert [tuple(x.shape) for x in reached] == [(rows, count, wan.dim)] * BLOCKS
    assert seen == [count]
    assert out.shape == (rows, 16, *LATENT) and out.isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("per_frame", [False, True])
def test_dropping_equals_running_the_blocks_on_only_these_tokens(wan, dropped, count, per_frame):
    given, indices = inputs(2, per_frame=per_frame), some(count)
    expected = by_hand(wan, given, indices, per_frame)
    assert torch.allclose(call(wan, given, dropped(indices)), expected, atol=1e-5)
    # Otherwise equality would say nothing.
    assert not torch.allclose(call(wan, given), expected, atol=1e-2)


def test_tokens_elsewhere_would_give_another_output(wan, dropped):
    given, indices = inputs(), some(9)
    expected = by_hand(wan, given, indices)

    def misplaced(args, extra):
        return extra["original_block"](dict(args, pe=args["pe"].roll(1, dims=1)))

    base = {"patches_replace": {"dit": {("double_block", i): misplaced for i in range(BLOCKS)}}}
    assert not torch.allclose(call(wan, given, dropped(indices, base=base)), expected, atol=1e-3)


def test_latents_with_a_partial_last_patch_are_dropped_too(wan, dropped):
    given, indices = inputs(shape=(2, 5, 7)), some(10, 24)
    out = call(wan, given, dropped(indices, 24))
    assert out.shape == (1, 16, 2, 5, 7)
    assert torch.allclose(out, by_hand(wan, given, indices), atol=1e-5)


def test_half_precision_models_drop_tokens(make_wan, dropped):
    model = make_wan(torch.bfloat16)
    x, timestep, context = inputs(2)
    given = x.bfloat16(), timestep, context.bfloat16()
    out = call(model, given, dropped(some(11)))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    everything = call(model, given, dropped(torch.arange(TOKENS)))
    assert torch.allclose(everything, call(model, given), atol=0.1, rtol=0.05)


def test_a_grid_of_another_size_is_computed_whole(wan, dropped):
    given = inputs(shape=(3, 8, 8))
    assert torch.equal(call(wan, given, dropped(some(9))), call(wan, given))


def test_tokens_of_48_channel_latents_are_dropped(make_wan, dropped):
    model = make_wan(in_dim=48, out_dim=48)
    given, indices = inputs(channels=48, per_frame=True), some(13)
    assert torch.allclose(call(model, given, dropped(indices)), by_hand(model, given, indices, True), atol=1e-5)


def test_a_block_patch_that_was_there_is_called_inside(wan, dropped):
    calls = []

    def louder(args, extra):
        calls.append(tuple(args["img"].shape))
        out = extra["original_block"](args)
        return {"img": 1.5 * out["img"]}

    base = {"patches_replace": {"dit": {("double_block", 1): louder}, "other": {("x", 0): louder}}, "kept": 1}
    given, indices = inputs(), some(6)
    options = dropped(indices, base=base)
    out = call(wan, given, options)
    assert calls == [(1, 6, wan.dim)]
    assert not torch.allclose(out, by_hand(wan, given, indices), atol=1e-3)
    assert options["kept"] == 1 and options["patches_replace"]["other"] == {("x", 0): louder}


def test_without_dropping_a_patch_on_the_first_block_is_still_called(wan, blocks_module):
    calls = []

    def watched(args, extra):
        calls.append(args["img"].shape[1])
        return extra["original_block"](args)

    base = {"patches_replace": {"dit": {("double_block", 0): watched}}}
    options = blocks_module.patch_blocks(base, BLOCKS, None, lambda tokens: None)
    call(wan, inputs(), options)
    assert calls == [TOKENS]


def test_the_options_given_are_left_as_they_were(dropped):
    base = {"patches_replace": {"dit": {("double_block", 1): print}}}
    dropped(some(3), base=base)
    assert base == {"patches_replace": {"dit": {("double_block", 1): print}}}


def test_nothing_is_held_after_the_call(wan, blocks_module):
    drop = blocks_module.TokenDrop(some(4), TOKENS)
    call(wan, inputs(), blocks_module.patch_blocks({}, BLOCKS, drop, lambda tokens: None))
    assert drop.whole is None
