"""The small Wan's text encoder for many prompts at once, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from small_wan import text_encoder


class Encoder:
    """Gives what `text_encoder.encode` gives, by tables of the words it has met."""

    def __init__(self, device: str | torch.device = "cpu"):
        self._device = device
        self._index: dict[str, int] = {"": 0}
        self._words = torch.zeros(1, text_encoder.DIM, device=device)
        self._turned = {o: text_encoder._shuffle(o).to(device) for o in text_encoder._CONTEXT}
        places = [text_encoder._vector(f"#{i}") for i in range(text_encoder.LENGTH)]
        self._places = text_encoder._POSITION * torch.stack(places).to(device)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Prompts → [B, LENGTH, DIM]."""
        return self.encode(self.indices(texts))

    def indices(self, texts: Sequence[str]) -> Tensor:
        """Prompts → [B, LENGTH] positions in the tables, 0 beyond the last word; they stay valid."""
        tokens = [text_encoder.words(text) for text in texts]
        new = sorted({word for words in tokens for word in words} - self._index.keys())
        if new:
            self._index |= {word: len(self._words) + i for i, word in enumerate(new)}
            vectors = torch.stack([text_encoder._vector(word) for word in new]).to(self._device)
            self._words = torch.cat((self._words, vectors))
        length = text_encoder.LENGTH
        padded = [[self._index[w] for w in words] + [0] * (length - len(words)) for words in tokens]
        return torch.tensor(padded, device=self._device)

    def encode(self, index: Tensor) -> Tensor:
        """What `indices` gave → [B, LENGTH, DIM]."""
        rows = self._words[index] + self._places
        for offset, weight in text_encoder._CONTEXT.items():
            near = torch.zeros_like(index)
            if offset > 0:
                near[:, :-offset] = index[:, offset:]
            else:
                near[:, -offset:] = index[:, :offset]
            rows = rows + weight * self._words[near][..., self._turned[offset]]
        return torch.where((index > 0)[..., None], rows / rows.std(-1, keepdim=True), 0.0)
