"""A real HunyuanVideo of which only some tokens are computed, and whose words are amplified for the video only."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from chorus.reuse.amplification import amplify

from .conftest import TEXT_DIM, _hunyuan

TOKENS = 36  # 3 × 3 × 4
TEXT = 7
WORD = 2
KINDS = ("1.0 T2V", "1.0 T2V, masked", "1.0 I2V, frame replaced", "1.0 I2V, reference", "1.5 T2V", "1.5 I2V")


def drawn(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Case:
    """A model and one call of it. in_front: tokens before the video's; before: rows of text before the words."""

    model: torch.nn.Module
    x: torch.Tensor
    context: torch.Tensor
    conditions: dict = field(default_factory=dict)
    in_front: int = 0
    before: int = 0
    text: int = TEXT

    @property
    def blocks(self) -> list[torch.nn.Module]:
        return [*self.model.double_blocks, *self.model.single_blocks]

    def __call__(self, options=None) -> torch.Tensor:
        timestep = torch.full((len(self.x),), 700.0)
        # The host's network writes into what it is given.
        return self.model(
            self.x.clone(), timestep, self.context.clone(), transformer_options=options or {}, **self.conditions
        )


@pytest.fixture
def case(hunyuan, hunyuan15):
    """`case(kind, rows)`: the model of a kind with a call of so many rows."""

    def made(kind: str, rows: int = 1) -> Case:
        if kind.startswith("1.0"):
            made = Case(hunyuan, drawn(rows, 16, 3, 6, 8), drawn(rows, TEXT, TEXT_DIM, seed=5))
            made.conditions = {"y": drawn(rows, 20, seed=6), "guidance": torch.full((rows,), 6.0)}
        else:
            made = Case(hunyuan15, drawn(rows, 16, 3, 3, 4), drawn(rows, TEXT, TEXT_DIM, seed=5))
            made.conditions = {"txt_byt5": drawn(rows, 4, 1472, seed=7)}
            made.before, made.text = 4, TEXT + 4
        if kind == "1.0 T2V, masked":
            mask = torch.ones(rows, TEXT, dtype=torch.long)
            mask[:, -2:] = 0
            made.conditions["attention_mask"] = mask[:1]
        if kind == "1.0 I2V, frame replaced":
            made.conditions |= {"guiding_frame_index": torch.zeros(1), "guidance": None}
        if kind == "1.0 I2V, reference":
            made.conditions["ref_latent"] = drawn(rows, 16, 1, 6, 8, seed=8)
            made.in_front = 12
        if kind == "1.5 I2V":
            made.conditions["clip_fea"] = drawn(rows, 5, 40, seed=9)
            made.before, made.text = 9, TEXT + 9
        return made

    return made


@pytest.fixture
def patched(networks):
    """`patched(case, kept, *works)`: transformer options of a call with these tokens and works."""

    def options(case: Case, kept=None, *works, base=None, seen=None, kv_cache=None):
        rows = torch.ones(len(case.x), dtype=torch.bool)
        call = networks.ModelCall(tuple(case.x.shape), case.context, 0, rows, base or {}, case.conditions)
        return networks.HunyuanVideo(case.model).patched(call, kept, works, seen, kv_cache)

    return options


def some(count: int = 12) -> torch.Tensor:
    return torch.randperm(TOKENS, generator=torch.Generator().manual_seed(count))[:count].sort().values


def copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


@contextmanager
def block_inputs(case: Case):
    """What reaches each block: its first argument's name → copies of all arguments."""
    seen: list[dict] = []

    def hook(_, args, kwargs):
        seen.append({"img": copied(args[0])} if args else {} | {name: copied(one) for name, one in kwargs.items()})

    hooks = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in case.blocks]
    try:
        yield seen
    finally:
        for one in hooks:
            one.remove()


def rows_modulated(dims, rows):
    """A modulation for each row on its own. rows: where each is in the whole sequence."""
    return dims and [
        (index, index + 1, which)
        for index, row in enumerate(rows.tolist())
        for start, end, which in dims
        if row >= start and (end is None or row < end)
    ]


def by_hand(case: Case, kept: torch.Tensor) -> torch.Tensor:
    """The model with its own layers, its blocks run on the tokens of `kept` alone, and on all that are not video."""
    with block_inputs(case) as seen:
        case()
    given = {key: copied(value) for key, value in seen[0].items()}
    whole, text, vec = given["img"], given["txt"], given["vec"]
    places = torch.cat([torch.arange(case.in_front), case.in_front + kept])
    rows = torch.cat([torch.arange(text.shape[1]), text.shape[1] + places])
    pe, mask = given["pe"][:, :, rows], given["attn_mask"]
    common = {"vec": vec, "pe": pe, "attn_mask": None if mask is None else mask[..., rows]}
    dims = given["modulation_dims_img"]
    image = whole[:, places]
    for block in case.model.double_blocks:
        image, text = block(
            image,
            text,
            **common,
            modulation_dims_img=rows_modulated(dims, places),
            modulation_dims_txt=given["modulation_dims_txt"],
        )
    both = torch.cat([text, image], 1)
    for block in case.model.single_blocks:
        both = block(both, **common, modulation_dims=rows_modulated(dims, rows))
    whole[:, places] = both[:, text.shape[1] :]
    head = case.model.final_layer(whole[:, case.in_front :], vec, modulation_dims=dims)
    t, h, w = case.model.patch_size
    grid = [size // side for size, side in zip(case.x.shape[2:], (t, h, w), strict=True)]
    return head.view(len(head), *grid, 16, t, h, w).permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(case.x.shape)


# -- the tokens that are computed ----------------------------------------------------------------------------------

each_kind = pytest.mark.parametrize("kind", KINDS)
ONE_ROW = {"1.0 T2V, masked", "1.0 I2V, reference"}  # a text mask or a reference: the host takes one row only
each_case = pytest.mark.parametrize(
    ("kind", "rows"), [(k, n) for k in KINDS for n in (1, 2) if n == 1 or k not in ONE_ROW]
)


@each_case
def test_with_every_token_visible_the_output_is_the_unpatched_one(case, patched, kind, rows):
    one = case(kind, rows)
    assert torch.allclose(one(patched(one, torch.arange(TOKENS))), one(), atol=1e-6)


@each_kind
def test_counting_the_blocks_changes_no_bit(case, patched, kind):
    one, seen = case(kind), []
    assert torch.equal(one(patched(one, seen=seen.append)), one())
    assert seen == [1.0]


@each_case
def test_the_blocks_see_a_third_of_the_tokens_and_all_text(case, patched, kind, rows):
    one, seen = case(kind, rows), []
    with block_inputs(one) as reached:
        one(patched(one, some(), seen=seen.append))
    width, image = one.model.hidden_size, 12 + one.in_front
    doubles, singles = len(one.model.double_blocks), len(one.model.single_blocks)
    assert [tuple(given["img"].shape) for given in reached] == [
        *[(rows, image, width)] * doubles,
        *[(rows, one.text + image, width)] * singles,
    ]
    assert {tuple(given["txt"].shape) for given in reached[:doubles]} == {(rows, one.text, width)}
    assert seen == [12 / TOKENS]


@each_case
@pytest.mark.parametrize("count", [1, 12, TOKENS - 1])
def test_keeping_some_equals_running_the_blocks_on_only_these_tokens(case, patched, kind, rows, count):
    one, kept = case(kind, rows), some(count)
    expected = by_hand(one, kept)
    assert torch.allclose(one(patched(one, kept)), expected, atol=1e-5)
    # Otherwise equality would say nothing.
    assert not torch.allclose(one(), expected, atol=1e-2)


@pytest.mark.parametrize("changed", ["pe", "attention_mask", "modulation_dims_img", "modulation_dims"])
def test_any_other_part_of_a_block_would_give_another_output(case, patched, changed):
    kind = "1.0 T2V, masked" if changed == "attention_mask" else "1.0 I2V, frame replaced"
    one, kept = case(kind), some()
    expected = by_hand(one, kept)

    def another(args, extra):
        value = args.get(changed)
        if isinstance(value, torch.Tensor):
            args = args | {changed: value.roll(1, dims=2)}
        elif value is not None:
            args = args | {changed: [(0, 12, 0), (12, None, 1)]}  # as if all tokens were there
        return extra["original_block"](args)

    slots = [("double_block", 0), ("double_block", 1), ("single_block", 0), ("single_block", 1)]
    base = {"patches_replace": {"dit": dict.fromkeys(slots, another)}}
    assert not torch.allclose(one(patched(one, kept, base=base)), expected, atol=1e-3)


def test_a_block_patch_that_was_there_is_called_inside(case, patched):
    one, kept, calls = case("1.0 T2V"), some(), []

    def watched(args, extra):
        calls.append(args["img"].shape[1])
        return extra["original_block"](args)

    base = {"patches_replace": {"dit": {("double_block", 1): watched, ("single_block", 1): watched}}}
    assert torch.allclose(one(patched(one, kept, base=base)), by_hand(one, kept), atol=1e-5)
    assert calls == [12, 12 + TEXT]


def test_fewer_tokens_than_the_call_said_are_a_fault_of_chorus(case, patched, pack_module):
    one, other = case("1.0 T2V"), case("1.0 T2V")
    other.x = drawn(1, 16, 3, 8, 8)
    with pytest.raises(ValueError, match="36 tokens where the video alone has 48") as raised:
        one(patched(other, some()))
    assert pack_module("chorus.comfy.faults").is_own(raised.value)


def test_nothing_is_held_after_the_call(case, patched):
    one = case("1.5 T2V")
    options = patched(one, some())
    one(options)
    held = [cell.cell_contents for cell in options["patches_replace"]["dit"]["double_block", 0].__closure__]
    [tokens] = [value for value in held if hasattr(value, "whole")]
    assert tokens.whole is None


def test_half_precision_models_keep_tokens_and_amplify_words(comfy_host, patched, networks):
    one = Case(_hunyuan(torch.bfloat16), drawn(1, 16, 3, 6, 8).bfloat16(), drawn(1, TEXT, TEXT_DIM, seed=5).bfloat16())
    one.conditions = {"y": drawn(1, 20, seed=6).bfloat16()}
    kv_cache = networks.KVCache(lambda: 10**9)
    full = one(patched(one, None, amplifying([True]), kv_cache=kv_cache))
    kept = kv_cache._kept[one_key(networks, one), 3]
    assert {value.dtype for value in kept} == {torch.bfloat16} and not torch.equal(full, one())
    out = one(patched(one, some(), amplifying([True]), kv_cache=kv_cache))
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def one_key(networks, one: Case):
    rows = torch.ones(len(one.x), dtype=torch.bool)
    return networks.KVCache.key(networks.ModelCall(tuple(one.x.shape), one.context, 0, rows, {}))


# -- keys and values of the tokens that are left out ---------------------------------------------------------------


@each_case
def test_after_a_full_call_a_part_is_computed_as_in_it(case, patched, networks, kind, rows):
    one, kept = case(kind, rows), some()
    kv_cache = networks.KVCache(lambda: 10**9)
    full = one(patched(one, kv_cache=kv_cache))
    assert torch.equal(full, one()), "keeping changes no bit"
    out = one(patched(one, kept, kv_cache=kv_cache))
    mask = torch.zeros(TOKENS, dtype=torch.bool).index_fill(0, kept, True).view(3, 3, 4)
    computed = networks.HunyuanVideo(one.model).cells(mask, one.x.shape).expand_as(out)
    assert torch.allclose(out[computed], full[computed], atol=5e-3)  # kept in half precision
    # Otherwise equality would say nothing.
    assert not torch.allclose(one(patched(one, kept))[computed], full[computed], atol=5e-2)
    assert not torch.allclose(out[~computed], full[~computed], atol=5e-2)


def test_each_block_has_keys_of_its_own(case, patched, networks):
    one = case("1.0 T2V")
    kv_cache = networks.KVCache(lambda: 10**9)
    one(patched(one, kv_cache=kv_cache))
    assert kv_cache.bytes == 4 * (TEXT + TOKENS) * one.model.hidden_size * 2 * 2


def test_without_room_nothing_is_kept(case, patched, networks):
    one = case("1.5 I2V")
    kv_cache = networks.KVCache(lambda: 1000)
    assert torch.equal(one(patched(one, kv_cache=kv_cache)), one())
    assert kv_cache.full and kv_cache.bytes == 0


# -- words ---------------------------------------------------------------------------------------------------------


@dataclass
class Listener:
    """An override that another node put in the slot: (block or None, q, k, v, mask, output) of each call."""

    calls: list = field(default_factory=list)

    def __call__(self, func, q, k, v, *args, **kwargs):
        place = kwargs["transformer_options"]
        out = func(q, k, v, *args, **kwargs)
        block = (place["block_type"], place["block_index"]) if "block_type" in place else None
        self.calls.append((block, q.clone(), k.clone(), v.clone(), out.clone()))
        return out


def idle(block, q, k, v, heads):
    return k, v


def same(block, q, k, v, heads):
    """A gain of one: equal values, and yet other tensors."""
    return k * 1.0, v * 1.0


def amplifying(rows, strength=1.0, where="both"):
    weights = torch.zeros(TEXT)
    weights[WORD] = 1.0
    return lambda block, q, k, v, heads: amplify(k, v, weights, torch.tensor(rows), strength, where)


@each_kind
def test_work_of_nothing_changes_no_bit(case, patched, kind):
    one = case(kind)
    assert torch.equal(one(patched(one, None, idle)), one())


@each_case
def test_a_gain_of_one_changes_nothing(case, patched, kind, rows):
    one = case(kind, rows)
    assert torch.allclose(one(patched(one, None, same)), one(), atol=1e-5)


@each_kind
def test_words_are_amplified_for_the_video_and_not_for_the_text(case, patched, kind):
    one, plain, louder = case(kind), Listener(), Listener()
    one({"optimized_attention_override": plain})
    one(patched(one, None, amplifying([True]), base={"optimized_attention_override": louder}))
    refined = [call for call in louder.calls if call[0] is None]
    assert len(refined) == 2
    for before, after in zip(plain.calls, refined, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True)), "the token refiner"
    inside = [call for call in louder.calls if call[0] is not None]
    assert len(inside) == 2 * len(one.blocks), "once for the text's rows, once for the video's"
    word = one.before + WORD
    (_, q, k, v, out), (_, image_q, image_k, image_v, image_out) = inside[:2]
    (_, whole_q, whole_k, whole_v, whole_out) = plain.calls[2]
    assert q.shape[2] == one.text and torch.equal(torch.cat([q, image_q], 2), whole_q)
    assert torch.equal(k, whole_k) and torch.equal(v, whole_v)
    assert torch.allclose(out, whole_out[:, : one.text], atol=1e-6), "the text attends as before"
    assert not torch.allclose(image_out, whole_out[:, one.text :], atol=1e-3)
    for was, now in ((whole_k, image_k), (whole_v, image_v)):
        assert torch.equal(now[:, :, word], 2 * was[:, :, word])
        others = [row for row in range(was.shape[2]) if row != word]
        assert torch.equal(now[:, :, others], was[:, :, others])


@pytest.mark.parametrize("kind", ["1.0 T2V", "1.5 I2V"])
def test_only_the_conditional_row_of_the_output_changes(case, patched, kind):
    one = case(kind, 2)
    plain, out = one(), one(patched(one, None, amplifying([True, False], strength=2.0)))
    assert torch.allclose(out[1], plain[1], atol=1e-5)
    assert not torch.allclose(out[0], plain[0], atol=1e-4)


@each_kind
def test_each_block_meets_the_words_once_a_call(case, patched, kind):
    one, seen, listener = case(kind), [], Listener()

    def watch(block, q, k, v, heads):
        seen.append((block, q.clone(), k.clone(), heads))
        return k, v

    one(patched(one, None, watch, base={"optimized_attention_override": listener}))
    assert [block for block, *_ in seen] == list(range(len(one.blocks)))
    inside = [call for call in listener.calls if call[0] is not None]
    for (_, q, k, heads), (_, whole_q, whole_k, *_) in zip(seen, inside, strict=True):
        assert heads == one.model.num_heads
        assert torch.equal(q.flatten(2), whole_q[:, :, one.text :].transpose(1, 2).flatten(2))
        words = whole_k[:, :, one.before : one.before + TEXT]
        assert torch.equal(k, words.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["1.0 T2V, masked", "1.5 I2V"])
def test_kept_keys_are_those_before_words_are_amplified(case, patched, networks, kind):
    """The text's keys and values are computed anew in each step, with or without an amplification before."""
    one, kept = case(kind), some()
    outs = []
    for work in (idle, same):
        kv_cache = networks.KVCache(lambda: 10**9)
        one(patched(one, None, work, kv_cache=kv_cache))
        outs.append(one(patched(one, kept, amplifying([True]), kv_cache=kv_cache)))
    assert torch.allclose(*outs, atol=1e-3)
    assert not torch.allclose(outs[0], one(patched(one, kept, kv_cache=kv_cache)), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_where_words_look_is_recorded_of_the_video_alone(case, patched, pack_module, kind):
    one, maps = case(kind), []
    record = pack_module("chorus.comfy.techniques.record")

    def watch(block, q, k, v, heads):
        video = q[0][one.in_front :]
        maps.append(record.coarse_attention(video, k[0], heads, (3, 3, 4), torch.ones(TEXT, dtype=torch.bool)))
        by_row = record.coarse_attention(video.flatten(1), k[0], heads, (3, 3, 4), torch.ones(TEXT, dtype=torch.bool))
        assert torch.equal(maps[-1], by_row)
        return k, v

    one(patched(one, None, watch))
    assert [tuple(found.shape) for found in maps] == [(TEXT, 3, 3, 4)] * len(one.blocks)
    assert all(torch.allclose(found.sum(0), torch.ones(3, 3, 4), atol=1e-5) for found in maps)


# -- what the network is -------------------------------------------------------------------------------------------


def test_the_grid_of_a_hunyuan_is_that_of_its_patches(networks, hunyuan, hunyuan15):
    first, second = networks.HunyuanVideo(hunyuan), networks.HunyuanVideo(hunyuan15)
    assert first.token_grid((1, 16, 3, 6, 8)) == (3, 3, 4) and first.block_count == 4
    assert second.token_grid((1, 32, 3, 6, 8)) == (3, 6, 8) and second.block_count == 3
    assert first.token_grid((1, 16, 6, 8)) is None
    assert first.words_refusal() is None and second.words_refusal() is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, None),
        ({"patches": {"attn1_patch": []}}, None),
        ({"patches": {"attn1_patch": [print]}}, "note.patched"),
        ({"optimized_attention_override": print}, "note.attention"),
    ],
)
def test_what_needs_the_whole_grid_refuses_selective_steps(networks, hunyuan, hunyuan15, options, why):
    for model in (hunyuan, hunyuan15):
        refused = networks.HunyuanVideo(model).selective_refusal(options)
        assert (refused.code if refused else None) == why


def test_an_image_model_of_this_architecture_is_computed_whole(networks, comfy_host):
    network = networks.HunyuanVideo(_hunyuan(patch_size=[2, 2], axes_dim=[12, 12]))
    assert network.token_grid((1, 16, 6, 8)) is None and network.token_grid((1, 16, 1, 6, 8)) is None
    assert network.selective_refusal({}).code == "note.network"
    assert network.words_refusal().code == "note.no_blocks"


# -- tokens of one cell, where masks and earlier versions have 1 × 2 × 2 cells ---------------------------------------


def test_masks_made_before_sampling_are_brought_onto_the_tokens(pack_module, networks, hunyuan15):
    regions, selective = pack_module("chorus.reuse.regions"), pack_module("chorus.comfy.techniques.selective")
    base = torch.zeros(3, 3, 4, dtype=torch.bool)
    base[1, 1, 2] = True
    masks = selective.Masks(regions.build(base, 0, 0), None, "mask", 0, 0)
    request = SimpleNamespace(
        plan=SimpleNamespace(source=object(), stages={selective.NAME: masks}),
        network=networks.HunyuanVideo(hunyuan15),
        shape=(1, 16, 3, 6, 8),
        before=None,
        given=None,
        guidance=SimpleNamespace(windows=""),
        areas=False,
        foreign=(),
        sampler=SimpleNamespace(reads_uncond=False),
        options={},
    )
    schedule = pack_module("chorus.reuse.schedule").Schedule((1.0, 0.75, 0.5, 0.25, 0.0)).from_step(1)
    made = selective.Selective(request)
    decided = made.begin(schedule).schedule
    made.known = drawn(1, 16, 3, 6, 8)
    call = networks.ModelCall(request.shape, None, 2, torch.ones(1, dtype=torch.bool), {})
    places = [48 + row * 8 + column for row in (2, 3) for column in (4, 5)]
    assert made.in_call(decided, call).kept.tolist() == places
    assert made.expected_share(decided, 2) == round(4 / 144, 4)
    assert made.edit.flatten().nonzero().flatten().tolist() == places


@pytest.mark.parametrize(("grid", "looks"), [((3, 6, 8), True), ((3, 3, 4), False)])
def test_a_first_step_kept_with_other_tokens_gives_no_look(pack_module, networks, hunyuan15, monkeypatch, grid, looks):
    source = pack_module("chorus.comfy.techniques.source")
    entry = SimpleNamespace(id="kept", sigmas=(1.0, 0.5, 0.0), settings={"noise": "same", "noise_drawn": False})
    cache = SimpleNamespace(load=lambda entry, names: {names[0]: drawn(1, 16, *grid)})
    monkeypatch.setattr(source, "stored_estimates", lambda entry: {1.0: "estimate/1.0"})
    monkeypatch.setattr(source, "open_cache", lambda *args: cache)
    monkeypatch.setattr(
        source, "load_trajectory", lambda *args: SimpleNamespace(at=lambda sigma: drawn(1, 16, 3, 6, 8))
    )
    request = SimpleNamespace(
        plan=SimpleNamespace(source=SimpleNamespace(entry=entry), cache_name="", place=None),
        network=networks.HunyuanVideo(hunyuan15),
        noise=drawn(1, 16, 3, 6, 8),
        noise_digest="same",
        shape=(1, 16, 3, 6, 8),
        into_model_space=None,
    )
    found = source.picture(request, None)
    assert isinstance(found, source.Picture) if looks else found.code == "note.look_tokens"
