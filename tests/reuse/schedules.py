"""Hypothesis strategies for schedules as the host's schedulers make them."""

from __future__ import annotations

from hypothesis import strategies as st

SHIFTS = st.sampled_from([1.0, 3.0, 5.0, 8.0, 12.0])


def shifted(steps: int, shift: float, denoise: float = 1.0) -> list[float]:
    """σ_0 > … > σ_N = 0 of a flow model whose timesteps are evenly spaced (SD3, eq. 23)."""
    even = [denoise * (1.0 - k / steps) for k in range(steps + 1)]
    return [shift * t / (1.0 + (shift - 1.0) * t) for t in even]


def karras(steps: int, high: float, low: float) -> list[float]:
    """σ of Karras et al. (2022), eq. 5, with ρ = 7, and 0 at the end."""
    ends = [high ** (1 / 7), low ** (1 / 7)]
    ramp = [k / max(1, steps - 1) for k in range(steps)]
    return [(ends[0] + r * (ends[1] - ends[0])) ** 7 for r in ramp] + [0.0]


@st.composite
def schedules(draw) -> list[float]:
    """σ_0 > … > σ_N: whole ones, with denoise < 1, cut before the end, even, shifted, Karras or of any steps."""
    kind = draw(st.sampled_from(["shifted", "karras", "any"]))
    if kind == "shifted":
        sigmas = shifted(draw(st.integers(1, 50)), draw(SHIFTS), draw(st.sampled_from([1.0, 0.8, 0.35])))
    elif kind == "karras":
        sigmas = karras(draw(st.integers(1, 12)), 1.0, draw(st.sampled_from([0.02, 0.1])))
    else:
        sigmas = sorted(draw(st.sets(st.integers(1, 500), min_size=1, max_size=30)), reverse=True)
        sigmas = [s / 500 for s in sigmas] + [0.0]
    last = draw(st.integers(2, len(sigmas)))
    return sigmas if draw(st.booleans()) else sigmas[:last]


CUTS = st.floats(0.0, 1.0)
