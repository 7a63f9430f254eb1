"""The ways a graph's prompt becomes a vector: open_clip, a CLIP socket, or the graph's own text encoding."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..messages import Message, say
from ..prompt.embedding import OpenClipEmbedder, PromptVector, pool_encoding
from ..prompt.tokens import label_tokens, one_prompt, real_tokens
from .content import NotUnderstood, tensor_digest

_ROUNDING = 0.01  # relative difference
WAYS = ("auto", "open_clip", "clip socket", "conditioning")

_clip_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class NoText(Exception):
    """The request has no text by which it could be found; `said` tells what to connect."""

    def __init__(self, said: Message):
        super().__init__(str(said))
        self.said = said


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt as the cache sees it.

    encoded: [B, L, C] as the text encoder gave it, None without one; tokens: [L, C] the rows of its one prompt up to
    the last real token, fp32 on the CPU; labels: what to call the real ones.
    """

    vector: PromptVector
    encoded: torch.Tensor | None
    tokens: torch.Tensor | None
    labels: tuple[str, ...]


def embed(prompt: str, way: str, clip: Any | None, conditioning: list[Any] | None) -> EmbeddedPrompt:
    """Embed `prompt` the wanted `way`; "auto" takes open_clip where its weights are at hand, else the graph's own.

    Raises NoText, which tells what to connect, if the way cannot be used; NotUnderstood for several prompts in one.
    """
    encoded, tokens, pieces = None, None, None
    if conditioning is not None:
        encoded = conditioning[0][0] if conditioning else None
    elif clip is not None:
        encoded = encode(clip, prompt)
    if encoded is not None:
        tokens = _rows(encoded)
    if clip is not None:
        pieces = _pieces(clip, prompt)
    if way == "auto":
        if OpenClipEmbedder.default_weights_cached() and OpenClipEmbedder.available() is None:
            way = "open_clip"
        else:
            way = "conditioning" if conditioning is not None else "clip socket"
    if way == "open_clip":
        if (reason := OpenClipEmbedder.available()) is not None:
            raise NoText(say("text.open_clip", reason=reason))
        vector = open_clip_embedder()(prompt)
    elif way == "clip socket":
        if clip is None:
            raise NoText(say("text.connect", reason=OpenClipEmbedder.available() or ""))
        vector = PromptVector(f"clip:{_clip_name(clip)}", _pooled(_rows(encode(clip, prompt))).vector)
    elif way == "conditioning":
        if conditioning is None:
            raise NoText(say("text.connect_positive"))
        vector = _pooled(tokens)
    else:
        raise ValueError(f"embedding {way!r}: expected one of {', '.join(WAYS)}")
    labels = () if tokens is None else tuple(label_tokens(prompt, int(real_tokens(tokens).sum()), pieces))
    return EmbeddedPrompt(vector, encoded, tokens, labels)


def _pooled(tokens: torch.Tensor | None) -> PromptVector:
    if tokens is None or not len(tokens):
        raise NoText(say("text.empty"))
    return pool_encoding(tokens)


def _rows(encoded: torch.Tensor) -> torch.Tensor:
    """The rows of the one prompt up to its last real token, [L, C] fp32 on the CPU."""
    rows = one_prompt(encoded)
    if rows is None:
        raise NotUnderstood("the positive conditioning holds several prompts in one batch")
    rows = rows.float()
    real = real_tokens(rows)
    return rows[: int(real.nonzero().max()) + 1] if bool(real.any()) else rows[:0]


@cache
def open_clip_embedder() -> OpenClipEmbedder:
    """The default open_clip text tower, loaded once. RuntimeError says why there is none."""
    return OpenClipEmbedder()


def encode(clip: Any, prompt: str) -> torch.Tensor:
    """[1, L, C] by the host's CLIP object, of any text encoder it loads."""
    encoded: torch.Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
    return encoded


def same_encoding(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two encodings are those of one text: equal but for rounding, which other batches and devices change."""
    if one.shape != other.shape:
        return False
    one, other = one.detach().float().cpu(), other.detach().float().cpu()
    return float((one - other).norm()) <= _ROUNDING * max(float(one.norm()), 1e-9)


def _pieces(clip: Any, prompt: str) -> list[str] | None:
    """The tokenizer's pieces, where the host's tokenizer tells; for display only."""
    tokenizer = getattr(clip, "tokenizer", None)
    tokens = clip.tokenize(prompt)
    batches = next(iter(tokens.values()), None) if isinstance(tokens, dict) else None
    if tokenizer is None or not hasattr(tokenizer, "untokenize") or not batches:
        return None
    return [str(piece).strip("▁ ") or "·" for _, piece in tokenizer.untokenize(batches[0])]


def _clip_name(clip: Any) -> str:
    """Digest of a text encoder by how it encodes a fixed text: equal weights and LoRAs give equal encodings."""
    model = getattr(clip, "cond_stage_model", clip)
    if model not in _clip_names or (getattr(clip, "patcher", None) is not None and clip.patcher.patches):
        name = tensor_digest(encode(clip, "a chorus of voices").float().cpu().round(decimals=3))[:16]
        if getattr(clip, "patcher", None) is not None and clip.patcher.patches:
            return name
        _clip_names[model] = name
    return _clip_names[model]
