"""Look and join: one full step shows where the picture changes, and elsewhere the source's picture is kept.

References are the host's own samplers on the plain graph, whose estimates are changed by the host's own hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sampling.conftest import difference
from sampling.graphs import GREEN, RED, Graph, graph, plain
from sampling.test_hosts import split_in_two
from sampling.test_regions import masked

from . import odd_nodes
from .conftest import told
from .sampling_reference import block_lengths, evaluations, patched, sampler_calls, state_at
from .test_samplers import NOISE_FREE

TOKENS = 4 * 6 * 6
SOURCE_SEED, OWN_SEED = 1, 7


def looking(prompt: str = GREEN, **settings: Any) -> Graph:
    """A graph whose hits begin with a look."""
    return graph(prompt, start=0.0, **settings)


def without_context(g: Graph) -> Graph:
    """On a model whose tokens cannot be left out, since another node replaces the attention by the same attention."""

    def apply(patcher: Any) -> None:
        options = patcher.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda func, *args, **kwargs: func(*args, **kwargs)

    return patched(g, apply)


@dataclass
class Kept:
    """What a cold run's picture is outside the mask: its clean component up to the second look, then its result.

    Both [B, C, T, H, W] in model space.
    """

    final: torch.Tensor
    before: torch.Tensor | None = None


def kept_of(
    seen: list[tuple[float, torch.Tensor]], latent: torch.Tensor, second_look: int, sigmas: list[float]
) -> Kept:
    """Of a cold run's evaluations (σ, x) and its LATENT. second_look: the step of a second look, 0 for none."""
    final = comfy_latent(latent)
    if not second_look:
        return Kept(final)
    noise, x = state_at(seen[:1], sigmas[0]), state_at(seen, sigmas[second_look])
    return Kept(final, (x - sigmas[second_look] * noise) / (1 - sigmas[second_look]))


def comfy_latent(latent: torch.Tensor) -> torch.Tensor:
    """A LATENT in model space."""
    import comfy.latent_formats

    return comfy.latent_formats.Wan21().process_in(latent)


def joined_by_hook(
    g: Graph, seed: int, source: Kept, masks: list[torch.Tensor], kinds: str, sigmas: list[float], second_look: int = 0
) -> Graph:
    """The plain request under a seed, whose estimates are joined and skipped as `kinds` says by the host's own hook.

    masks: [T, H, W] on the token grid, of the first look and of a second one; sigmas: the schedule, to tell which step
    an evaluation belongs to. All steps compute all tokens.
    """
    weights = [rim_of(mask.repeat_interleave(2, 1).repeat_interleave(2, 2))[None, None] for mask in masks]
    last_joined = max(k for k, kind in enumerate(kinds) if kind != "F")
    known: list[torch.Tensor] = []

    def hook(args: dict[str, Any]) -> torch.Tensor:
        sigma, x0 = float(args["sigma"].flatten()[0]), args["denoised"]
        step = max(k for k in range(len(kinds)) if sigmas[k] >= sigma - 1e-4)
        if kinds[step] == "-":
            return known[-1]
        if step <= last_joined:
            early = step < second_look
            outside = source.before if early and source.before is not None else source.final
            own = (weights[0] if early else weights[-1]).to(x0)
            x0 = own * x0 + (1 - own) * outside.to(x0)
            known.append(x0)
        return x0

    reference = patched(g, lambda patcher: patcher.set_model_sampler_post_cfg_function(hook))
    reference = plain(reference)
    reference["sample"]["inputs"]["seed"] = seed
    return reference


def rim_of(cells: torch.Tensor) -> torch.Tensor:
    """[T, H, W] bool → what the own estimate counts: the share of the 3 × 3 cells around that lie inside, 0 outside."""
    height, width = cells.shape[1:]
    weights = torch.zeros(cells.shape)
    for y in range(height):
        for x in range(width):
            around = cells[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            weights[:, y, x] = cells[:, y, x] * around.float().mean((1, 2))
    return weights


looks_seen: list[torch.Tensor] = []


@pytest.fixture(autouse=True)
def watched(pack_module, monkeypatch):
    """Every mask that a look makes."""
    looks_seen.clear()
    kind = pack_module("chorus.comfy.techniques.look_and_join").LookAndJoin
    inner = kind._look

    def look(self, *args, **kwargs):
        before = self.regions
        inner(self, *args, **kwargs)
        if self.regions is not before:
            looks_seen.append(self.regions.edit.clone())

    monkeypatch.setattr(kind, "_look", look)


SAMPLERS = [name for name in NOISE_FREE if not name.endswith("cfg_pp")]


@pytest.mark.parametrize(
    ("steps", "cfg", "sampler"), [(4, 1.0, "euler"), (20, 3.0, "euler"), *((8, 1.0, sampler) for sampler in SAMPLERS)]
)
def test_without_selective_steps_a_hit_is_the_hosts_run_with_joined_estimates(run, cache, steps, cfg, sampler):
    settings = {"cache": cache, "steps": steps, "cfg": cfg, "sampler": sampler}
    with evaluations() as seen:
        red = run(without_context(looking(RED, **settings)))
    with sampler_calls() as calls:
        hit = run(without_context(looking(seed=OWN_SEED, **settings)))
    assert hit.report["outcome"] == "hit"
    assert len(calls) == 1
    assert len(calls[0]) == steps + 1
    assert 0.05 < float(looks_seen[-1].float().mean()) < 0.9
    kinds, second_look = {4: ("F-FF", 0), 8: ("F---FFFF", 0), 20: ("F---F---F---FFFFFFFF", 4)}[steps]
    assert len(looks_seen) == (2 if second_look else 1)
    assert hit.report["steps_computed"] == kinds.count("F") == hit.report["step_equivalents"]
    source = kept_of(seen, red.latent, second_look, calls[0])
    reference = run(joined_by_hook(looking(**settings), SOURCE_SEED, source, looks_seen, kinds, calls[0], second_look))
    assert difference(hit.latent, reference.latent) < 1e-4
    assert difference(red.latent, reference.latent) > 0.05


@pytest.mark.parametrize(
    ("steps", "cfg", "kinds", "second_look"), [(4, 1.0, "FS-F", 0), (20, 3.0, "F---FS-S-S-SFS-S-FFF", 4)]
)
def test_selective_steps_see_what_they_leave_out_by_the_keys_and_values_of_the_latest_full_step(
    run, cache, comfy_host, steps, cfg, kinds, second_look
):
    settings = {"cache": cache, "steps": steps, "cfg": cfg}
    with evaluations() as seen:
        red = run(looking(RED, **settings))
    with block_lengths() as lengths, sampler_calls() as calls:
        hit = run(masked(looking(seed=OWN_SEED, **settings), [(16, 16, 80, 64)], comfy_host, visible=0))
    mask = looks_seen[-1]
    inside = int(mask.sum())
    assert 0 < inside < TOKENS
    assert lengths == [length for kind in kinds for length in {"F": [TOKENS], "S": [inside], "-": []}[kind] * 5]

    def joined() -> Graph:
        source = kept_of(seen, red.latent, second_look, calls[0])
        return joined_by_hook(looking(**settings), SOURCE_SEED, source, [mask], kinds, calls[0], second_look)

    reference, blind = run(with_mixed_keys(joined(), mask, kinds)), run(joined())
    # Keys and values are kept in half precision.
    assert difference(hit.latent, reference.latent) < min(2e-3, 0.3 * difference(hit.latent, blind.latent))


def with_mixed_keys(g: Graph, mask: torch.Tensor, kinds: str) -> Graph:
    """The reference of selective steps: all tokens are computed, and those outside the mask keep the latest full step's
    keys and values in self-attention."""
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    place = {"call": 0}
    inside = mask.flatten()[None, :, None]

    def attention(func: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        if k.shape[1] == TOKENS:
            block, kind = place["call"] % 5, kinds[place["call"] // 5]
            place["call"] += 1
            if kind == "F":
                kept[block] = (k, v)
            elif kind == "S":
                k, v = torch.where(inside, k, kept[block][0]), torch.where(inside, v, kept[block][1])
        return func(q, k, v, *args, **kwargs)

    hook = odd_nodes.given["patch"]

    def apply(patcher: Any) -> None:
        hook(patcher)
        patcher.model_options["transformer_options"]["optimized_attention_override"] = attention

    odd_nodes.given["patch"] = apply
    return g


def test_the_own_seed_has_no_say_unless_another_take_is_wanted(run, cache):
    red = run(looking(RED, cache=cache, steps=4))
    kept = run(looking(cache=cache, steps=4, seed=SOURCE_SEED))
    other = run(looking(cache=cache, steps=4, seed=OWN_SEED))
    assert torch.equal(kept.latent, other.latent)
    assert "the seed of this request has no effect" in told(other)
    assert "has no effect" not in told(kept)
    g = looking(cache=cache, steps=4, seed=OWN_SEED)
    g["lookup"]["inputs"]["take"] = "another take"
    take = run(g)
    assert take.report["outcome"] == "hit"
    assert "has no effect" not in told(take)
    outside = ~looks_seen[1].repeat_interleave(2, 1).repeat_interleave(2, 2)[None, None].expand_as(red.latent)
    there, kept_there, taken_there = (result.latent[outside] for result in (red, other, take))
    assert difference(taken_there, there) > 1.5 * difference(kept_there, there)


@pytest.mark.parametrize(("steps", "at"), [(4, 1), (4, 2), (4, 3), (20, 7), (20, 10), (20, 13), (20, 18)])
def test_two_samplers_that_share_a_schedule_look_once_and_join_across_the_boundary(run, cache, comfy_host, steps, at):
    settings = {"cache": cache, "steps": steps}
    run(looking(RED, **settings))

    def given_a_mask() -> Graph:
        return masked(looking(mode="read only", **settings), [(32, 32, 64, 64)], comfy_host, visible=0)

    whole = run(given_a_mask())
    with block_lengths() as lengths:
        split = run(split_in_two(given_a_mask(), at))
    assert [result.report["outcome"] for result in (whole, split)] == ["hit", "hit"], told(whole) + told(split)
    inside = int(looks_seen[-1].sum())
    assert 0 < inside < TOKENS
    kinds = "".join("F" if length == TOKENS else "S" for length in lengths[::5])
    plain_course = {4: "FS-F", 20: "F---FS-S-S-SFS-S-FFF"}[steps]
    behind = plain_course[at:]
    if behind.lstrip("-").startswith("S"):  # the second model has kept no keys and values yet
        behind = behind.replace("S", "F", 1)
    expected = plain_course[:at] + behind
    assert kinds == expected.replace("-", "")
    assert split.report["steps_computed"] == len(kinds)
    assert split.report["looked"] == whole.report["looked"] == pytest.approx(inside / TOKENS, abs=1e-4)
    share_of = {"F": 1.0, "-": 0.0, "S": pytest.approx(inside / TOKENS, abs=1e-4)}
    shares = [share_of[kind] for kind in expected]
    assert split.report["token_share"] == shares[split.report["k1"] : split.report["k2"]]
    # The same model computes both parts, so that only the full step at the boundary makes a difference.
    assert difference(split.latent, whole.latent) < (1e-4 if expected == plain_course else 0.06)
