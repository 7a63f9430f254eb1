"""Keeping tokens in a real Wan: the blocks see the kept ones only, and the rest comes back as it went in."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from .conftest import TEXT_DIM, TokenMoves

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
def keeping(networks):
    """`keeping(model, given, kept)`: transformer options under which only these tokens go through the blocks."""

    def options(model, given, kept, base=None, seen=None, **extras):
        x, _, context = given
        rows = torch.ones(len(x), dtype=torch.bool)
        made = networks.ModelCall(tuple(x.shape), context, 0, rows, base or {}, extras)
        return networks.Wan(model).patched(made, kept, (), seen)

    return options


def by_hand(model, given, kept, per_frame: bool = False, reference_latent=None, context_latents=()):
    """The model with its own layers, its blocks run on the tokens of `kept` alone, and on all that are not video."""
    from comfy.ldm.common_dit import pad_to_patch_size
    from comfy.ldm.wan.model import repeat_e, sinusoidal_embedding_1d

    x, timestep, context = given
    size = x.shape[-3:]
    x = pad_to_patch_size(x, PATCH)
    embedded = model.patch_embedding(x)
    grid = embedded.shape[2:]
    parts = [embedded.flatten(2).transpose(1, 2)]
    frames = size[0]
    if reference_latent is not None:
        parts.insert(0, model.ref_conv(reference_latent).flatten(2).transpose(1, 2))
        frames += 1
    positions = [model.rope_encode(frames, *size[1:], device=x.device, dtype=x.dtype)]
    for number, latent in enumerate(context_latents, 1):
        parts.append(model.patch_embedding(latent).flatten(2).transpose(1, 2))
        positions.append(model.rope_encode(*latent.shape[-3:], device=x.device, dtype=x.dtype, source_id=number))
    tokens, front, video = torch.cat(parts, 1), len(parts[0][0]) if reference_latent is not None else 0, grid.numel()
    kept = torch.cat([torch.arange(front), front + kept, torch.arange(front + video, tokens.shape[1])])
    e = model.time_embedding(sinusoidal_embedding_1d(model.freq_dim, timestep.flatten()))
    e = e.reshape(timestep.shape[0], -1, e.shape[-1])
    modulation = model.time_projection(e).unflatten(2, (6, model.dim))
    if per_frame:
        modulation = repeat_e(modulation, tokens)[:, kept]
    visible, text = tokens[:, kept], model.text_embedding(context)
    for block in model.blocks:
        visible = block(visible, e=modulation, freqs=torch.cat(positions, 1)[:, kept], context=text)
    tokens = tokens.clone()
    tokens[:, kept] = visible
    head = model.head(tokens, e)[:, front : front + video]
    return model.unpatchify(head, grid)[..., : size[1], : size[2]]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("per_frame", [False, True])
def test_with_every_token_visible_the_output_is_the_unpatched_one(wan, keeping, rows, per_frame):
    given = inputs(rows, per_frame=per_frame)
    patched = call(wan, given, keeping(wan, given, torch.arange(TOKENS)))
    assert torch.allclose(patched, call(wan, given), atol=1e-5)


def test_counting_the_blocks_changes_no_bit(wan, keeping):
    given = inputs(2)
    seen = []
    assert torch.equal(call(wan, given, keeping(wan, given, None, seen=seen.append)), call(wan, given))
    assert seen == [1.0]


def test_without_work_the_options_are_as_they_were(wan, keeping):
    base = {"patches_replace": {"dit": {("double_block", 1): print}}}
    assert keeping(wan, inputs(), None, base) == base


@pytest.mark.parametrize("count", [1, 5, 20, TOKENS - 1])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_block_sees_exactly_the_kept_tokens(wan, keeping, count, rows):
    seen = []
    with block_inputs(wan) as reached:
        given = inputs(rows)
        out = call(wan, given, keeping(wan, given, some(count), seen=seen.append))
    assert [tuple(x.shape) for x in reached] == [(rows, count, wan.dim)] * BLOCKS
    assert seen == [count / TOKENS]
    assert out.shape == (rows, 16, *LATENT) and out.isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 20])
@pytest.mark.parametrize("per_frame", [False, True])
def test_keeping_some_equals_running_the_blocks_on_only_these_tokens(wan, keeping, count, per_frame):
    given, indices = inputs(2, per_frame=per_frame), some(count)
    expected = by_hand(wan, given, indices, per_frame)
    assert torch.allclose(call(wan, given, keeping(wan, given, indices)), expected, atol=1e-5)
    # Otherwise equality would say nothing.
    assert not torch.allclose(call(wan, given), expected, atol=1e-2)


def test_tokens_elsewhere_would_give_another_output(wan, keeping):
    given, indices = inputs(), some(9)
    expected = by_hand(wan, given, indices)

    def misplaced(args, extra):
        return extra["original_block"](dict(args, pe=args["pe"].roll(1, dims=1)))

    base = {"patches_replace": {"dit": {("double_block", i): misplaced for i in range(BLOCKS)}}}
    assert not torch.allclose(call(wan, given, keeping(wan, given, indices, base)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "changes", "in_front", "per_frame"),
    [
        ("WanModel", {}, 0, False),
        ("WanModel", {"in_dim": 48, "out_dim": 48}, 0, True),
        ("WanModel", {"model_type": "i2v", "in_dim": 36}, 0, False),
        ("WanModel", {"in_dim": 52, "in_dim_ref_conv": 16}, GRID[1] * GRID[2], False),
        ("CameraWanModel", {"in_dim": 32}, 0, False),
    ],
    ids=["text", "times of frames", "image", "control and reference", "camera"],
)
def test_blocks_alone_cost_one_gather_before_the_first_and_one_put_after_the_last(
    make_wan, keeping, kind, changes, in_front, per_frame
):
    model = make_wan(kind=kind, **changes)
    given = inputs(2, channels=model.in_dim, per_frame=per_frame)
    conditions = {"reference_latent": picture(2, *LATENT[1:])} if in_front else {}
    options = keeping(model, given, some(9), **conditions)
    with TokenMoves(model.dim) as host:
        call(model, given, **conditions)
    with TokenMoves(model.dim) as moves:
        call(model, given, options, **conditions)
    whole = (2, in_front + TOKENS, model.dim)
    assert (host.gathered, host.put) == ([], [])
    assert (moves.gathered, moves.put) == ([whole], [whole])
    assert "wrappers" not in options


def test_latents_with_a_partial_last_patch_serve_too(wan, keeping):
    given, indices = inputs(shape=(2, 5, 7)), some(10, 24)
    out = call(wan, given, keeping(wan, given, indices))
    assert out.shape == (1, 16, 2, 5, 7)
    assert torch.allclose(out, by_hand(wan, given, indices), atol=1e-5)


def test_half_precision_models_keep_tokens(make_wan, keeping):
    model = make_wan(torch.bfloat16)
    x, timestep, context = inputs(2)
    given = x.bfloat16(), timestep, context.bfloat16()
    out = call(model, given, keeping(model, given, some(11)))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    everything = call(model, given, keeping(model, given, torch.arange(TOKENS)))
    assert torch.allclose(everything, call(model, given), atol=0.1, rtol=0.05)


def test_fewer_tokens_than_the_call_said_are_a_fault_of_chorus(wan, keeping, pack_module):
    given = inputs()
    options = keeping(wan, inputs(shape=(3, 8, 8)), some(9))
    with pytest.raises(ValueError, match="36 tokens where the video alone has 48") as raised:
        call(wan, given, options)
    assert pack_module("chorus.comfy.faults").is_own(raised.value)


@pytest.fixture(scope="module")
def wan_with_reference(make_wan):
    return make_wan(in_dim_ref_conv=16)


def picture(rows: int = 2, *size: int) -> torch.Tensor:
    return torch.randn(rows, 16, *size, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_reference_in_front_of_the_video_is_always_computed(wan_with_reference, keeping, per_frame):
    model, reference = wan_with_reference, picture(2, *LATENT[1:])
    given, kept, seen = inputs(2, per_frame=per_frame), some(9), []
    options = keeping(model, given, kept, seen=seen.append, reference_latent=reference)
    with block_inputs(model) as reached:
        out = call(model, given, options, reference_latent=reference)
    assert [x.shape[1] for x in reached] == [9 + GRID[1] * GRID[2]] * BLOCKS
    assert seen == [9 / TOKENS]
    assert torch.allclose(out, by_hand(model, given, kept, per_frame, reference), atol=1e-5)
    assert not torch.allclose(out, call(model, given, reference_latent=reference), atol=1e-2)


def test_a_model_that_could_take_a_reference_needs_none(wan_with_reference, keeping):
    model, given, kept = wan_with_reference, inputs(), some(9)
    assert torch.allclose(call(model, given, keeping(model, given, kept)), by_hand(model, given, kept), atol=1e-5)


@pytest.mark.parametrize("per_frame", [False, True])
def test_latents_behind_the_video_are_always_computed(wan, keeping, per_frame):
    behind = [picture(2, 1, 4, 4), picture(2, 2, 6, 8)]
    given, kept = inputs(2, per_frame=per_frame), some(9)
    with block_inputs(wan) as reached:
        out = call(wan, given, keeping(wan, given, kept, context_latents=behind), context_latents=behind)
    assert [x.shape[1] for x in reached] == [9 + 4 + 24] * BLOCKS
    assert torch.allclose(out, by_hand(wan, given, kept, per_frame, context_latents=behind), atol=1e-5)


def test_tokens_of_48_channel_latents_are_kept(make_wan, keeping):
    model = make_wan(in_dim=48, out_dim=48)
    given, indices = inputs(channels=48, per_frame=True), some(13)
    assert torch.allclose(
        call(model, given, keeping(model, given, indices)), by_hand(model, given, indices, True), atol=1e-5
    )


def test_a_block_patch_that_was_there_is_called_inside(wan, keeping):
    calls = []

    def louder(args, extra):
        calls.append(tuple(args["img"].shape))
        out = extra["original_block"](args)
        return {"img": 1.5 * out["img"]}

    base = {"patches_replace": {"dit": {("double_block", 1): louder}, "other": {("x", 0): louder}}, "kept": 1}
    given, indices = inputs(), some(6)
    options = keeping(wan, given, indices, base)
    out = call(wan, given, options)
    assert calls == [(1, 6, wan.dim)]
    assert not torch.allclose(out, by_hand(wan, given, indices), atol=1e-3)
    assert options["kept"] == 1 and options["patches_replace"]["other"] == {("x", 0): louder}


def test_where_only_the_blocks_are_counted_a_patch_on_the_first_is_still_called(wan, keeping):
    calls = []

    def watched(args, extra):
        calls.append(args["img"].shape[1])
        return extra["original_block"](args)

    given, seen = inputs(), []
    base = {"patches_replace": {"dit": {("double_block", 0): watched}}}
    call(wan, given, keeping(wan, given, None, base, seen.append))
    assert calls == [TOKENS] and seen == [1.0]


def test_the_options_given_are_left_as_they_were(wan, keeping):
    base = {"patches_replace": {"dit": {("double_block", 1): print}}}
    keeping(wan, inputs(), some(3), base, print)
    assert base == {"patches_replace": {"dit": {("double_block", 1): print}}}


def test_a_fault_of_another_patch_is_not_called_ours(wan, keeping):
    def broken(args, extra):
        raise ZeroDivisionError

    given = inputs()
    options = keeping(wan, given, some(3), {"patches_replace": {"dit": {("double_block", 1): broken}}})
    with pytest.raises(ZeroDivisionError):
        call(wan, given, options)


def test_nothing_is_held_after_the_call(wan, keeping):
    given = inputs()
    options = keeping(wan, given, some(4))
    call(wan, given, options)
    held = [cell.cell_contents for cell in options["patches_replace"]["dit"]["double_block", 0].__closure__]
    [tokens] = [value for value in held if hasattr(value, "whole")]
    assert tokens.whole is None


# -- what a network is ------------------------------------------------------------------------------------------


def test_a_family_is_known_by_what_its_network_can_do(networks, make_wan, wan):
    def of(module):
        return type(networks.network_of(SimpleNamespace(model=SimpleNamespace(diffusion_model=module))))

    assert of(wan) is networks.Wan
    assert of(torch.nn.Linear(2, 2)) is networks.Network
    assert of(torch.nn.Module()) is networks.Network

    class Compiled(torch.nn.Module):  # what a pack may wrap a network in
        def __init__(self):
            super().__init__()
            self.blocks, self.patch_size = wan.blocks, 2

    assert of(Compiled()) is networks.Network


def test_an_unknown_network_is_patched_nowhere(networks):
    network = networks.Network(torch.nn.Linear(2, 2))
    made = networks.ModelCall((1, 4, 8, 8), None, 0, torch.ones(1, dtype=torch.bool), {"kept": 1})
    assert network.patched(made, None, (), print) == {"kept": 1}
    assert network.token_grid((1, 4, 2, 8, 8)) is None and network.block_count == 0
    assert network.selective_refusal({}).code == "note.network"
    assert network.words_refusal().code == "note.no_blocks"


def test_the_grid_of_a_wan_counts_partial_patches_and_needs_a_video(networks, wan):
    network = networks.Wan(wan)
    assert network.token_grid((2, 16, 3, 5, 7)) == (3, 3, 4)
    assert network.token_grid((2, 16, 5, 7)) is None
    assert network.block_count == BLOCKS
    mask = torch.zeros(3, 3, 4, dtype=torch.bool)
    mask[1, 2, 3] = True
    assert network.cells(mask, (1, 16, 3, 5, 7)).nonzero().tolist() == [[1, 4, 6]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, None),
        ({"patches": {}}, None),
        ({"patches": {"attn1_patch": []}}, None),
        ({"patches": {"double_block": [print]}}, "note.patched"),
        ({"optimized_attention_override": print}, "note.attention"),
    ],
)
def test_what_needs_the_whole_grid_refuses_selective_steps(networks, wan, options, why):
    refused = networks.Wan(wan).selective_refusal(options)
    assert (refused.code if refused else None) == why


def test_a_network_with_parts_that_are_not_known_refuses_selective_steps(networks, make_wan, wan_with_reference):
    assert networks.Wan(wan_with_reference).selective_refusal({}) is None
    assert networks.Wan(make_wan(model_type="i2v", in_dim=36)).selective_refusal({}) is None
    camera = make_wan(kind="CameraWanModel", in_dim=32)
    assert networks.Wan(camera).selective_refusal({}) is None, "what the camera adds lies before the blocks"
    made = make_wan()
    made.register_module("music_injector", torch.nn.Linear(2, 2))
    made.register_module("another", torch.nn.Linear(2, 2))
    assert networks.Wan.fits(made)
    refused = networks.Wan(made).selective_refusal({})
    assert (refused.code, refused.values["parts"]) == ("note.parts", "another, music_injector")
