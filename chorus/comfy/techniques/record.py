"""Keeps a run's states, and which places attended to its words, so that other requests can start from it."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...messages import say
from ...prompt.tokens import real_tokens
from ...reuse import course
from ...reuse.join import token_means
from ...reuse.schedule import Schedule
from ...reuse.trajectory import clean_component
from ..networks import ModelCall
from ..sampling.finished import Recording
from .base import NOTHING, CallWork, Decision, Refused, Technique

NAME = "record"
COARSE = (8, 16, 16)  # at most so many cells of the token grid are kept, a few kB per word


class Record(Technique):
    """Only runs computed in full are recorded: a hit's states descend from another prompt's, and in a chain of reuse
    the errors would add up.
    """

    needs_source = False
    recording: Recording | None = None
    begun: float | None = None  # σ of the step that the evaluation at hand begins

    def begin(self, schedule: Schedule) -> Decision | Refused | None:
        request = self.request
        if not (request.plan.writes and request.stored) or schedule.k1:
            return None
        if request.before is not None:
            earlier = request.before.recording
            if earlier is None:
                return None
            if request.before.noise_drawn != request.sampler.draws_noise:
                return Refused(say("note.two_samplers"))
            self.recording = replace(earlier, states=dict(earlier.states), estimates=dict(earlier.estimates))
            return None
        self.recording = Recording()
        return None

    def before_evaluation(self, schedule: Schedule, step: int, sigma: float, x: torch.Tensor) -> None:
        """Keep the state. A later evaluation at the same σ replaces an earlier one: a corrector's is the better one."""
        begins = schedule.begins_at(sigma)
        self.begun = None if begins is None else schedule.whole_path[begins]
        if self.recording is None or begins is None:
            return
        exact = schedule.whole_path[begins]
        if self.request.sampler.draws_noise:
            self.recording.states[exact] = x.detach().to("cpu", torch.float32, copy=True)
        elif exact < 1.0:
            noise = self.request.noise.to(x.device)
            state, given = clean_component(x.detach().float(), noise, exact).cpu(), self.request.given
            # Many models are shown what is kept without noise.
            self.recording.states[exact] = state if given is None else given.put_into(state)

    def after_evaluation(self, schedule: Schedule, step: int, x0: torch.Tensor) -> torch.Tensor:
        """Keep the estimates with which the looks of later requests are compared, token by token.

        Those of the first sampler only: a second one may have another model or another CFG, which looks do not see.
        """
        looked = course.calibrated().rule(self.request.whole_steps).looks
        # No look goes on from a run that drew noise.
        compared = self.request.before is None and not self.request.sampler.draws_noise
        if self.recording is not None and compared and self.begun is not None and step in looked:
            means = token_means(x0.detach(), self.request.network.token_size).cpu()
            self.recording.estimates[self.begun] = means if x0.ndim == 5 else means[:, :, 0]
        return x0

    def in_call(self, schedule: Schedule, call: ModelCall) -> CallWork:
        tokens, network = self.request.tokens, self.request.network
        grid = network.token_grid(call.shape)
        if self.recording is None or tokens is None or call.context is None or grid is None:
            return NOTHING
        if call.step not in watched_steps(schedule.steps) or self.request.guidance.windows or not bool(call.rows.any()):
            return NOTHING
        blocks = {network.block_count // 4, network.block_count // 2, 3 * network.block_count // 4}
        row = int(call.rows.nonzero()[0])
        real = real_tokens(tokens)
        real = torch.nn.functional.pad(real, (0, call.context.shape[1] - len(real)))

        def watch(
            block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if block in blocks and q.shape[1] == grid[0] * grid[1] * grid[2]:
                self._add(coarse_attention(q[row], k[row], heads, grid, real))
            return k, v

        return CallWork(attention=watch)

    def _add(self, maps: torch.Tensor) -> None:
        """Add attention maps [L, T', H', W'] to the mean."""
        assert self.recording is not None
        self.recording.watched += 1
        mean = self.recording.attention
        self.recording.attention = maps if mean is None else torch.lerp(mean, maps, 1.0 / self.recording.watched)

    def result(self, schedule: Schedule) -> Recording | None:
        return self.recording

    def drop(self) -> None:
        self.recording = None


def watched_steps(steps: int) -> set[int]:
    """At 25 % and 40 % of a sampler's steps: objects have their places there, and words still have an effect."""
    return {max(1, round(0.25 * steps)), max(1, round(0.4 * steps))} & set(range(steps))


def coarse_attention(
    q: torch.Tensor, k: torch.Tensor, heads: int, grid: tuple[int, int, int], real: torch.Tensor
) -> torch.Tensor:
    """How strongly each place attends to each real word, mean over heads: [L_real, T', H', W'] fp32 on the CPU.

    q: [tokens, C], or [tokens, heads, C / heads], of one row; k: [L, C] of the same row; real: [L] bool;
    grid: [T, H, W] with tokens = T·H·W.
    Only every n-th token is used, so that the grid fits in COARSE.
    """
    t, h, w = (-(-size // most) for size, most in zip(grid, COARSE, strict=True))
    queries = q.unflatten(0, grid)[::t, ::h, ::w]
    cells = queries.shape[:3]
    queries = queries.reshape(cells.numel(), heads, -1).transpose(0, 1).float()
    keys = k.view(k.shape[0], heads, -1).transpose(0, 1).float()
    probabilities = torch.softmax(queries @ keys.transpose(1, 2) * queries.shape[-1] ** -0.5, dim=-1).mean(0)
    return probabilities[:, real.to(k.device)].T.reshape(-1, *cells).cpu()
