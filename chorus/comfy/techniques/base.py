"""What a technique is: a way to compute less of a request, or to record it for later ones.

A run asks its techniques in order. Each *returns* what it decides; the run applies it. No technique writes into the
run or into another one; some read what people have set for another stage, or share its checks. So a new one touches its
module here, `ORDER`, its node and its texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...messages import Message
from ...reuse.given import Given
from ...reuse.plan import Plan
from ...reuse.schedule import Schedule
from ..networks import AttentionWork, KVCache, ModelCall, Network
from ..sampling.finished import FinishedRun
from ..sampling.guidance import Guidance, Part
from ..sampling.samplers import Sampler


@dataclass(frozen=True)
class Request:
    """What is known of a sampling run before its first step.

    foreign: where other nodes' patches lie on the model (`patches.foreign_patches`).
    shape: of the latent in model space, [B, C, T, H, W].
    noise: ε in model space, of that shape, fp32 on the CPU; noise_digest: of it.
    given: what a noise mask keeps of the latent, on the CPU; None without a mask.
    tokens: [L, C] encodings of the one positive prompt, None for a combination of several.
    positive_ids: the host's ids of the positive conditionings; carried: digest of what they carry beside text.
    text_digest: digest of the encodings as they are sampled, which tells prompts apart.
    seeded: whether the model is given a picture with noise of the seed, too.
    cfg: the largest, at least 1; cfg_known: whether an estimate is the one without CFG plus so many times the prompt's.
    areas: whether a conditioning applies to a part of the picture only.
    whole_steps: of the schedule that this run's may be the first or second part of.
    before: the first part of the schedule, where two samplers share it.
    stored: whether the graph has a node that keeps the run.
    sigma_of: a fraction of the schedule → σ, by the model's own sampling.
    noise_of: a seed → ε that the host draws for it, like `noise`.
    free_memory: bytes that are free on the model's device.
    into_model_space: the model's scaling of latents.
    """

    plan: Plan
    network: Network
    sampler: Sampler
    options: Mapping[str, Any]
    foreign: tuple[str, ...]
    guidance: Guidance
    shape: tuple[int, ...]
    noise: torch.Tensor
    noise_digest: str
    given: Given | None
    tokens: torch.Tensor | None
    positive_ids: frozenset[Any]
    carried: str
    text_digest: str
    seeded: bool
    cfg: float
    cfg_known: bool
    areas: bool
    whole_steps: int
    before: FinishedRun | None
    stored: bool
    sigma_of: Callable[[float], float]
    noise_of: Callable[[int], torch.Tensor]
    free_memory: Callable[[], int]
    into_model_space: Callable[[torch.Tensor], torch.Tensor]

    def part(self, schedule: Schedule) -> Part:
        """What this sampler does of a schedule, as it is kept."""
        return Part(schedule.sigmas[0], self.sampler.name, vars(self.guidance))


@dataclass(frozen=True)
class Decision:
    """What a technique decides for a run.

    schedule: the path from now on, None for the one there is.
    parent: id of the entry that the run descends from.
    notes: what people should know of it.
    """

    schedule: Schedule | None = None
    parent: str | None = None
    notes: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Why a technique cannot do what was asked for. miss: nothing of the source can be reused, the run is a miss."""

    why: Message
    miss: bool = False


@dataclass(frozen=True)
class CallWork:
    """What a technique does inside one model call.

    computed: [V] positions on the token grid, in frame-major order; None for all.
    kv_cache: keys and values of the tokens that are not: kept where all are computed, used where they are not.
    attention: what it does at the attention calls of text; None for nothing.
    """

    computed: torch.Tensor | None = None
    kv_cache: KVCache | None = None
    attention: AttentionWork | None = None


NOTHING = CallWork()


@dataclass
class Technique:
    """One technique in one run: made at its beginning, dropped at its end.

    Methods are called in this order, but for `expected_share` and `figures`, which may be asked at any time.
    """

    needs_source: ClassVar[bool] = True

    request: Request

    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        """Decide, on the path that the techniques before have left. None: not asked for, or nothing to do."""
        return None

    def start(self, schedule: Schedule) -> torch.Tensor | Refused | None:
        """The state x at the first σ of the settled path, [B, C, T, H, W]; None for the sampler's own start."""
        return None

    def instead(self, schedule: Schedule, step: int) -> torch.Tensor | None:
        """The estimate x0, [B, C, T, H, W], that the sampler is given without asking the model; None to ask it."""
        return None

    def before_evaluation(self, schedule: Schedule, step: int, sigma: float, x: torch.Tensor) -> None:
        """The sampler is about to ask the model. x: [B, C, T, H, W] at the sampler's σ, in model space."""

    def asked_at(
        self, schedule: Schedule, step: int, sigma: float, x: torch.Tensor
    ) -> tuple[torch.Tensor, float] | None:
        """The state, [B, C, T, H, W] in model space, and its σ at which the model is asked; None for the sampler's."""
        return None

    def in_call(self, schedule: Schedule, call: ModelCall) -> CallWork:
        """What to do inside a model call of this evaluation."""
        return NOTHING

    def after_evaluation(self, schedule: Schedule, step: int, x0: torch.Tensor) -> torch.Tensor:
        """The estimate that the sampler is given in place of the model's.

        x0: [B, C, T, H, W], after CFG, at the σ that was asked at.
        """
        return x0

    def decide(self, schedule: Schedule, step: int) -> Decision | None:
        """Decide again, by what the evaluation of a step has shown. Steps that have begun cannot be changed."""
        return None

    def expected_share(self, schedule: Schedule, step: int) -> float:
        """The share of the tokens that a step will compute, as far as it is known."""
        return 1.0

    def figures(self) -> Mapping[str, Any]:
        """Figures of the run by their names in `Report`, as far as they are known."""
        return {}

    def result(self, schedule: Schedule) -> Any:
        """What is kept of it in `FinishedRun.results`, for the second half of the schedule or for the store.

        It must lie on the CPU, since the run may wait for its store node for long.
        """
        return None

    def drop(self) -> None:
        """Let go of every tensor."""
