"""The time that Chorus adds to a request, by part, at the shapes of a real video of 81 frames at 480p.

Entries are stored and loaded as the store node does by default. Latents are white noise, which compresses worst.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from chorus.cache import LocalCache, NewEntry, Space
from chorus.cache.record import write_record
from chorus.comfy.caches import load_trajectory, stored_states
from chorus.prompt.embedding import pool_encoding
from chorus.prompt.tokens import token_difference
from chorus.reuse.profiles import DEFAULT, PROFILES
from chorus.reuse.regions import build, from_attention
from chorus.reuse.trajectory import clean_component, serving

from .. import report
from ..samples import Bench

SEED = 121
LATENT = (1, 16, 21, 60, 104)
GRID = (21, 30, 52)
STEPS, KEEP = 20, 0.75
WORDS, CHANNELS = 60, 4096  # of a prompt in UMT5's encoding
SPACE = Space("weights", "", "Wan21", LATENT, "t2v", "flow")


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by part, in milliseconds a request. Needs no sampling: `bench` is not asked."""
    generator = torch.Generator().manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    repeats, entries = (12, 4000) if full else (4, 300)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    noise, x = drawn(*LATENT), drawn(*LATENT)
    here, there = drawn(WORDS, CHANNELS), drawn(WORDS, CHANNELS)
    there[: WORDS - 5] = here[: WORDS - 5]
    attention = drawn(WORDS, 8, 16, 16).abs()
    sigmas = tuple(np.linspace(1, 0, STEPS + 1).tolist())
    profile = PROFILES[DEFAULT]
    kept = profile.kept(sigmas, KEEP, noise_drawn=False)
    states = {f"checkpoint/{sigma:.6f}": drawn(*LATENT) for sigma in kept}
    tensors = {**states, "final": drawn(*LATENT), "tokens": here.half(), "attention": attention}
    coding = {name: profile.state_coding(sigma, False) for name, sigma in zip(states, kept, strict=True)}
    coding |= {"tokens": "rows", "attention": "rows"}

    def entry(number: int, given: dict[str, torch.Tensor]) -> NewEntry:
        vector = rng.standard_normal(CHANNELS).astype(np.float32)
        return NewEntry(
            space=SPACE,
            request=f"request {number}",
            prompt=f"prompt {number}",
            embedder="conditioning:4096",
            vector=vector / np.linalg.norm(vector),
            sigmas=sigmas,
            settings={"noise_drawn": False, "carried": "", "noise": ""},
            seconds=1.0,
            is_source=True,
            parent=None,
            tensors=given,
            coding=coding if given is tensors else {},
        )

    rows = []

    def row(part: str, when: str, work: Callable[[], object], times: int = repeats) -> None:
        work()
        spent = []
        for _ in range(times):
            began = time.perf_counter()
            work()
            spent.append(1000 * (time.perf_counter() - began))
        rows.append({"part": part, "when": when, "n": times, "ms": report.estimate(spent)})

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cache = LocalCache(Path(folder), max_bytes=50 * 2**30)
        latent = torch.empty(LATENT, device="meta")
        with cache._catalog.writing() as transaction:  # rows without files: enough to be searched
            for number in range(entries):
                new = entry(number, {"final": latent})
                transaction.insert(write_record(f"{number:032x}", 1.0, new), new.vector, "0" * 64, 1000)
        stored = cache.put(entry(entries, tensors))
        query = entry(0, {"final": latent}).vector
        row("embed the prompt (pooling)", "every request", lambda: pool_encoding(here[None]))
        row(
            f"search {entries} entries",
            "every request",
            lambda: cache.search(query, "conditioning:4096", SPACE, k=3),
        )
        row(
            "masks from words and attention",
            "a hit",
            lambda: build(from_attention(attention, token_difference(here, there).gone, GRID), 1, 1),
        )
        needed = serving(stored_states(stored), 0.5 * (kept[0] + kept[1]), noise_drawn=False)
        row("load the source's states", "a hit", lambda: load_trajectory(cache, stored, lambda z: z, noise, needed))
        row(
            f"record {STEPS} states",
            "a miss",
            lambda: [clean_component(x, noise, 0.5) for _ in range(STEPS)],
            max(2, repeats // 4),
        )
        counter = iter(range(entries + 1, entries + 1000))
        row(
            f"store {stored.bytes / 1e6:.0f} MB",
            "a miss",
            lambda: cache.put(entry(next(counter), tensors)),
            max(2, repeats // 4),
        )
        cache.close()
    return report.Result(
        name="overhead",
        title="Chorus's own time by part (81 frames at 480p, 20 steps)",
        columns=list(rows[0]),
        rows=rows,
        seeds=[SEED],
    )
