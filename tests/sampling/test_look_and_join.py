"""Look and join: one full step shows where the picture changes, and elsewhere the source's picture is kept."""

import pytest
import torch

from .conftest import difference
from .graphs import GREEN, RED, graph, plain


def looking(prompt=GREEN, **settings):
    """A graph whose hits begin with a look."""
    return graph(prompt, start=0.0, **settings)


def test_try(run, cache):
    for steps, cfg in ((4, 1.0), (20, 3.0)):
        cold = run(looking(RED, cache=cache, steps=steps, cfg=cfg))
        hit = run(looking(cache=cache, steps=steps, cfg=cfg))
        print(steps, hit.summary, {k: hit.report[k] for k in ("outcome", "reason", "k1", "k2", "token_share", "looked", "step_equivalents", "steps_computed", "notes")})
        own = run(plain(looking(cache=cache, steps=steps, cfg=cfg)))
        print("to source", difference(hit.latent, cold.latent), "to cold", difference(hit.latent, own.latent), "cold to source", difference(own.latent, cold.latent))
        hit = run(looking(cache=cache, steps=steps, cfg=cfg, seed=7))
        print(hit.summary, hit.report["notes"], difference(hit.latent, cold.latent))
