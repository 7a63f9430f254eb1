"""The attention override: text cross-attention only, conditional rows only, around what was there before."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from chorus.reuse.amplification import amplify

from .conftest import TEXT_DIM

TEXT = 8
LATENT = (2, 4, 4)
GRID = (2, 2, 2)
TOKENS = 8  # as many as the text has, so that lengths alone do not tell self- from cross-attention
BLOCKS = 3


@dataclass
class Seen:
    block: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Listener:
    """An override that another node put in the slot."""

    def __init__(self):
        self.calls: list[Seen] = []

    def __call__(self, func, q, k, v, *args, **kwargs):
        self.calls.append(Seen(kwargs["transformer_options"]["block_index"], q.clone(), k.clone(), v.clone()))
        return func(q, k, v, *args, **kwargs)


def inputs(rows: int = 2, channels: int = 16, text: int = TEXT):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, channels, *LATENT, generator=generator)
    return x, torch.full((rows,), 600.0), torch.randn(rows, text, TEXT_DIM, generator=generator)


@pytest.fixture(scope="module")
def working(networks):
    """`working(model, given, base, *works)`: transformer options under which the text's attention does `works`."""

    def options(model, given, base, *works, kept=None):
        x, _, context = given
        rows = torch.ones(len(x), dtype=torch.bool)
        made = networks.ModelCall(tuple(x.shape), context, 0, rows, base)
        return networks.Wan(model).patched(made, kept, works, None)

    return options


@pytest.fixture(scope="module")
def listen(working):
    """`listen(model, given, *works)`: (output, what reached the attention after the works)."""

    def listened(model, given, *works, kept=None, **conditions) -> tuple[torch.Tensor, list[Seen]]:
        listener = Listener()
        options = working(model, given, {"optimized_attention_override": listener}, *works, kept=kept)
        return model(*given, transformer_options=options, **conditions), listener.calls

    return listened


def idle(block, q, k, v, heads):
    return k, v


def amplifying(rows, strength=1.0, where="both", text=TEXT):
    weights = torch.zeros(text)
    weights[2] = 1.0

    def work(block, q, k, v, heads):
        return amplify(k, v, weights, torch.tensor(rows), strength, where)

    return work


def test_work_of_nothing_changes_no_bit_and_calls_through(wan, listen):
    plain, before = listen(wan, inputs())
    out, calls = listen(wan, inputs(), idle)
    assert torch.equal(out, plain)
    assert len(calls) == len(before) == 2 * BLOCKS


def test_without_an_earlier_override_the_host_attention_is_used(wan, working):
    given = inputs()
    options = working(wan, given, {}, idle)
    assert torch.equal(wan(*given, transformer_options=options), wan(*given, transformer_options={}))


def test_a_fault_in_the_work_is_chorus_own_and_one_in_the_hosts_attention_is_not(wan, working, pack_module):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    def in_the_host(func, q, k, v, *args, **kwargs):
        return func(q, k[:, :, :-1], v, *args, **kwargs)

    given = inputs()
    is_own = pack_module("chorus.comfy.faults").is_own
    with pytest.raises(ZeroDivisionError) as own:
        wan(*given, transformer_options=working(wan, given, {}, broken))
    with pytest.raises(RuntimeError) as hosts:
        wan(*given, transformer_options=working(wan, given, {"optimized_attention_override": in_the_host}, idle))
    assert is_own(own.value) and not is_own(hosts.value)


def test_self_attention_is_left_alone_and_text_is_amplified(wan, listen):
    _, before = listen(wan, inputs())
    _, calls = listen(wan, inputs(), amplifying([False, True]))
    assert torch.equal(calls[0].k, before[0].k) and torch.equal(calls[0].v, before[0].v)
    for block in range(BLOCKS):
        plain, louder = before[2 * block + 1], calls[2 * block + 1]
        assert louder.block == block
        for name in ("k", "v"):
            was, now = getattr(plain, name), getattr(louder, name)
            assert torch.equal(now[0], was[0]), "the unconditional row"
            assert torch.allclose(now[1, 2], 2 * was[1, 2])
            others = [i for i in range(TEXT) if i != 2]
            assert torch.equal(now[1, others], was[1, others])


def test_only_the_conditional_row_of_the_output_changes(wan, listen):
    plain, _ = listen(wan, inputs())
    out, _ = listen(wan, inputs(), amplifying([True, False], strength=2.0))
    assert torch.equal(out[1], plain[1])
    assert not torch.allclose(out[0], plain[0], atol=1e-4)


@pytest.mark.parametrize(("where", "changed"), [("keys", "k"), ("outputs", "v")])
def test_keys_or_outputs_alone(wan, listen, where, changed):
    _, before = listen(wan, inputs())
    _, calls = listen(wan, inputs(), amplifying([True, True], where=where))
    kept = "v" if changed == "k" else "k"
    assert torch.equal(getattr(calls[1], kept), getattr(before[1], kept))
    assert not torch.equal(getattr(calls[1], changed), getattr(before[1], changed))


@pytest.mark.parametrize("text", [TEXT, 11])
def test_an_image_to_video_model_amplifies_text_not_image(make_wan, listen, text):
    model = make_wan(model_type="i2v", in_dim=36)
    given = inputs(channels=36, text=text)
    clip_fea = torch.randn(2, 257, 1280, generator=torch.Generator().manual_seed(6))
    _, before = listen(model, given, clip_fea=clip_fea)
    _, calls = listen(model, given, amplifying([True, True], text=text), clip_fea=clip_fea)
    assert [c.k.shape[1] for c in calls] == [TOKENS, 257, text] * BLOCKS
    for block in range(BLOCKS):
        image, words = 3 * block + 1, 3 * block + 2
        assert torch.equal(calls[image].k, before[image].k) and torch.equal(calls[image].v, before[image].v)
        assert torch.allclose(calls[words].k[:, 2], 2 * before[words].k[:, 2])


def test_each_block_meets_the_text_once_a_call(wan, listen):
    seen = []

    def watch(block, q, k, v, heads):
        seen.append((block, q, k, heads))
        return k, v

    _, calls = listen(wan, inputs(), watch)
    assert [block for block, *_ in seen] == list(range(BLOCKS))
    for block, q, k, heads in seen:
        assert heads == wan.num_heads
        assert torch.equal(q, calls[2 * block + 1].q) and torch.equal(k, calls[2 * block + 1].k)


def test_works_follow_each_other(wan, listen):
    seen = []

    def watch(block, q, k, v, heads):
        seen.append(k.clone())
        return k, v

    _, before = listen(wan, inputs())
    louder = amplifying([True, True], strength=5.0)
    listen(wan, inputs(), watch, louder, watch)
    assert torch.equal(seen[0], before[1].k)
    assert torch.allclose(seen[1][:, 2], 6 * before[1].k[:, 2])


def test_kept_tokens_and_amplified_words_go_together(wan, listen):
    given = inputs()
    _, calls = listen(wan, given, amplifying([True, True]), kept=torch.tensor([1, 4, 6]))
    _, before = listen(wan, given)
    assert [c.q.shape[1] for c in calls] == [3] * 2 * BLOCKS
    assert torch.allclose(calls[1].k[:, 2], 2 * before[1].k[:, 2])


# -- where words look -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(pack_module):
    return pack_module("chorus.comfy.techniques.record")


def naive(q, k, heads, grid, real):
    """[L_real, T, H, W] by the definition, one head and one token at a time."""
    size = q.shape[-1] // heads
    out = torch.zeros(len(k), len(q))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(q)):
            scores = torch.stack([(q[token, part] * key[part]).sum() / size**0.5 for key in k])
            out[:, token] += scores.exp() / scores.exp().sum() / heads
    return out[real].view(-1, *grid)


def queries_and_keys(grid, tokens=5, channels=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    count = grid[0] * grid[1] * grid[2]
    return torch.randn(count, channels, generator=generator).to(dtype), torch.randn(
        tokens, channels, generator=generator
    ).to(dtype)


REAL = torch.tensor([True, True, False, True, False])


def test_where_words_look_is_the_softmax_over_words(record):
    grid = (2, 3, 4)
    q, k = queries_and_keys(grid)
    maps = record.coarse_attention(q, k, 3, grid, REAL)
    assert maps.shape == (3, *grid) and maps.dtype == torch.float32
    assert torch.allclose(maps, naive(q, k, 3, grid, REAL), atol=1e-5)


def test_a_large_grid_is_asked_at_every_nth_token(record):
    grid = (9, 20, 33)
    q, k = queries_and_keys(grid)
    maps = record.coarse_attention(q, k, 3, grid, REAL)
    assert maps.shape == (3, 5, 10, 11)
    asked = q.view(*grid, -1)[::2, ::2, ::3].reshape(-1, 12)
    assert torch.allclose(maps, naive(asked, k, 3, (5, 10, 11), REAL), atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1, 1), (8, 16, 16), (21, 45, 80), (1, 90, 17)])
def test_maps_are_small_and_shares_of_one(record, grid):
    q, k = queries_and_keys(grid)
    maps = record.coarse_attention(q, k, 2, grid, REAL)
    assert all(0 < have <= most for have, most in zip(maps.shape[1:], record.COARSE, strict=True))
    assert bool((maps >= 0).all()) and bool((maps.sum(0) <= 1 + 1e-5).all())
    everything = record.coarse_attention(q, k, 2, grid, torch.ones(5, dtype=torch.bool))
    assert torch.allclose(everything.sum(0), torch.ones(maps.shape[1:]), atol=1e-5)


def test_half_precision_queries_are_compared_in_single(record):
    grid = (2, 3, 4)
    q, k = queries_and_keys(grid, dtype=torch.bfloat16)
    maps = record.coarse_attention(q, k, 3, grid, REAL)
    assert maps.dtype == torch.float32
    assert torch.allclose(maps, naive(q.float(), k.float(), 3, grid, REAL), atol=1e-5)
