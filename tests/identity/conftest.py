"""Requests through the in-process host: their report and their latent, and the same without Chorus."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from . import files
from .graphs import CASES, Graph, in_cache, plain


@dataclass(frozen=True)
class Answer:
    """What one request came to. latent: of the sampler; report: of ChorusCacheStore, None without that node."""

    latent: torch.Tensor
    report: dict[str, Any] | None

    @property
    def outcome(self) -> str:
        assert self.report is not None, "this graph has no store node"
        return self.report["outcome"]

    @property
    def steps_computed(self) -> int:
        assert self.report is not None, "this graph has no store node"
        return self.report.get("steps_computed", 0)


def assert_same(latent: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Fails unless both are equal bit for bit. what: named in the failure, with the relative difference."""
    if latent.shape != expected.shape:
        raise AssertionError(f"{what}: {tuple(latent.shape)} instead of {tuple(expected.shape)}")
    if not torch.equal(latent, expected):
        raise AssertionError(f"{what}: {float((latent - expected).norm() / expected.norm()):.3g} away")


@pytest.fixture(scope="session", autouse=True)
def written(comfy_host) -> None:
    """The files that the graphs name."""
    files.write_all(comfy_host.base)


def new_cache() -> str:
    return f"identity-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def cache() -> str:
    """The name of a cache that nobody else uses."""
    return new_cache()


@pytest.fixture(scope="session")
def run(comfy_host) -> Callable[..., Answer]:
    """`run(graph, keep_nodes=False)`: one request. Without `keep_nodes` every node runs anew, as after a restart."""

    def execute(g: Graph, *, keep_nodes: bool = False) -> Answer:
        if not keep_nodes:
            comfy_host.forget_outputs()
        history = comfy_host.execute(g)
        shown = history["outputs"].get("store", {}).get("chorus")
        latent = comfy_host.output("sample")[0][0]["samples"].clone()
        return Answer(latent, shown[0] if shown else None)

    return execute


@dataclass(frozen=True)
class Stored:
    """A case's own request, computed in full and stored in `cache`."""

    cache: str
    answer: Answer
    expected: torch.Tensor  # the latent of the same graph without Chorus


@pytest.fixture(scope="session")
def stored(run) -> Callable[[str], Stored]:
    """`stored(case)`: computed once; later requests of the case add to the same cache."""
    known: dict[str, Stored] = {}

    def get(case: str) -> Stored:
        if case not in known:
            cache = new_cache()
            g = CASES[case].graph()
            expected = run(plain(g)).latent
            known[case] = Stored(cache, run(in_cache(g, cache)), expected)
        return known[case]

    return get
