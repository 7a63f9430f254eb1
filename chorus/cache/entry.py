"""What the cache keeps of one request, and what must agree before another request may use it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..messages import Message, say
from .inputs import INPUTS

if TYPE_CHECKING:
    import torch

UNIT_NORM_TOLERANCE = 1e-3
MOST_DIMENSIONS = 2**16  # of a vector


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII. ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def unit_vector(vector: np.ndarray) -> np.ndarray:
    """`vector` as contiguous float32 [D], checked: one dimension, finite, unit norm. Else ValueError."""
    vector = np.asarray(vector)
    if vector.ndim != 1 or not 0 < vector.size <= MOST_DIMENSIONS:
        shape = list(vector.shape)
        raise ValueError(f"a prompt vector has shape [D] with D from 1 to {MOST_DIMENSIONS:,}; this one has {shape}")
    if vector.dtype != np.float32:
        raise ValueError(f"a prompt vector is float32; this one is {vector.dtype}: convert it with .astype")
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(norm - 1.0) <= UNIT_NORM_TOLERANCE:  # also catches NaN
        raise ValueError(f"a prompt vector has norm 1 and finite values; the norm of this one is {norm:g}")
    return np.ascontiguousarray(vector)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


@dataclass(frozen=True, eq=False)
class Space:
    """What must agree before two requests may share states. If it differs, no score makes a hit.

    weights: content digest of the base weights, of all experts.
    patches: digest of the LoRA patches, their strengths, and other nodes' patches with their settings; "" for none.
    latent_format: the model's latent format, e.g. "Wan21".
    shape: [B, C, T, H, W] of the latent in model space.
    task: "t2v", "v2v:<digest of the start latent>", or "i2v:<digest of all inputs beside text>;<inputs>", where inputs
        are the first 8 digits of the digest of each by its name: "audio=0123abcd,start_image=4567cdef". They only tell
        in words which input differs, and do not count when spaces are compared: older entries lack them. A noise mask
        is such an input.
    prediction: what the model predicts, e.g. "flow".
    """

    weights: str
    patches: str
    latent_format: str
    shape: tuple[int, ...]
    task: str
    prediction: str

    def _compared(self) -> dict[str, Any]:
        return vars(self) | {"shape": tuple(self.shape), "task": self.task.partition(";")[0]}

    def key(self) -> str:
        """The space as 64 hex digits: SHA-256 of the canonical JSON of what counts."""
        return hashlib.sha256(canonical_json(self._compared()).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self.key())

    def differing(self, other: Space) -> tuple[str, ...]:
        """The names of the fields in which `other` differs."""
        here, there = self._compared(), other._compared()
        return tuple(name for name in here if here[name] != there[name])

    def differences(self, other: Space) -> tuple[Message, ...]:
        """In which respects `other` differs from this space ("here" is this one), in plain words."""
        words = []
        if self.weights != other.weights:
            words.append(say("differs.weights"))
        if self.patches != other.patches:
            words.append(say("differs.patches"))
        if self.latent_format != other.latent_format:
            words.append(say("differs.latent_format", here=self.latent_format, there=other.latent_format))
        if tuple(self.shape) != tuple(other.shape):
            words.append(say("differs.shape", here=_times(self.shape), there=_times(other.shape)))
        if "task" in self.differing(other):
            words += self._task_differences(other)
        if self.prediction != other.prediction:
            words.append(say("differs.prediction", here=self.prediction, there=other.prediction))
        return tuple(words)

    def _task_differences(self, other: Space) -> list[Message]:
        here, there = self.task.split(":", 1)[0], other.task.split(":", 1)[0]
        if here != there:
            return [say("differs.tasks", here=here, there=there)]
        if here == "i2v":
            return _input_differences(_inputs(self.task), _inputs(other.task))
        return [say("differs.start") if here == "v2v" else say("differs.task")]


def _inputs(task: str) -> dict[str, str]:
    """A task's inputs beside text, name → part of its digest; none in entries from before they were named."""
    listed = task.partition(";")[2]
    return dict(one.split("=", 1) for one in listed.split(",") if "=" in one)


def _input_differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[Message]:
    if not here or not there:
        return [say("differs.image")]
    names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    if "start_image" in names and "later_frames" in names:
        names.remove("later_frames")  # a video's encoder makes each frame from those before it, too
    known = [INPUTS[name] for name in names if name in INPUTS]
    if not names or len(known) < len(names):
        known.append(say("differs.image"))
    return known


@dataclass(frozen=True)
class NewEntry:
    """What a finished run hands over to be kept.

    space: where its latents are valid.
    request: identity of the request; an identical request has the same.
    prompt: the prompt's text, for people.
    embedder: which embedder made `vector`; only vectors of the same one are compared.
    vector: [D] float32, unit norm.
    sigmas: the schedule of the run, σ_0 > … > σ_N.
    settings: JSON-able: sampler, cfg, seed, steps, …
    seconds: sampling time of the run in seconds.
    is_source: whether other requests may start from it. The entry of a hit may not: it serves only
        identical requests.
    parent: id of the source entry of a hit, else None.
    tensors: by name: "final", "checkpoint/0.937500", "tokens", "attention", "preview", "workflow". What each may be
        is in rules.py; a cache refuses to store others.
    coding: how tensors are stored, by name, as codec.py has it: "dct/0.1", "rows", "webp"; the others as they are.
        A coding that does not fit its tensor is left out.

    ValueError when a field cannot be stored as it is.
    """

    space: Space
    request: str
    prompt: str
    embedder: str
    vector: np.ndarray
    sigmas: tuple[float, ...]
    settings: dict
    seconds: float
    is_source: bool
    parent: str | None
    tensors: Mapping[str, torch.Tensor]
    coding: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "vector", unit_vector(self.vector))
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
        if not all(math.isfinite(sigma) for sigma in self.sigmas):
            raise ValueError(f"sigmas must be finite, not {self.sigmas}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds must be a finite number of at least 0, not {self.seconds}")
        for name in ("request", "embedder"):
            text = getattr(self, name)
            if not text or not text.isprintable():
                raise ValueError(f"{name} {text!r} must be printable text: it is what the entry is found by")
        if not self.tensors or not all(isinstance(name, str) and name for name in self.tensors):
            raise ValueError(f"an entry has at least one tensor, each with a name, not {list(self.tensors)}")
        if unknown := set(self.coding) - set(self.tensors):
            raise ValueError(f"a coding for {', '.join(sorted(unknown))}, but the tensors are {list(self.tensors)}")
        if self.coding:
            from .codec import RAW, fitting

            asked = {name: fitting(self.tensors[name], coding) for name, coding in self.coding.items()}
            object.__setattr__(self, "coding", {name: coding for name, coding in asked.items() if coding != RAW})
        try:
            canonical_json(self.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"settings cannot be written as JSON ({error}): {self.settings!r}") from error


@dataclass(frozen=True)
class Entry:
    """A row of the catalog: what is known of an entry without reading its tensors.

    shapes: of its tensors, by name, and coding: of those not stored raw; both empty for entries of format version 1.
    created, used: Unix time in seconds. bytes: size of the entry's file. saved: seconds that hits on it saved.
    pinned: never evicted. For the other fields see `NewEntry`.
    """

    id: str
    space: Space
    request: str
    prompt: str
    embedder: str
    sigmas: tuple[float, ...]
    settings: dict
    seconds: float
    is_source: bool
    parent: str | None
    tensor_names: tuple[str, ...]
    created: float
    used: float
    hits: int
    bytes: int
    saved: float = 0.0
    pinned: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    coding: Mapping[str, str] = field(default_factory=dict)


SORTS = ("newest", "oldest", "used", "hits", "saved", "bytes")


@dataclass(frozen=True)
class Query:
    """Which entries to list, and in what order. All conditions that are set must hold.

    words: text that the prompt contains, whatever its case. weights: digest of the weights, or how it begins.
    shape: of the latent. source: whether others may start from it. pinned: as it says. parent: id of the source
    entry it was made from. created_before, created_after, unused_since: Unix time in seconds; the last asks for those
    not used since then.
    sort: one of SORTS; "used", "hits", "saved" and "bytes" begin with the latest or the most. Ties: the newest first.
    """

    words: str = ""
    weights: str = ""
    shape: tuple[int, ...] | None = None
    source: bool | None = None
    pinned: bool | None = None
    parent: str | None = None
    created_before: float | None = None
    created_after: float | None = None
    unused_since: float | None = None
    sort: str = "newest"

    def __post_init__(self):
        if self.sort not in SORTS:
            raise ValueError(f"sort {self.sort!r}: expected one of {', '.join(SORTS)}")


EVERYTHING = Query()


@dataclass(frozen=True)
class Match:
    """An entry and its cosine similarity to the target, in [-1, 1]."""

    entry: Entry
    score: float


@dataclass(frozen=True)
class ModelStats:
    """What is kept now for one model: `weights` and `latent_format` as in its entries' spaces."""

    weights: str
    latent_format: str
    entries: int
    bytes: int
    hits: int
    seconds_saved: float


@dataclass(frozen=True)
class CacheStats:
    """entries, bytes and models: what is kept now. hits and seconds_saved: since the cache was made."""

    entries: int
    bytes: int
    max_bytes: int
    hits: int
    seconds_saved: float
    max_entries: int | None = None
    pinned_bytes: int = 0
    models: tuple[ModelStats, ...] = ()
    days: tuple[tuple[str, int, float], ...] = ()  # (YYYY-MM-DD in UTC, hits, seconds saved), the last 90
