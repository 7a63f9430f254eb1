"""HunyuanVideo 1.0 and 1.5: stage 1 only; quoted words are encoded apart, by byT5."""

from __future__ import annotations

import torch

from .base import Network


class HunyuanVideo(Network):
    text_keys = Network.text_keys | {"conditioning_byt5small"}

    @classmethod
    def fits(cls, module: torch.nn.Module) -> bool:
        return hasattr(module, "double_blocks") and hasattr(module, "txt_in") and hasattr(module, "byt5_in")
