"""Tries a family once, in all the ways that the tests and the table ask about."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from .catalog import FIRST, SIMILAR, Family, Graph, plain, with_input


@dataclass(frozen=True)
class Answer:
    """What a request came to. latent: of the sampler, several streams in a row; report: of the store node."""

    latent: torch.Tensor
    report: dict[str, Any]

    @property
    def outcome(self) -> str:
        return self.report["outcome"]

    @property
    def reason(self) -> str:
        return self.report["reason"]


@dataclass(frozen=True)
class Tried:
    """A family's requests, in one cache of that name.

    reference: the first prompt without Chorus; similar_reference: the similar one.
    cold, similar, again: the first prompt, the similar one, and the first one anew, with Chorus.
    early: the similar prompt as another take. inputs: the similar prompt with one other input each.
    all_kept: the first prompt with every token named as kept, None where the family computes no part of its tokens.
    last_frame: differences of two prompts in and outside the last frame, if its tokens alone are computed; likewise.
    """

    family: Family
    cache: str
    reference: torch.Tensor
    similar_reference: torch.Tensor
    cold: Answer
    similar: Answer
    again: Answer
    early: Answer
    inputs: dict[str, Answer] = field(default_factory=dict)
    all_kept: torch.Tensor | None = None
    last_frame: tuple[float, float] | None = None

    @property
    def bit_identical(self) -> bool:
        return torch.equal(self.cold.latent, self.reference)

    @property
    def wrong_hits(self) -> list[str]:
        """The inputs another value of which was answered with what belongs to the first one."""
        return [name for name, answer in self.inputs.items() if answer.outcome in ("hit", "identical")]


def away(latent: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative difference."""
    return float((latent - expected).norm() / expected.norm())


@pytest.fixture(scope="session")
def tried(comfy_host, pack_module) -> Callable[[Family], Tried]:
    """`tried(family)`: computed once."""
    known: dict[str, Tried] = {}
    run_of = pack_module("chorus.comfy.sampling.run").Run

    def get(family: Family) -> Tried:
        if family.name not in known:
            family.write(comfy_host.base / "models" / "diffusion_models")
            known[family.name] = _try(family, comfy_host, run_of)
        return known[family.name]

    return get


def _try(family: Family, host: Any, run_of: Any) -> Tried:
    def sampled(g: Graph) -> tuple[torch.Tensor, dict[str, Any]]:
        outputs = host.execute(g)["outputs"]
        samples = host.output("sample")[0][0]["samples"]
        if samples.is_nested:
            samples = torch.cat([part.flatten() for part in samples.unbind()])
        return samples.clone(), outputs.get("store", {}).get("chorus", [{}])[0]

    def asked(g: Graph) -> Answer:
        return Answer(*sampled(g))

    cache = f"families {uuid.uuid4().hex[:12]}"
    first = family.graph(FIRST, cache)
    reference, _ = sampled(plain(first))
    similar_reference, _ = sampled(plain(family.graph(SIMILAR, cache)))
    cold, similar = asked(first), asked(family.graph(SIMILAR, cache, mode="read only"))
    early = asked(family.graph(SIMILAR, cache, mode="read only", take="another take", steps=8))
    read = family.graph(SIMILAR, cache, mode="read only")
    inputs = {name: asked(with_input(read, place, value)) for name, (place, value) in family.inputs.items()}
    all_kept = last_frame = None
    if similar.outcome == "hit" and not told(similar, "no selective steps"):
        with _kept(run_of, frames=slice(None)):
            all_kept, _ = sampled(family.graph(FIRST, f"{cache} kept", mode="write only"))
        if len(family.models) == 1:
            with _kept(run_of, frames=slice(-1, None)):
                # A vector of the whole text reaches every token, computed or not: the last layer takes it, too.
                one, other = (
                    sampled(
                        with_input(
                            family.graph(prompt, f"{cache} kept", mode="write only", steps=1), "clip.alike", True
                        )
                    )[0]
                    for prompt in (FIRST, SIMILAR)
                )
            differs = (one - other).abs().amax((0, 1, 3, 4))
            last_frame = float(differs[-1]), float(differs[:-1].max())
    host.forget_outputs()  # every node runs anew, as after a restart
    again = asked(first)
    return Tried(family, cache, reference, similar_reference, cold, similar, again, early, inputs, all_kept, last_frame)


def told(answer: Answer, beginning: str) -> str:
    """The note that begins so, without its beginning; "" for none."""
    notes = [note for note in answer.report.get("notes", []) if note.startswith(beginning)]
    return notes[0].removeprefix(beginning).lstrip(": ") if notes else ""


@contextmanager
def _kept(run_of: Any, frames: slice) -> Iterator[None]:
    """Every model call of a run computes the tokens of these frames only, each named as kept."""
    inner = run_of.in_call

    def in_call(self: Any, call: Any, counts_blocks: bool) -> Any:
        grid = self.request.network.token_grid(call.shape)
        places = torch.arange(grid[0] * grid[1] * grid[2]).view(grid)[frames].flatten()
        return self.request.network.patched(call, places, (), None)

    run_of.in_call = in_call
    try:
        yield
    finally:
        run_of.in_call = inner
