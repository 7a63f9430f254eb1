"""Keys and values that stand for tokens which later steps leave out: within a limit, apart for each kind of call."""

from __future__ import annotations

import pytest
import torch

BLOCKS, TOKENS, CHANNELS = 3, 10, 4
BYTES = 2 * 2 * BLOCKS * TOKENS * CHANNELS  # keys and values of all blocks in half precision


@pytest.fixture
def make(networks):
    """`make(most)`: with room for so many bytes."""
    return lambda most: networks.KVCache(lambda: most)


def keys_and_values(seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randn(2, 1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return both[0], both[1]


def keep(context, key, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    for block in range(BLOCKS):
        context.keep(key, block, BLOCKS, *keys_and_values(seed + block, dtype))


def kept_of(context, key, block: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What is kept, with nothing new, in the type of the first tokens' values."""
    nothing = torch.zeros(1, 0, CHANNELS, dtype=torch.float16)
    return context.completed(key, block, torch.zeros(0, dtype=torch.long), nothing, nothing)


def test_new_keys_and_values_take_their_places_among_those_of_the_full_step(make):
    context = make(BYTES)
    keep(context, "a")
    places = torch.tensor([2, 7])
    for block in range(BLOCKS):
        old, new = keys_and_values(block), keys_and_values(50 + block)
        got = context.completed("a", block, places, *(part[:, places] for part in new))
        for whole, before, after in zip(got, old, new, strict=True):
            assert whole.dtype == before.dtype and whole.shape == before.shape
            wanted = before.half().float()
            wanted[:, places] = after[:, places].half().float()
            assert torch.equal(whole, wanted)


def test_the_latest_ones_stay_until_the_next_full_step(make):
    context = make(BYTES)
    keep(context, "a")
    first, second = keys_and_values(50), keys_and_values(60)
    context.completed("a", 0, torch.tensor([1]), first[0][:, :1], first[1][:, :1])
    k, _ = context.completed("a", 0, torch.tensor([4]), second[0][:, :1], second[1][:, :1])
    assert torch.equal(k[:, 1], first[0][:, 0].half().float()) and torch.equal(k[:, 4], second[0][:, 0].half().float())
    keep(context, "a", seed=20)
    assert torch.equal(kept_of(context, "a")[0], keys_and_values(20)[0].half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_bytes_a_number_are_kept_and_never_the_models_own_tensor(make, dtype):
    context = make(BYTES)
    k, v = keys_and_values(1, dtype)
    context.keep("a", 0, 1, k, v)
    before = k.clone()
    k.zero_()
    nothing = torch.zeros(1, 0, CHANNELS, dtype=dtype)
    whole, _ = context.completed("a", 0, torch.zeros(0, dtype=torch.long), nothing, nothing)
    assert torch.equal(whole, before if dtype == torch.bfloat16 else before.half().to(dtype))
    assert context.bytes == 2 * 2 * TOKENS * CHANNELS


def test_exactly_the_limit_is_kept(make):
    context = make(BYTES)
    keep(context, "a")
    assert not context.full and context.has("a") and context.bytes == BYTES


def test_a_byte_too_much_keeps_nothing_at_all(make):
    context = make(BYTES - 1)
    for block in range(BLOCKS):
        context.keep("a", block, BLOCKS, *keys_and_values(block))
        assert context.bytes == 0, "nothing is kept that would have to be dropped again"
    assert context.full and not context.has("a")


def test_the_limit_counts_all_kinds_of_calls_together_and_says_so_for_good(make):
    context = make(2 * BYTES - 1)
    keep(context, "conditional")
    keep(context, "unconditional")
    assert context.full and context.bytes == 0
    keep(context, "conditional")
    assert context.full and not context.has("conditional")


def test_a_later_full_step_replaces_what_was_kept_of_its_kind_of_calls_only(make):
    context = make(2 * BYTES)
    keep(context, "a", seed=0)
    keep(context, "b", seed=10)
    keep(context, "a", seed=20)
    assert not context.full and context.bytes == 2 * BYTES
    assert torch.equal(kept_of(context, "a", 1)[0], keys_and_values(21)[0].half())
    assert torch.equal(kept_of(context, "b", 1)[0], keys_and_values(11)[0].half())


def test_how_much_room_there_is_is_asked_once_when_something_is_to_be_kept(networks):
    asked = []
    context = networks.KVCache(lambda: asked.append(1) or 2 * BYTES)
    assert not asked
    keep(context, "a")
    keep(context, "b")
    assert len(asked) == 1 and not context.full


def test_nothing_is_kept_after_it_is_dropped(make):
    context = make(BYTES)
    keep(context, "a")
    context.drop()
    assert context.bytes == 0 and not context.has("a")


def test_calls_of_other_conditionings_another_order_or_another_shape_are_kept_apart(networks):
    def key(uuids, shape=(2, 16, 4, 12, 12)):
        rows = torch.ones(shape[0], dtype=torch.bool)
        return networks.KVCache.key(networks.ModelCall(shape, None, 0, rows, {"uuids": uuids}))

    assert key(["p", "n"]) == key(["p", "n"])
    others = [key(["p"]), key(["n", "p"]), key([]), key(["p", "n"], (2, 16, 4, 12, 14))]
    assert len({key(["p", "n"]), *others}) == 5
