"""Pairs of captions that differ in a known way, and their encodings by the small text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from small_wan import scenes
from small_wan.text_encoder import encode

PAIRS = 60
CHOICES = {
    "colour": tuple(scenes.COLOURS),
    "shape": scenes.SHAPES,
    "direction": tuple(scenes.DIRECTIONS),
    "background": tuple(scenes.BACKGROUNDS),
}


def caption_pairs(changed: int, *, other_template: bool = False) -> Iterator[tuple[str, str]]:
    """Captions of one object, and the same with `changed` of the four attributes different."""
    rng = np.random.default_rng(changed)
    for _ in range(PAIRS):
        caption = scenes.sample_caption(rng, two_objects=0.0)
        attributes = rng.permutation(list(CHOICES))[:changed]
        other = replace(
            caption,
            template=(caption.template + other_template) % len(scenes.TEMPLATES),
            **{
                name: str(rng.choice([value for value in CHOICES[name] if value != getattr(caption, name)]))
                for name in attributes
            },
        )
        yield caption.text, other.text


def with_common_part(encoding: torch.Tensor, size: float) -> torch.Tensor:
    """The tokens with one vector of `size` times their norm added to all, as in encoders of the T5 kind."""
    common = torch.randn(encoding.shape[-1], generator=torch.Generator().manual_seed(5))
    real = encoding.ne(0).any(dim=-1, keepdim=True)
    return torch.where(real, encoding + size * common, encoding)


__all__ = ["caption_pairs", "encode", "with_common_part"]
