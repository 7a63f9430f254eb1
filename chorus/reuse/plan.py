"""The plan of one request: the value that flows on the CHORUS socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..cache.entry import Entry, Space
from ..messages import Message

NOWHERE = Space("", "", "", (), "", "")
"""The space of a request that is declined."""


@dataclass(frozen=True)
class Source:
    """The cached request that the target reuses."""

    entry: Entry
    score: float
    tokens: torch.Tensor | None  # [L, C] encodings of its prompt
    attention: torch.Tensor | None  # [L, T', H', W'] how strongly each place attended to each token


@dataclass(frozen=True)
class Refused:
    """An entry near the request that does not serve."""

    entry: Entry
    score: float
    differs: tuple[str, ...]  # the parts of the space in which it differs; () if only its score is too low


@dataclass(frozen=True)
class Plan:
    """One request's plan. Immutable: every node returns a new one."""

    id: str  # of the look-up that made it; ties a finished run to its ChorusCacheStore
    cache_name: str
    reads: bool
    writes: bool
    prompt: str  # the text that is sampled, as far as the graph tells; "" where it does not
    explanation: Message
    declined: Message | None = None  # why the request is sampled as if the nodes were not there
    embedder: str = ""
    vector: np.ndarray | None = None  # [D] unit norm; None only where the request is declined
    space: Space = NOWHERE
    token_size: tuple[int, int, int] = (1, 2, 2)  # cells of the latent that a token of the network covers
    experts: tuple[Any, ...] = ()  # the models this plan is valid for
    models_signed: tuple[str, ...] = ()  # where other nodes patched them: signatures of what gives them
    prompt_nodes: tuple[str, ...] = ()  # the nodes that encode the prompt
    source: Source | None = None
    alike: tuple[Entry, ...] = ()  # further entries of the very same score as the source's
    score: float = -1.0  # of the nearest entry in the space, −1 when there is none
    threshold: float = 1.0  # the score from which an entry counts as a match
    nearest: tuple[Refused, ...] = ()  # on a miss, the best first
    start_latent: str = ""  # digest of the latent that sampling starts from, "" for an empty one
    noise_mask: str = ""  # digest of the cells that a noise mask keeps of it, "" without a mask
    tokens: torch.Tensor | None = None  # [L, C] encodings of the target prompt, when known at look-up
    encoded: torch.Tensor | None = None  # [B, L, C] as the text encoder gave it, to compare with what is sampled
    token_labels: tuple[str, ...] = ()
    another_take: bool = False  # whether the request's own noise is wanted, not the composition of the match
    chosen: str = ""  # id of the entry that was chosen by hand as the source
    stages: Mapping[str, Any] = field(default_factory=dict)  # by name, what each stage node was set to
    notes: tuple[Message, ...] = ()
    place: Any = None  # where that cache is; None: wherever caches are now
    lookup_seconds: float = 0.0
    stage_seconds: float = 0.0

    @property
    def hit(self) -> bool:
        return self.source is not None

    def with_stage(self, name: str, settings: Any, seconds: float = 0.0) -> Plan:
        """The plan with one stage's settings, which took so many seconds to make."""
        return replace(self, stages={**self.stages, name: settings}, stage_seconds=self.stage_seconds + seconds)

    def merged(self, present: Plan | None) -> Plan:
        """The plan with the stages that `present`, of the same look-up, has beyond it."""
        if present is None or present.id != self.id:
            return self
        seconds = max(self.stage_seconds, present.stage_seconds)
        return replace(self, stages={**present.stages, **self.stages}, stage_seconds=seconds)
