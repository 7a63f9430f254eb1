"""What a model family is: its token grid, blocks and attention, and what in its conditioning is text."""

from __future__ import annotations

from typing import Any

from .base import AttentionWork, KVCache, ModelCall, Network
from .hunyuan_video import HunyuanVideo
from .wan import Wan

_FAMILIES = (Wan, HunyuanVideo)

__all__ = ["AttentionWork", "KVCache", "ModelCall", "Network", "network_of"]


def network_of(patcher: Any) -> Network:
    """The family of a MODEL, found by what its network can do; a plain `Network` where none fits."""
    module = patcher.model.diffusion_model
    for family in _FAMILIES:
        if family.fits(module):
            return family(module)
    return Network(module)
