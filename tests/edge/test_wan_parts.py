"""Keeping tokens in the Wan networks that have further parts beside, between or inside the blocks.

What is computed is compared with the network's own layers on the kept tokens, without anything of Chorus. And where
keys and values of a full call of the same input stand for the tokens that are left out, the computed tokens must come
out as in the full call: all that a token takes from others is attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from .conftest import TEXT_DIM, TokenMoves

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


# -- the network's own layers on the kept tokens -------------------------------------------------------------------

Slot = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def of_computed(args: dict[str, Any], at: list[int]) -> dict[str, Any]:
    """What a block gets, for these tokens alone."""
    from comfy.ldm.wan.model import repeat_e

    vec = args["vec"]
    vec = repeat_e(vec, args["img"])[:, at] if vec.ndim == 4 and vec.shape[1] > 1 else vec
    return args | {"img": args["img"][:, at], "pe": args["pe"][:, at], "vec": vec}


def put(args: dict[str, Any], at: list[int], image: torch.Tensor) -> dict[str, torch.Tensor]:
    whole = args["img"].clone()
    whole[:, at] = image
    return {"img": whole}


def whole_between_blocks(at: list[int]) -> Slot:
    """The host's own parts between the blocks get the whole sequence. A token takes nothing of another one there."""

    def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, torch.Tensor]:
        return put(args, at, extra["original_block"](of_computed(args, at))["img"])

    return block


def block_of_humo(network: Tried, index: int, at: list[int]) -> Slot:
    """One token after another attends to the sound of its frame."""
    block, sound = network.module.blocks[index], network.conditions.get("audio_embed")
    if sound is not None:
        images = network.conditions["reference_latent"].shape[2] if "reference_latent" in network.conditions else 0
        sound = torch.cat([sound, sound.new_zeros(len(sound), images, *sound.shape[2:])], 1)
        sound = network.module.audio_proj(sound)  # [B, frames, 16, C]

    def by_hand(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, torch.Tensor]:
        part = of_computed(args, at)
        x, e = part["img"], (block.modulation.unsqueeze(0) + part["vec"]).unbind(2)
        x = x + e[2] * block.self_attn(block.norm1(x) * (1 + e[1]) + e[0], part["pe"])
        x = x + block.cross_attn(block.norm3(x), args["txt"])
        if sound is not None:
            each = zip(x.split(1, 1), at, strict=True)
            x = torch.cat([block.audio_cross_attn_wrapper(one, sound[:, place // FRAME]) for one, place in each], 1)
        x = x + e[5] * block.ffn(block.norm2(x) * (1 + e[4]) + e[3])
        return put(args, at, x)

    return by_hand


def vace_by_hand(network: Tried, kept: list[int]) -> torch.Tensor:
    """All blocks, beside each other as in the host, on the kept tokens alone."""
    from comfy.ldm.wan.model import sinusoidal_embedding_1d

    model, conditions = network.module, network.conditions
    e = model.time_embedding(sinusoidal_embedding_1d(model.freq_dim, torch.full((network.rows,), 700.0)))
    freqs = model.rope_encode(FRAMES, HEIGHT, WIDTH, dtype=torch.float32)[:, kept]
    given = {"e": model.time_projection(e).unflatten(1, (6, model.dim)), "freqs": freqs}
    given["context"] = model.text_embedding(network.text)
    tokens = model.patch_embedding(network.x).flatten(2).transpose(1, 2)
    contexts = [
        model.vace_patch_embedding(context).flatten(2).transpose(1, 2)[:, kept]
        for context in conditions["vace_context"].unbind(1)
    ]
    video = x = tokens[:, kept]
    for index, block in enumerate(model.blocks):
        x = block(x, **given)
        side = model.vace_layers_mapping.get(index)
        if side is not None:
            for number, strength in enumerate(conditions["vace_strength"]):
                added, contexts[number] = model.vace_blocks[side](contexts[number], x=video, **given)
                x = x + strength * added
    tokens = tokens.clone()
    tokens[:, kept] = x
    return model.unpatchify(model.head(tokens, e), GRID)


def by_hand(network: Tried, kept: list[int]) -> torch.Tensor:
    at = [*kept, *range(TOKENS, TOKENS + network.case.behind)]
    if network.case.kind == "VaceWanModel":
        return vace_by_hand(network, kept)
    humo = network.case.kind == "HumoWanModel"
    count = range(len(network.module.blocks))
    slots = {("double_block", i): block_of_humo(network, i, at) if humo else whole_between_blocks(at) for i in count}
    return network.with_options({"patches_replace": {"dit": slots}})


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=2e-5, rtol=1e-4)


@each_case
@each_set
def test_keeping_some_equals_the_networks_own_layers_on_only_these_tokens(tried, case, kept):
    network = tried(case, 2)
    part, expected = network(kept), by_hand(network, kept)
    assert close(of_tokens(part, kept), of_tokens(expected, kept))
    # Otherwise equality would say nothing.
    assert not torch.allclose(of_tokens(network(None), kept), of_tokens(expected, kept), atol=1e-3)


@each_case
@pytest.mark.parametrize("rows", [1, 2])
def test_with_every_token_kept_the_output_is_the_unpatched_one(tried, case, rows):
    network = tried(case, rows)
    assert close(network(list(range(TOKENS))), network.with_options({}))


@each_case
def test_keeping_keys_and_values_changes_no_bit(tried, case):
    network = tried(case)
    assert torch.equal(network(None, network.kv_cache), network.with_options({}))
    assert network.kv_cache.has(((), tuple(network.x.shape))) and not network.kv_cache.full


@each_case
@each_set
def test_with_keys_and_values_of_the_full_call_the_computed_tokens_are_those_of_the_full_call(tried, exact, case, kept):
    network = tried(case, 2)
    full = network(None, network.kv_cache)
    part = network(kept, network.kv_cache)
    assert close(of_tokens(part, kept), of_tokens(full, kept))
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


@each_case
def test_the_others_reach_the_head_as_they_reached_the_blocks(tried, case):
    network, kept = tried(case), SETS["more of one frame than of another"]
    entered: list[torch.Tensor] = []
    reached: list[torch.Tensor] = []

    def into(seen: list[torch.Tensor]) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, args: seen.append(args[0].clone())

    hook = network.module.blocks[0].register_forward_pre_hook(into(entered))
    network(None)
    hook.remove()
    hook = network.module.head.norm.register_forward_pre_hook(into(reached))
    network(kept)
    hook.remove()
    others = [token for token in range(TOKENS) if token not in kept]
    assert torch.equal(reached[0][:, others], entered[0][:, others])
    assert not torch.allclose(reached[0][:, kept], entered[0][:, kept], atol=1e-2)


GATHERS = {
    "VACE": 1 + 2,  # the context, and once more the video, for the first side block
    "VACE, two contexts": 1 + 2 * 2,
    "HuMo": 1 + 3 * 2,  # in each block into parts of a frame and back
    "HuMo, no sound": 1,
    "S2V, reference and motion": 1 + 2 * 2,  # after two of three blocks
    "Animate": 1 + 2 * 2,  # after two of ten blocks
    "Animate, no face": 1,
}


@pytest.mark.parametrize("name", GATHERS)
def test_tokens_are_moved_where_a_part_needs_it_and_put_back_once(tried, name):
    network, kept = tried(CASES[name]), SETS["more of one frame than of another"]
    network(None)
    width, behind = network.module.dim, network.case.behind
    with TokenMoves(width) as moves:
        network(kept)
    whole = (1, TOKENS + behind, width)
    assert moves.put == [whole]
    assert len([shape for shape in moves.gathered if shape[-1] == width]) == GATHERS[name]
    wholes = 1 + 2 * len(network.conditions.get("vace_strength", ()))
    assert moves.gathered.count(whole) == wholes, "all others move computed tokens only"


@pytest.mark.parametrize("others", [0, 12])
@each_set
def test_parts_of_frames_hold_each_token_once_and_little_else(pack_module, kept, others):
    rows = torch.tensor([*kept, *range(TOKENS, TOKENS + others)])
    parts = pack_module("chorus.comfy.networks.wan_tokens").FrameParts.of(rows, TOKENS, FRAMES, others)
    assert torch.equal(rows[parts.taken[parts.back]], rows) and len(parts.back.unique()) == len(rows)
    size = (len(parts.taken) - others) // len(parts.frames)
    inside = parts.back[: len(kept)]
    assert torch.equal(parts.frames[inside // size], torch.tensor(kept) // FRAME)
    assert torch.equal(parts.back[len(kept) :], torch.arange(others) + size * len(parts.frames))
    assert len(parts.taken) - len(rows) <= max(FRAMES, len(kept) / 4)


def test_the_strength_of_vace_counts_for_the_kept_tokens(tried, exact):
    kept = SETS["one of each frame"]
    outputs = []
    for strengths in ((0.8, 1.3), (1.3, 0.8), (0.0, 0.0)):
        network = tried(Case("VaceWanModel", CASES["VACE"].numbers, vace(*strengths)))
        full, part = network(None, network.kv_cache), network(kept, network.kv_cache)
        assert close(of_tokens(part, kept), of_tokens(full, kept))
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


def attends_alone(kind: Any) -> Callable[..., Any]:
    """Side blocks attend to the kept tokens alone."""
    return lambda self, call: 0


def contexts_swapped(kind: Any) -> Callable[..., Any]:
    """Every side block gets the keys and values of another context's."""
    inner = kind.__call__

    def swapped(self: Any, block: int, k: torch.Tensor, v: torch.Tensor) -> Any:
        sides = {4: 8, 8: 4, 6: 10, 10: 6}
        return inner(self, sides.get(block, block) if self.tokens.computed is not None else block, k, v)

    return swapped


def of_another_frame(kind: Any) -> Callable[..., Any]:
    """Each frame gets what belongs to the one before."""
    inner = kind._by_frame

    def moved(self: Any, image: torch.Tensor, framed: int, *of_frames: torch.Tensor) -> Any:
        return inner(self, image, framed, *(each.roll(1, 1) for each in of_frames))

    return moved


@pytest.mark.parametrize(
    ("name", "place", "fault"),
    [
        ("VACE", "wan.Wan._side_blocks", attends_alone),
        ("VACE, two contexts", "tokens.SelfAttention.__call__", contexts_swapped),
        ("HuMo", "wan_tokens.TokensOfParts._by_frame", of_another_frame),
        ("S2V", "wan_tokens.TokensOfParts._by_frame", of_another_frame),
        ("Animate", "wan_tokens.TokensOfParts._by_frame", of_another_frame),
    ],
)
def test_a_planted_fault_is_seen(tried, exact, pack_module, monkeypatch, name, place, fault):
    module, owner, method = place.split(".")
    kind = getattr(pack_module(f"chorus.comfy.networks.{module}"), owner)
    network, kept = tried(CASES[name]), SETS["one of each frame"]
    full = network(None, network.kv_cache)
    monkeypatch.setattr(kind, method, fault(kind))
    part = network(kept, network.kv_cache)
    assert not torch.allclose(of_tokens(part, kept), of_tokens(full, kept), atol=1e-3)
