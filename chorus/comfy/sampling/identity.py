"""The identity of a request. A stored result answers a request only if their identities are equal."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...messages import Message, say
from ...reuse.plan import Plan
from ..content import NotUnderstood, digest
from ..signature import RunningNode
from ..space import Expert

_VERSION = 3  # of what is digested; with another version, earlier results are not found any more


@dataclass(frozen=True)
class Identity:
    """A digest of two things: the host's signature of the sampler's node, and the content of what names may hide.

    computed: identity of a result computed in full. reused: of one that started from the cache, whose threshold is
    part of the request. Both are hex digests; those of a request that is not understood are random, and equal nothing.
    not_understood: the reason, if so.
    """

    computed: str
    reused: str
    not_understood: Message | None = None


def identity_of(
    plan: Plan,
    guider: Any,
    expert: Expert | None,
    sampler: Any,
    sigmas: Sequence[float],
    noise_digest: str,
    seed: int | None,
    latent_image: torch.Tensor | None,
    earlier: Sequence[str],
    call_number: int,
) -> Identity:
    """The identity of a sampler call.

    seed: where the sampler draws noise of its own, else None. latent_image: None where the call goes on from an
    earlier one, whose identities `earlier` are. call_number: of the sampler calls that this execution of the node
    makes, from 0.
    """
    try:
        node = RunningNode()
        described = [
            _VERSION,
            node.signature(),
            call_number,
            expert,
            plan.space.key(),
            {name: [_content(cond) for cond in conds or []] for name, conds in guider.original_conds.items()},
            {name: value for name, value in vars(guider).items() if isinstance(value, int | float | str)},
            getattr(sampler.sampler_function, "__name__", ""),
            {name: value for name, value in sampler.extra_options.items() if isinstance(value, int | float | str)},
            list(sigmas),
            noise_digest,
            seed,
            latent_image,
            list(earlier),
        ]
        computed = digest(described)
        return Identity(computed, digest([computed, plan.threshold]))
    except (NotUnderstood, RecursionError) as error:
        return Identity(uuid.uuid4().hex, uuid.uuid4().hex, say("note.not_identical", why=str(error)))


def _content(cond: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cond.items() if name not in ("uuid", "model_conds")}


class Calls:
    """Numbers the sampler calls that one execution of a node makes."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] = ()
        self._number = 0

    def next(self) -> int:
        """The number of this call, from 0; always 0 outside the host's executor."""
        try:
            node = RunningNode()
        except NotUnderstood:
            return 0
        place = (node.prompt_id, node.node_id, node.list_index)
        self._number = self._number + 1 if place == self._last else 0
        self._last = place
        return self._number


calls = Calls()
