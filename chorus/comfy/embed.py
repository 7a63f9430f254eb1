"""The ways a graph's prompt becomes a vector: open_clip, a CLIP socket, or the graph's own text encoding."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..prompt.embedding import OpenClipEmbedder, PromptVector, pool_encoding
from ..prompt.tokens import label_tokens, real_tokens, token_rows
from .digest import tensor_digest

WAYS = ("auto", "open_clip", "clip socket", "conditioning")

_clip_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt as the cache sees it. encoding: [L, C] the text encoder's tokens, None without one."""

    vector: PromptVector
    encoding: torch.Tensor | None
    labels: tuple[str, ...]


def embed(prompt: str, way: str, clip: Any | None, conditioning: list | None) -> EmbeddedPrompt:
    """Embed `prompt` the wanted `way`; "auto" takes open_clip where its weights are at hand, else the graph's own.

    Raises ValueError with what to connect when the way is not open.
    """
    encoding, pieces = None, None
    if conditioning is not None:
        encoding = conditioning[0][0]
    elif clip is not None:
        encoding = _encode(clip, prompt)
    if clip is not None:
        pieces = _pieces(clip, prompt)
    if way == "auto":
        if OpenClipEmbedder.default_weights_cached() and OpenClipEmbedder.available() is None:
            way = "open_clip"
        else:
            way = "conditioning" if conditioning is not None else "clip socket"
    if way == "open_clip":
        reason = OpenClipEmbedder.available()
        if reason is not None:
            raise ValueError(f"embedding 'open_clip': {reason}")
        vector = open_clip_embedder()(prompt)
    elif way == "clip socket":
        if clip is None:
            raise ValueError(
                "the prompt cannot be embedded: connect CLIP or the positive CONDITIONING to this node, or put "
                f"open_clip weights on this machine ({OpenClipEmbedder.available()})"
            )
        pooled = pool_encoding(_encode(clip, prompt))
        vector = PromptVector(f"clip:{_clip_name(clip)}", pooled.vector)
    elif way == "conditioning":
        if conditioning is None:
            raise ValueError("embedding 'conditioning': connect the positive CONDITIONING to this node")
        vector = pool_encoding(conditioning[0][0][:1])
    else:
        raise ValueError(f"embedding {way!r}: expected one of {', '.join(WAYS)}")
    return EmbeddedPrompt(vector, None if encoding is None else _rows(encoding), _labels(prompt, encoding, pieces))


def _rows(encoding: torch.Tensor) -> torch.Tensor:
    """The first prompt's rows up to its last real token, [L, C] fp32 on the CPU."""
    rows = token_rows(encoding[:1] if encoding.ndim == 3 else encoding).detach().float().cpu()
    real = real_tokens(rows)
    return rows[: int(real.nonzero().max()) + 1] if bool(real.any()) else rows[:0]


def _labels(prompt: str, encoding: torch.Tensor | None, pieces: list[str] | None) -> tuple[str, ...]:
    if encoding is None:
        return ()
    return tuple(label_tokens(prompt, int(real_tokens(_rows(encoding)).sum()), pieces))


@cache
def open_clip_embedder() -> OpenClipEmbedder:
    """The default open_clip text tower, loaded once. RuntimeError says why there is none."""
    return OpenClipEmbedder()


def _encode(clip: Any, prompt: str) -> torch.Tensor:
    """[1, L, C] by the host's CLIP object, of any text encoder it loads."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


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
        name = tensor_digest(_encode(clip, "a chorus of voices").float().cpu().round(decimals=3))[:16]
        if getattr(clip, "patcher", None) is not None and clip.patcher.patches:
            return name
        _clip_names[model] = name
    return _clip_names[model]
