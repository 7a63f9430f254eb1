"""Entries to test with. Everything in one follows from its number, so that what is loaded can be checked."""

from __future__ import annotations

import numpy as np
import torch

from chorus.cache import NewEntry, Space

SPACE = Space("weights-a", "", "Wan21", (1, 4, 2, 4, 4), "t2v", "flow")
EMBEDDER = "open_clip/ViT-B-32"


def unit(values) -> np.ndarray:
    """[D] float32 of norm 1."""
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


def random_vector(number: int, size: int = 32) -> np.ndarray:
    return unit(np.random.default_rng(number).standard_normal(size))


def tensors(number: int, kilobytes: int = 4, shape: tuple[int, ...] = SPACE.shape) -> dict[str, torch.Tensor]:
    """Two latents of `shape`, and so many words that all is about so many kB at the shape of SPACE."""
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(2, *shape, generator=generator)
    words = torch.randn(8 * kilobytes - 6, 64, generator=generator)
    return {"final": latents[0], "checkpoint/0.937500": latents[1].to(torch.bfloat16), "tokens": words.half()}


def new_entry(number: int, *, kilobytes: int = 4, **changes) -> NewEntry:
    """Entry `number`, of about so many kB."""
    fields = {
        "space": SPACE,
        "request": f"request-{number}",
        "prompt": f"a red ball rolls left, take {number}",
        "embedder": EMBEDDER,
        "vector": random_vector(number),
        "sigmas": (1.0, 0.9375, 0.5, 0.0),
        "settings": {
            "number": number,
            "sampler": "euler",
            "cfg": 5.0,
            "noise_drawn": False,
            "noise": "",
            "carried": "",
        },
        "seconds": 12.5,
        "is_source": True,
        "parent": None,
        "tensors": tensors(number, kilobytes, changes.get("space", SPACE).shape),
    }
    return NewEntry(**{**fields, **changes})


def assert_is_entry(number: int, loaded: dict[str, torch.Tensor], kilobytes: int = 4) -> None:
    """Every bit of `loaded` is that of entry `number`."""
    expected = tensors(number, kilobytes, loaded["final"].shape)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
