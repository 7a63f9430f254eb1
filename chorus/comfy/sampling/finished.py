"""A finished run while it waits for its ChorusCacheStore, and its figures for people."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch

from ...messages import Message, say
from ...reuse.plan import Plan
from ...reuse.regions import Regions
from .guidance import Part

_REASONS = 256  # reasons kept at most; the store node that would ask may never run
_WAITING_BYTES = 4 << 30  # of the latents that finished runs may hold while they wait to be stored


@dataclass
class Report:
    """The figures of one request, under the names of docs/demo.md. Seconds are wall time."""

    outcome: str  # "hit", "miss", "identical", "bypassed", "unread" (nothing was looked for)
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
    look: bool = False  # whether the first step, before K1, was computed: a look
    looked: Regions | None = None  # where the look saw a difference; None without a look, and where it saw none
    tokens: list[tuple[str, float]] = field(default_factory=list)  # amplified words with their weights
    source_id: str | None = None  # the entry that the run started from, or that answered it
    cold_s: float | None = None  # sampling time of the same run in full, None if it is not known
    cold_runs: int = 0  # cold runs that `cold_s` was measured on; 0: an estimate

    @property
    def saved_s(self) -> float:
        """Seconds saved, Chorus's own time taken off; below 0 when it did not pay."""
        return 0.0 if self.cold_s is None else self.cold_s - self.sampling_s - self.chorus_s

    def shares(self) -> list[float]:
        """The computed share of the tokens in each step."""
        first = [1.0] if self.look else [0.0] if self.k1 else []
        return [*first, *[0.0] * (self.k1 - 1), *self.token_share, *[1.0] * (self.steps - self.k2)]

    def set_shares(self, shares: list[float], look: bool) -> None:
        """K1, K2 and what lies between them, from the computed share of the tokens in each step."""
        computed = (k for k, share in enumerate(shares) if share > 0 and (k > 0 or not look))
        self.k1 = next(computed, len(shares))
        self.k2 = max(self.k1, max((k + 1 for k, share in enumerate(shares) if share < 1), default=0))
        self.token_share, self.look = shares[self.k1 : self.k2], look

    def add(self, earlier: Report) -> None:
        """Put the first half of a schedule that two samplers share in front of this one."""
        self.set_shares(earlier.shares() + self.shares(), earlier.look)
        self.looked = earlier.looked or self.looked
        for name in ("steps", "steps_computed", "step_equivalents", "sampling_s", "chorus_s"):
            setattr(self, name, getattr(self, name) + getattr(earlier, name))
        self.step_equivalents = round(self.step_equivalents, 4)
        self.notes = earlier.notes + [note for note in self.notes if note not in earlier.notes]
        if self.outcome == "miss" and earlier.outcome == "hit":
            self.outcome, self.reason = earlier.outcome, earlier.reason

    def figures(self) -> dict[str, Any]:
        """All of it as plain data, its sentences in English."""
        differs = None if self.looked is None else round(self.looked.edited, 4)
        words = {"reason": str(self.reason), "notes": [str(note) for note in self.notes]}
        return vars(self) | words | {"looked": differs}

    def headline(self) -> str:
        """One line for the node: "hit 0.87 · 30% differs · cost of 2.6 of 4 steps"."""
        if self.outcome == "identical":
            return f"identical request · {self.steps_computed} of {self.steps} steps computed"
        if self.outcome != "hit":
            return f"{self.outcome}: {self.reason}"
        differs = [] if self.looked is None else [f"{self.looked.edited:.0%} differs"]
        cost = f"cost of {self.step_equivalents:.1f} of {self.steps} steps"
        return " · ".join([f"hit {self.match_score:.2f}", *differs, cost])


@dataclass
class Recording:
    """What other requests need to start from a run.

    states: σ → the clean component, or x itself where the sampler draws noise; fp32 on the CPU.
    estimates: σ → the model's estimate x0 there, after CFG; fp32 on the CPU.
    attention: [L, T', H', W'] how strongly each place attended to each token, mean over the recorded steps; None if
        nothing was recorded.
    watched: how many maps that mean is of.
    """

    states: dict[float, torch.Tensor] = field(default_factory=dict)
    estimates: dict[float, torch.Tensor] = field(default_factory=dict)
    attention: torch.Tensor | None = None
    watched: int = 0


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """All tensors in lists, mappings and dataclasses within each other."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, list | tuple):
        for one in held:
            yield from _tensors(one)
    elif isinstance(held, Mapping):
        yield from _tensors(list(held.values()))
    elif is_dataclass(held):
        yield from _tensors(list(vars(held).values()))


@dataclass
class FinishedRun:
    """A run whose sampler came to its end, waiting to be stored."""

    plan: Plan  # as its look-up would have answered when sampling began
    report: Report
    request: str  # the identity under which the result is kept
    calls: list[str]  # identities of the sampler calls it was made of, as computed in full
    sigmas: tuple[float, ...]
    whole_steps: int  # of the schedule that this run's σ are the first part of
    final: torch.Tensor  # LATENT, as the sampler returned it
    seed: int | None
    noise: torch.Tensor | None  # ε in model space, for a second half of the schedule
    noise_digest: str
    noise_drawn: bool
    carried: str  # digest of what the conditioning carries beside text
    text_digest: str
    sampler: str
    parts: tuple[Part, ...]  # of the schedule, one for each sampler
    tokens: torch.Tensor | None  # [L, C] encodings of the prompt as sampled
    parent: str | None
    results: Mapping[str, Any] = field(default_factory=dict)  # the techniques' results, by their names

    @property
    def recording(self) -> Recording | None:
        """None where other requests may not start from it."""
        recording: Recording | None = self.results.get("record")
        return recording

    @property
    def complete(self) -> bool:
        """Whether the schedule reached σ = 0."""
        return self.sigmas[-1] == 0.0

    def goes_on_from(self, latent: torch.Tensor) -> bool:
        """Whether it is the first part of a schedule, and this LATENT what it came to."""
        given = latent.detach().cpu()
        return not self.complete and given.shape == self.final.shape and torch.equal(given, self.final.to(given.dtype))

    @property
    def bytes(self) -> int:
        """Of the tensors it holds."""
        return sum(t.numel() * t.element_size() for t in _tensors([self.final, self.noise, self.tokens, self.results]))


@dataclass(frozen=True)
class Bypassed:
    """Why a run was sampled without Chorus, and what people should know of a first part that was not."""

    reason: Message
    notes: tuple[Message, ...] = ()


class FinishedRuns:
    """Finished runs that wait for their store node, and why other runs were sampled without Chorus. Thread-safe.

    Several runs of one plan wait side by side, as a list of seeds or prompts makes them: the host runs all samplers
    before the first store. The oldest are dropped beyond a number of bytes. A first part from which a second one went
    on stays until another plan's run ends: when only the second sampler is changed, or when two go on from it, the host
    does not sample it again.
    """

    def __init__(self, most_bytes: int = _WAITING_BYTES):
        self._most_bytes = most_bytes
        self._runs: list[tuple[str, FinishedRun]] = []
        self._used: list[FinishedRun] = []  # first parts from which a second one went on
        self._bypassed: OrderedDict[str, Bypassed] = OrderedDict()  # by plan id
        self._declined: OrderedDict[str, Message] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, plan_id: str, run: FinishedRun) -> None:
        with self._lock:
            used = [kept for owner, kept in self._runs if owner != plan_id and any(kept is one for one in self._used)]
            self._drop(used)
            self._runs.append((plan_id, run))
            self._bypassed.pop(plan_id, None)
            while len(self._runs) > 1 and sum(run.bytes for _, run in self._runs) > self._most_bytes:
                self._runs.pop(0)

    def bypass(self, plan_id: str, reason: Message, began_with: torch.Tensor | None = None) -> None:
        """Remember why a run was sampled without Chorus. began_with: the LATENT that it began with."""
        first = None if began_with is None else self.find(plan_id, lambda run: run.goes_on_from(began_with))
        told = Bypassed(reason)
        if first is not None and first.report.outcome == "hit":
            told = Bypassed(say("bypassed.second", reason=reason), tuple(first.report.notes))
        with self._lock:
            self._bypassed[plan_id] = told
            while len(self._bypassed) > _REASONS:
                self._bypassed.popitem(last=False)

    def decline(self, plan_id: str, reason: Message) -> None:
        """Have every run of a plan sampled without Chorus from now on."""
        with self._lock:
            self._declined[plan_id] = reason
            while len(self._declined) > _REASONS:
                self._declined.popitem(last=False)

    def declined(self, plan_id: str) -> Message | None:
        """Why runs of a plan are to be sampled without Chorus; None if they are not."""
        with self._lock:
            return self._declined.get(plan_id)

    def bypassed(self, plan_id: str) -> Bypassed | None:
        """Why the latest run of a plan was sampled without Chorus; None if it was not."""
        with self._lock:
            return self._bypassed.get(plan_id)

    def find(self, plan_id: str, fits: Callable[[FinishedRun], bool]) -> FinishedRun | None:
        """The oldest run of a plan that fits: where several of a list fit, they are asked for in their order."""
        with self._lock:
            runs = [run for owner, run in self._runs if owner == plan_id]
        return next((run for run in runs if fits(run)), None)

    def used(self, run: FinishedRun) -> None:
        """A second part has gone on from this first part."""
        with self._lock:
            self._used.append(run)

    def remove(self, run: FinishedRun) -> None:
        with self._lock:
            self._drop([run])

    def _drop(self, gone: list[FinishedRun]) -> None:
        self._runs = [(owner, kept) for owner, kept in self._runs if all(kept is not run for run in gone)]
        self._used = [kept for kept in self._used if any(kept is run for _, run in self._runs)]

    def __len__(self) -> int:
        return len(self._runs)


finished_runs = FinishedRuns()
