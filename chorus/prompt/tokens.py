"""Which tokens of two prompts differ, and how to name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# In units of the prompts' own spread (see `token_difference`). A token next to a changed word is moved by
# it and must not count as changed: the figures are in tests/prompt/test_tokens.py.
FLOOR = 0.32
FULL = 0.44


@dataclass(frozen=True)
class TokenDifference:
    """How far the tokens of two prompts are from each other, 0 (said by both) to 1 (no counterpart).

    Shapes:
        new: [L_target] float32, the target's tokens against the source's
        gone: [L_source] float32, the source's tokens against the target's
    """

    new: torch.Tensor
    gone: torch.Tensor


def real_tokens(encoding: torch.Tensor) -> torch.Tensor:
    """Which rows of a zero-padded encoding are tokens: [L, C] or [1, L, C] → [L] bool."""
    return token_rows(encoding).ne(0).any(dim=1)


def token_rows(encoding: torch.Tensor) -> torch.Tensor:
    """One prompt's encoding as a matrix: [L, C] or [1, L, C] → [L, C].

    Raises:
        ValueError: the tensor holds several prompts, or is no sequence of tokens.
    """
    rows = encoding.squeeze(0) if encoding.ndim == 3 else encoding
    if rows.ndim != 2:
        raise ValueError(f"a text encoding of shape {list(encoding.shape)}: expected one prompt, [1, L, C] or [L, C]")
    return rows


def one_prompt(encoding: torch.Tensor) -> torch.Tensor | None:
    """The rows of the one prompt in a batch of encodings: [B, L, C] or [L, C] → [L, C] on the CPU.

    None where the batch holds different prompts, or no sequence of tokens.
    """
    if encoding.ndim == 2:
        return encoding.detach().cpu()
    if encoding.ndim != 3 or not bool((encoding == encoding[:1]).all()):
        return None
    return encoding[0].detach().cpu()


def unit_tokens(encoding: torch.Tensor) -> torch.Tensor:
    """The real tokens of one prompt at unit length, on the CPU: [L, C] or [1, L, C] → [n, C] float64."""
    rows = token_rows(encoding)
    rows = rows[real_tokens(rows)].to("cpu", torch.float64)
    # The largest entry first: the squares of very small or large rows would leave the range of floats.
    return torch.nn.functional.normalize(rows / rows.abs().amax(dim=1, keepdim=True), dim=1)


def token_spread(units: torch.Tensor) -> float:
    """How far apart the tokens of unit length [n, C] lie: their mean 1 − cosine over all pairs, in [0, 1].

    The tokens of T5-like encoders share a large common part, so that any two have a cosine near 1.
    Distances divided by the spread mean the same with and without it.
    """
    return 1.0 - units.mean(dim=0).square().sum().item()


def token_difference(
    target: torch.Tensor, source: torch.Tensor, *, floor: float = FLOOR, full: float = FULL
) -> TokenDifference:
    """How far each token of one prompt is from every token of the other.

    The distance is 1 − the largest cosine, in units of the spread of both prompts' tokens; `floor` and
    below give 0, `full` and above 1, linear between (chosen here by measurement). Positions play no part,
    so a word put in early does not mark the words after it. Zero rows are padding and get 0; against a
    prompt without tokens every token is new.

    Shapes:
        target: [L_target, C] or [1, L_target, C]
        source: [L_source, C] or [1, L_source, C]
    """
    targets, sources = unit_tokens(target), unit_tokens(source)
    new, gone = torch.ones(len(targets)), torch.ones(len(sources))
    if len(targets) and len(sources):
        distance = 1.0 - targets @ sources.T
        scale = max(token_spread(torch.cat([targets, sources])), 1e-6)

        def weight(nearest: torch.Tensor) -> torch.Tensor:
            return ((nearest / scale - floor) / (full - floor)).clamp(0.0, 1.0).float()

        new, gone = weight(distance.amin(dim=1)), weight(distance.amin(dim=0))
    return TokenDifference(_over_rows(new, target), _over_rows(gone, source))


def _over_rows(weights: torch.Tensor, encoding: torch.Tensor) -> torch.Tensor:
    """Weights of the real tokens [n] laid out over all rows of their encoding: [L], 0 for padding."""
    real = real_tokens(encoding).cpu()
    return torch.zeros(len(real)).masked_scatter(real, weights)


def label_tokens(prompt: str, count: int, pieces: Sequence[str] | None = None) -> list[str]:
    """What to call `count` token rows on screen.

    A tokenizer's `pieces` when given and as many; else the prompt's words when their number is `count`,
    or one less, which leaves the last row to the end token; else "token 1", "token 2", …
    """
    if pieces is not None and len(pieces) == count:
        return list(pieces)
    words = prompt.split()
    if len(words) == count:
        return words
    if len(words) == count - 1:
        return [*words, "end"]
    return [f"token {i}" for i in range(1, count + 1)]
