"""What every technique that starts from a source asks of it."""

from __future__ import annotations

from ...messages import Message, say
from ...reuse.trajectory import serving
from ..caches import stored_states
from .base import Request


def unfit(request: Request) -> Message | None:
    """Why the match cannot be started from after all; None where it can."""
    plan = request.plan
    assert plan.source is not None
    kept = plan.source.entry.settings
    if kept["carried"] != request.carried:
        return say("miss.image")
    same_text = kept["text"] == request.text_digest if "text" in kept else plan.source.entry.prompt == plan.prompt
    if same_text and not plan.chosen and kept["noise"] != request.noise_digest:
        return say("miss.seed")
    return None


def states_for(request: Request, sigma: float) -> tuple[float, ...]:
    """The kept σ of the source from which its state at `sigma` can be made; () if it cannot."""
    assert request.plan.source is not None
    entry = request.plan.source.entry
    return serving(stored_states(entry), sigma, entry.settings["noise_drawn"])
