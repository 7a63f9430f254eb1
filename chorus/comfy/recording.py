"""What a run leaves behind: its states over σ, where its words looked, and the figures people see."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch

from ..messages import Message
from ..reuse.trajectory import clean_component

_FINISHED_KEPT = 2  # finished runs that wait for their ChorusCacheStore; a graph without one must not pile them up


@dataclass
class Report:
    """The figures of one request, as README and `report.json` name them. Seconds are wall time."""

    outcome: str  # "hit", "miss", "identical", "bypassed"
    reason: Message
    match_score: float | None
    source_prompt: str | None
    k1: int = 0
    k2: int = 0
    steps: int = 0
    steps_computed: int = 0
    step_equivalents: float = 0.0
    token_share: list[float] = field(default_factory=list)  # computed share of the tokens, one a stage-2 step
    sampling_s: float = 0.0
    chorus_s: float = 0.0
    notes: list[Message] = field(default_factory=list)
    tokens: list[tuple[str, float]] = field(default_factory=list)  # amplified words with their weights
    source_id: str | None = None  # the entry that the run started from, or that answered it
    cold_s: float | None = None  # sampling time had it been computed in full, None when nothing tells
    cold_runs: int = 0  # cold runs that `cold_s` was measured on; 0: an estimate

    @property
    def saved_s(self) -> float:
        """Seconds saved, Chorus's own time taken off; below 0 when it did not pay."""
        return 0.0 if self.cold_s is None else self.cold_s - self.sampling_s - self.chorus_s

    def add(self, earlier: Report) -> None:
        """Put the first half of a schedule that two samplers share in front of this one."""
        for name in ("k1", "k2", "steps", "steps_computed", "step_equivalents", "sampling_s", "chorus_s"):
            setattr(self, name, getattr(self, name) + getattr(earlier, name))
        self.token_share = earlier.token_share + self.token_share
        self.notes = earlier.notes + [note for note in self.notes if note not in earlier.notes]
        if self.outcome == "miss" and earlier.outcome == "hit":
            self.outcome, self.reason = earlier.outcome, earlier.reason

    def figures(self) -> dict[str, Any]:
        """All of it as plain data, its sentences in English."""
        return vars(self) | {"reason": str(self.reason), "notes": [str(note) for note in self.notes]}

    def headline(self) -> str:
        """One line for the node: "hit 0.87 · 2 of 4 steps reused · 38 % of tokens at step 3"."""
        if self.outcome == "identical":
            return f"identical request · 0 of {self.steps} steps computed"
        if self.outcome != "hit":
            return f"{self.outcome}: {self.reason}"
        parts = [f"hit {self.match_score:.2f}", f"{self.k1} of {self.steps} steps reused"]
        parts += [f"{share:.0%} of tokens at step {self.k1 + i + 1}" for i, share in enumerate(self.token_share)]
        return " · ".join(parts)


@dataclass
class Recording:
    """The states of a cold run. noise: ε in model space, None where the sampler draws noise of its own."""

    noise: torch.Tensor | None
    states: dict[float, torch.Tensor] = field(default_factory=dict)
    attention: torch.Tensor | None = None  # [L, T', H', W'] summed over `attention_count` looks
    attention_count: int = 0

    def keep(self, sigma: float, x: torch.Tensor) -> None:
        """Keep x at σ; a later evaluation at the same σ replaces it (a corrector's is the better one)."""
        if self.noise is None:
            self.states[sigma] = x.detach().to("cpu", torch.float32, copy=True)
        elif sigma < 1.0:
            self.states[sigma] = clean_component(x.detach().float(), self.noise.to(x.device), sigma).cpu()

    def look(self, maps: torch.Tensor) -> None:
        """Add attention maps [L, T', H', W']."""
        self.attention = maps if self.attention is None else self.attention + maps
        self.attention_count += 1


@dataclass
class FinishedRun:
    """A run whose sampler came to its end, waiting to be stored."""

    report: Report
    request: str  # digest of the request in every respect
    calls: list[str]  # digests of the sampler calls it was made of
    sigmas: tuple[float, ...]
    whole_steps: int  # of the schedule that this run's σ are the first part of
    final: torch.Tensor  # LATENT, as the sampler returned it
    seed: int | None
    noise: torch.Tensor | None  # ε in model space, for a second half of the schedule
    noise_digest: str
    noise_drawn: bool
    carried: str  # digest of image conditioning
    settings: dict
    recording: Recording | None  # None for a hit: only cold runs are sources
    tokens: torch.Tensor | None  # [L, C] encodings of the prompt as sampled
    parent: str | None

    @property
    def complete(self) -> bool:
        """Whether the schedule reached σ = 0."""
        return self.sigmas[-1] == 0.0


class FinishedRuns:
    """Finished runs by plan id, the newest few, and why a run was left alone. Thread-safe."""

    def __init__(self, kept: int = _FINISHED_KEPT):
        self._kept = kept
        self._runs: OrderedDict[str, FinishedRun] = OrderedDict()
        self._bypassed: tuple[str, Message] | None = None  # plan id and reason of the latest
        self._lock = threading.Lock()

    def put(self, plan_id: str, run: FinishedRun) -> None:
        with self._lock:
            self._runs.pop(plan_id, None)
            self._runs[plan_id] = run
            while len(self._runs) > self._kept:
                self._runs.popitem(last=False)

    def bypass(self, plan_id: str, reason: Message) -> None:
        with self._lock:
            self._bypassed = (plan_id, reason)

    def bypassed(self, plan_id: str) -> Message | None:
        """Why the latest run of a plan was left alone; None when it was not."""
        with self._lock:
            return self._bypassed[1] if self._bypassed and self._bypassed[0] == plan_id else None

    def get(self, plan_id: str) -> FinishedRun | None:
        with self._lock:
            return self._runs.get(plan_id)

    def take(self, plan_id: str) -> FinishedRun | None:
        with self._lock:
            return self._runs.pop(plan_id, None)

    def __len__(self) -> int:
        return len(self._runs)


finished_runs = FinishedRuns()
