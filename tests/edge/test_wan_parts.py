"""Keeping tokens in the Wan networks that have further parts beside, between or inside the blocks.

Where keys and values of a full call of the same input stand for the tokens that are left out, the tokens that are
computed must come out as in the full call: all that a token takes from others is attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from .conftest import TEXT_DIM

FRAMES, HEIGHT, WIDTH = 3, 6, 8
GRID = (3, 3, 4)
TOKENS = 36
FRAME = 12  # tokens of a frame


@dataclass(frozen=True)
class Case:
    """A network, what it is given beside the video and the text, and how many tokens lie behind the video's."""

    kind: str
    numbers: dict[str, Any]
    conditions: Callable[[int], dict[str, Any]]
    behind: int = 0


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vace(*strengths: float) -> Callable[[int], dict[str, Any]]:
    def conditions(rows: int) -> dict[str, Any]:
        context = drawn(11, rows, len(strengths), 96, FRAMES, HEIGHT, WIDTH)
        return {"vace_context": context, "vace_strength": list(strengths)}

    return conditions


def humo(rows: int) -> dict[str, Any]:
    return {"audio_embed": drawn(12, rows, FRAMES, 8, 5, 1280)}


def s2v(rows: int) -> dict[str, Any]:
    return {
        "audio_embed": drawn(13, rows, 25, 64, 4 * FRAMES),
        "control_video": drawn(14, rows, 16, FRAMES, HEIGHT, WIDTH),
    }


def animate(rows: int) -> dict[str, Any]:
    return {
        "pose_latents": drawn(15, rows, 16, FRAMES - 1, HEIGHT, WIDTH),
        "face_pixel_values": drawn(16, rows, 3, 4 * (FRAMES - 1), 8, 8),
    }


def reference(rows: int) -> dict[str, torch.Tensor]:
    return {"reference_latent": drawn(17, rows, 16, 1, HEIGHT, WIDTH)}


def motion(rows: int) -> dict[str, torch.Tensor]:
    """16 tokens of the last frame, 4 of the two before, 4 of the 16 before those."""
    return {"reference_motion": drawn(18, rows, 16, 19, 8, 8)}


S2V = {"audio_dim": 64, "audio_inject_layers": [0, 2]}
CASES = {
    "VACE": Case("VaceWanModel", {"num_layers": 4, "vace_layers": 2, "vace_in_dim": 96}, vace(0.8)),
    "VACE, two contexts": Case("VaceWanModel", {"num_layers": 4, "vace_layers": 2, "vace_in_dim": 96}, vace(0.8, 1.3)),
    "VACE, at every block": Case("VaceWanModel", {"vace_layers": 3, "vace_in_dim": 96}, vace(1.0)),
    "HuMo": Case("HumoWanModel", {}, humo),
    "HuMo, reference": Case("HumoWanModel", {}, lambda rows: humo(rows) | reference(rows), FRAME),
    "HuMo, no sound": Case("HumoWanModel", {}, lambda rows: {}),
    "S2V": Case("WanModel_S2V", S2V, s2v),
    "S2V, reference": Case("WanModel_S2V", S2V, lambda rows: s2v(rows) | reference(rows), FRAME),
    "S2V, reference and motion": Case(
        "WanModel_S2V",
        S2V,
        lambda rows: s2v(rows) | reference(rows) | motion(rows),
        FRAME + 16 + 4 + 4,
    ),
    "Animate": Case("AnimateWanModel", {"num_layers": 10, "in_dim": 36, "model_type": "i2v"}, animate),
    "Animate, no face": Case(
        "AnimateWanModel",
        {"num_layers": 5, "in_dim": 36, "model_type": "i2v"},
        lambda rows: {"pose_latents": animate(rows)["pose_latents"]},
    ),
}
SETS = {
    "one": [17],
    "one of each frame": [3, 14, 35],
    "more of one frame than of another": [0, 1, 2, 5, 13, 30, 31],
    "a frame": list(range(12, 24)),
    "as many as two frames, unevenly": [*range(0, 10), *range(20, 34)],
    "all but one": [*range(0, 8), *range(9, 36)],
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_set = pytest.mark.parametrize("kept", SETS.values(), ids=SETS)


@pytest.fixture(scope="module")
def network_of(make_wan) -> Callable[[Case], torch.nn.Module]:
    known: dict[str, torch.nn.Module] = {}

    def get(case: Case) -> torch.nn.Module:
        name = f"{case.kind} {case.numbers}"
        if name not in known:
            made = known[name] = make_wan(kind=case.kind, **case.numbers)
            if hasattr(made, "motion_encoder"):  # it sees pictures of 512 × 512 only, before the blocks
                made.motion_encoder.get_motion = lambda pixels: pixels.flatten(1).repeat(1, 3)[:, :512]
        return known[name]

    return get


class Tried:
    """A network in one case, with an input, and calls that compute a part of its tokens."""

    def __init__(self, networks: Any, case: Case, module: torch.nn.Module, rows: int):
        self.networks, self.case, self.module, self.rows = networks, case, module, rows
        self.x = drawn(4, rows, module.in_dim, FRAMES, HEIGHT, WIDTH)
        self.text = drawn(5, rows, 7, TEXT_DIM)
        self.conditions = case.conditions(rows)
        self.kv_cache = networks.KVCache(lambda: 1 << 30)

    def __call__(self, kept: list[int] | None, kv_cache: Any = None, works: tuple[Any, ...] = ()) -> torch.Tensor:
        call = self.networks.ModelCall(
            tuple(self.x.shape), self.text, 0, torch.ones(self.rows, dtype=torch.bool), {}, self.conditions
        )
        indices = None if kept is None else torch.tensor(kept)
        options = self.networks.Wan(self.module).patched(call, indices, works, None, kv_cache)
        return self.with_options(options)

    def with_options(self, options: dict[str, Any]) -> torch.Tensor:
        timestep = torch.full((self.rows,), 700.0)
        return self.module(self.x, timestep, self.text, transformer_options=options, **self.conditions)


@pytest.fixture
def tried(networks, network_of) -> Callable[..., Tried]:
    return lambda case, rows=1: Tried(networks, case, network_of(case), rows)


@pytest.fixture
def exact(pack_module, monkeypatch) -> None:
    """Keys and values are kept as they are, instead of in half precision."""
    monkeypatch.setattr(pack_module("chorus.comfy.networks.base"), "_halved", torch.clone)


def of_tokens(latent: torch.Tensor, kept: list[int], others: bool = False) -> torch.Tensor:
    """The cells of these tokens, or of all others: [B, C, cells]."""
    mask = torch.zeros(TOKENS, dtype=torch.bool)
    mask[kept] = True
    cells = mask.view(GRID).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return latent[:, :, ~cells if others else cells]


@contextmanager
def lengths(module: torch.nn.Module) -> Iterator[list[int]]:
    """How many tokens reach each block, side blocks included."""
    seen: list[int] = []
    blocks = [*module.blocks, *getattr(module, "vace_blocks", ())]
    hooks = [block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def test_every_case_is_served(networks, network_of):
    for case in CASES.values():
        assert networks.Wan.fits(network_of(case))
        assert networks.Wan(network_of(case)).selective_refusal({}) is None


@each_case
@pytest.mark.parametrize("rows", [1, 2])
def test_with_every_token_kept_not_a_bit_changes(tried, case, rows):
    network = tried(case, rows)
    assert torch.equal(network(list(range(TOKENS))), network.with_options({}))


@each_case
def test_keeping_keys_and_values_changes_no_bit(tried, case):
    network = tried(case)
    assert torch.equal(network(None, network.kv_cache), network.with_options({}))
    assert network.kv_cache.has(((), tuple(network.x.shape))) and not network.kv_cache.full


@each_case
@each_set
@pytest.mark.parametrize("rows", [1, 2])
def test_with_keys_and_values_of_the_full_call_the_computed_tokens_are_those_of_the_full_call(
    tried, exact, case, kept, rows
):
    network = tried(case, rows)
    full = network(None, network.kv_cache)
    part = network(kept, network.kv_cache)
    assert torch.allclose(of_tokens(part, kept), of_tokens(full, kept), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(of_tokens(part, kept, True), of_tokens(full, kept, True), atol=1e-2)
    # Keys and values of left-out tokens matter: without them the result is another one.
    if len(kept) < TOKENS - 1:
        assert not torch.allclose(of_tokens(network(kept), kept), of_tokens(full, kept), atol=1e-3)


@each_case
@each_set
def test_all_blocks_see_the_kept_tokens_only(tried, case, kept):
    network = tried(case, 2)
    with lengths(network.module) as seen:
        full = network(None)
    assert set(seen) == {TOKENS + case.behind}
    with lengths(network.module) as seen_part:
        part = network(kept)
    assert set(seen_part) == {len(kept) + case.behind} and len(seen_part) == len(seen)
    assert part.shape == full.shape and part.isfinite().all()


@each_case
@each_set
def test_what_is_left_out_has_no_effect_on_what_is_computed(tried, case, kept):
    """Without keys and values of an earlier call: another video at the other tokens, and another context of VACE."""
    network = tried(case)
    before, full = network(kept), network(None)
    mask = torch.ones(TOKENS, dtype=torch.bool)
    mask[kept] = False
    others = mask.view(GRID).repeat_interleave(2, 1).repeat_interleave(2, 2)
    network.x = torch.where(others, drawn(40, *network.x.shape), network.x)
    if "vace_context" in network.conditions:
        context = network.conditions["vace_context"]
        network.conditions["vace_context"] = torch.where(others, drawn(41, *context.shape), context)
    assert torch.equal(of_tokens(network(kept), kept), of_tokens(before, kept))
    assert not torch.allclose(of_tokens(network(None), kept), of_tokens(full, kept), atol=1e-3)


@pytest.mark.parametrize("name", ["VACE", "VACE, two contexts", "VACE, at every block", "HuMo, reference"])
def test_the_others_come_back_as_they_went_in(tried, name):
    network, kept = tried(CASES[name]), SETS["more of one frame than of another"]
    reached = []
    hook = network.module.head.register_forward_pre_hook(lambda _, args: reached.append(args[0].clone()))
    try:
        network(kept)
    finally:
        hook.remove()
    others = [token for token in range(TOKENS) if token not in kept]
    embedded = network.module.patch_embedding(network.x).flatten(2).transpose(1, 2)
    assert torch.equal(reached[0][:, others], embedded[:, others])
    assert not torch.allclose(reached[0][:, kept], embedded[:, kept], atol=1e-2)


def test_the_strength_of_vace_counts_for_the_kept_tokens(tried, exact):
    kept = SETS["one of each frame"]
    outputs = []
    for strengths in ((0.8, 1.3), (1.3, 0.8), (0.0, 0.0)):
        network = tried(Case("VaceWanModel", CASES["VACE"].numbers, vace(*strengths)))
        full, part = network(None, network.kv_cache), network(kept, network.kv_cache)
        assert torch.allclose(of_tokens(part, kept), of_tokens(full, kept), atol=2e-5, rtol=1e-4)
        outputs.append(of_tokens(part, kept))
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in pairwise(outputs))


def test_the_room_for_keys_and_values_counts_side_blocks(networks, tried):
    """Four blocks, and two side blocks for each of two contexts."""
    network = tried(CASES["VACE, two contexts"])
    network(None, network.kv_cache)
    needed = network.kv_cache.bytes
    assert needed == (4 + 2 * 2) * 2 * 2 * TOKENS * network.module.dim
    for room, fits in ((needed, True), (needed - 1, False)):
        kv_cache = networks.KVCache(lambda room=room: room)
        network(None, kv_cache)
        assert kv_cache.full is not fits and kv_cache.bytes == (needed if fits else 0)


def test_words_are_worked_on_once_in_each_block_and_never_in_self_attention(tried):
    """The text has as many tokens as the video, so lengths alone do not tell text from video."""
    network = tried(CASES["VACE, two contexts"])
    network.text = drawn(5, 1, TOKENS, TEXT_DIM)
    keys: list[tuple[int, torch.Tensor]] = []

    def work(block, q, k, v, heads):
        keys.append((block, k))
        return k, v

    network(None, works=(work,))
    text = network.module.text_embedding(network.text)
    blocks, sides = network.module.blocks, network.module.vace_blocks
    expected = [(0, blocks[0]), (0, sides[0]), (0, sides[0]), (1, blocks[1]), (2, blocks[2]), (2, sides[1])]
    expected += [(2, sides[1]), (3, blocks[3])]
    assert [block for block, _ in keys] == [block for block, _ in expected]
    for (_, k), (_, block) in zip(keys, expected, strict=True):
        assert torch.equal(k, block.cross_attn.norm_k(block.cross_attn.k(text)))


def test_nothing_stays_on_the_network_even_after_a_fault(tried):
    for name in ("VACE", "HuMo"):
        network = tried(CASES[name])
        before = network.with_options({})

        def broken(*_):
            raise ZeroDivisionError

        network([1, 2, 3])
        hook = network.module.blocks[-1].ffn.register_forward_pre_hook(broken)
        try:
            with pytest.raises(ZeroDivisionError):
                network([1, 2, 3])
        finally:
            hook.remove()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.module.modules())
        assert torch.equal(network.with_options({}), before)


# -- faults that the comparisons above must show ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "where", "broken"),
    [
        # the side blocks attend to the kept tokens alone
        ("VACE", "Wan._side_blocks", lambda self, call: 0),
        # every context gets the keys and values of another one
        ("VACE, two contexts", "_SelfAttention.__call__", "swapped"),
        # the tokens of sound's frames are numbered as if none were left out
        ("HuMo", "_Tokens._enter_frames", "moved"),
    ],
)
def test_a_planted_fault_is_seen(tried, exact, pack_module, monkeypatch, name, where, broken):
    wan = pack_module("chorus.comfy.networks.wan")
    owner, method = where.split(".")
    kind = getattr(wan, owner)
    inner = getattr(kind, method)

    def swapped(self, block, k, v):
        sides = {4: 8, 8: 4, 6: 10, 10: 6}
        return inner(self, sides.get(block, block) if self.tokens.kept is not None else block, k, v)

    def moved(self, module, args, kwargs):
        (x, *others), kwargs = inner(self, module, args, kwargs)
        return (x.roll(FRAME, 1), *others), kwargs

    network, kept = tried(CASES[name]), SETS["one of each frame"]
    full = network(None, network.kv_cache)
    faults = {"swapped": swapped, "moved": moved}
    monkeypatch.setattr(kind, method, faults.get(broken, broken) if isinstance(broken, str) else broken)
    part = network(kept, network.kv_cache)
    assert not torch.allclose(of_tokens(part, kept), of_tokens(full, kept), atol=1e-3)
