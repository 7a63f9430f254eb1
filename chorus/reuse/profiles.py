"""What of a run's latents is kept: which states, and how finely.

The final latent is always kept as it is: an identical request gets the very same result, bit for bit.

The figures are chosen by measurement: `make bench ARGS="states size"`, docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.codec import PLANES, RAW, dct


@dataclass(frozen=True)
class Profile:
    """How ChorusCacheStore keeps a run.

    states: how many states, None for all that were recorded; between these the clean component is interpolated.
    spacing: they lie at even distances raised to this power, which puts more of them early, where hits start.
    state: largest step of a state x in channel spreads, None to keep states as they are. The clean component counts
        1 − σ in x, so its own step is as much larger, up to `coarsest`.
    estimate: largest step of an estimate, and of the state that it is the estimate of, in their own channel spreads.
        Looks compare with them, so they must be finer than what counts as a difference.
    half: whether states are kept in half precision.
    """

    states: int | None = None
    spacing: float = 1.5
    state: float | None = None
    coarsest: float = 1.0
    estimate: float = 0.04
    half: bool = False

    def state_coding(self, sigma: float, noise_drawn: bool, compared: bool = False) -> str:
        """Of the state kept at σ: the clean component, or x itself where the sampler draws noise.

        compared: whether its estimate is kept, too.
        """
        if self.state is None:
            return RAW
        if noise_drawn:
            return dct(NEAR_LOSSLESS)
        return dct(min(self.estimate if compared else self.coarsest, self.coarsest, self.state / (1.0 - sigma)))

    @property
    def final_coding(self) -> str:
        """Of the result, exactly."""
        return RAW if self.raw else PLANES

    @property
    def estimate_coding(self) -> str:
        """Of an estimate."""
        return RAW if self.raw else dct(min(self.estimate, self.coarsest))

    def kept(self, sigmas: Sequence[float], keep: float, noise_drawn: bool) -> list[float]:
        """The σ whose states are kept, of a schedule σ_0 > … > σ_N: within its first share `keep`, but not σ_0.

        States of a sampler that draws noise serve only their own σ, so all of them are kept.
        """
        last = max(1, round(keep * (len(sigmas) - 1)))
        if self.states is None or noise_drawn:
            return list(sigmas[1 : last + 1])
        gaps = max(1, self.states - 1)
        steps = {1 + round((last - 1) * (i / gaps) ** self.spacing) for i in range(self.states)}
        return [sigmas[step] for step in sorted(steps)]

    @property
    def raw(self) -> bool:
        """Whether nothing is compressed."""
        return self.state is None


NEAR_LOSSLESS = 0.03  # 50 dB in the decoded video of the small Wan
PROFILES = {
    "fp16": Profile(half=True),
    "fp32": Profile(),
    "small": Profile(states=4, state=0.2),
    "near-lossless": Profile(states=8, state=NEAR_LOSSLESS, coarsest=0.1),
}
DEFAULT = "small"
