"""Entries to test with. Everything in one follows from its number, so that what is loaded can be checked."""

from __future__ import annotations

import numpy as np
import torch

from chorus.cache import NewEntry, Space

SPACE = Space("weights-a", "", "Wan21", (1, 16, 4, 12, 12), "t2v", "flow")
EMBEDDER = "open_clip/ViT-B-32"


def unit(values) -> np.ndarray:
    """[D] float32 of norm 1."""
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


def random_vector(number: int, size: int = 32) -> np.ndarray:
    return unit(np.random.default_rng(number).standard_normal(size))


def tensors(number: int, kilobytes: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "final": torch.randn(kilobytes * 128, generator=generator),
        "checkpoint/0.937500": torch.randn(kilobytes * 256, generator=generator).to(torch.bfloat16),
    }


def new_entry(number: int, *, kilobytes: int = 4, **changes) -> NewEntry:
    """Entry `number`, of about so many kB."""
    fields = {
        "space": SPACE,
        "request": f"request-{number}",
        "prompt": f"a red ball rolls left, take {number}",
        "embedder": EMBEDDER,
        "vector": random_vector(number),
        "sigmas": (1.0, 0.9375, 0.5, 0.0),
        "settings": {"number": number, "sampler": "euler", "cfg": 5.0},
        "seconds": 12.5,
        "is_source": True,
        "parent": None,
        "tensors": tensors(number, kilobytes),
    }
    return NewEntry(**{**fields, **changes})


def assert_is_entry(number: int, loaded: dict[str, torch.Tensor], kilobytes: int = 4) -> None:
    """Every bit of `loaded` is that of entry `number`."""
    expected = tensors(number, kilobytes)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
