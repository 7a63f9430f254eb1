"""How a run makes its estimates of what the network gives. It must agree where estimates of two runs are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..content import digest

_PLAIN = "CFGGuider"  # the host's own, of the KSampler too
# Places of foreign patches, as `foreign_patches` names them.
_AROUND_CFG = (
    "wrapper predict_noise",
    "wrappers predict_noise",
    "option sampler_cfg_function",
    "option sampler_calc_cond_batch_function",
)


STEP_CACHES = frozenset({"easycache", "lazycache"})
"""Transformer options under which the host's step caches keep their state."""


@dataclass(frozen=True)
class Guidance:
    """How a run makes an estimate, beside the model and the positive prompt. As plain data it is kept with an entry.

    Estimates of two runs tell their prompts apart only if all of it agrees.

    guider: its class; cfgs: every CFG that it has, then the guidance that the positive conditioning holds for a model
        that is distilled to it (Flux, HunyuanVideo); negative: digest of the negative encodings, "" where CFG is 1.
    ranged: whether a conditioning applies to a part of the schedule only.
    step_cache: whether the host may answer a step with an earlier one's result (EasyCache, LazyCache).
    windows: the context windows that the video is sampled in; "" where it is sampled whole.
    """

    guider: str
    cfgs: list[float]
    negative: str
    ranged: bool
    step_cache: bool
    windows: str


@dataclass(frozen=True)
class Part:
    """What one of the samplers that share a schedule did. sigma: where it began; guidance: as plain data."""

    sigma: float
    sampler: str
    guidance: Any


def cfgs_of(guider: Any) -> list[float]:
    """Every CFG that a guider has."""
    return [float(v) for name, v in vars(guider).items() if name.startswith("cfg") and isinstance(v, int | float)]


def guidance_of(guider: Any) -> Guidance:
    """Read from a guider with its conditionings set."""
    patcher, conds = guider.model_patcher, guider.original_conds
    every = [cond for group in conds.values() for cond in group or []]
    cfgs = cfgs_of(guider)
    given = [float(cond["guidance"]) for cond in conds.get("positive") or [] if cond.get("guidance") is not None]
    kind = type(guider).__name__
    without = kind == _PLAIN and cfgs == [1.0]  # then the host leaves the negative prompt out
    return Guidance(
        guider=kind,
        cfgs=[*cfgs, *given],
        negative="" if without else digest([cond.get("cross_attn") for cond in conds.get("negative") or []]),
        ranged=any(cond.get("start_percent", 0.0) > 0 or cond.get("end_percent", 1.0) < 1 for cond in every),
        step_cache=not STEP_CACHES.isdisjoint(patcher.model_options["transformer_options"]),
        windows=_windows(patcher.model_options.get("context_handler")),
    )


def _windows(handler: Any) -> str:
    """What tells windows apart: the handler's class and its plain settings."""
    if handler is None:
        return ""
    settings = {
        name: value for name, value in vars(handler).items() if isinstance(value, int | float | str) and name[0] != "_"
    }
    return f"{type(handler).__name__} {sorted(settings.items())}"


def is_plain(guidance: Guidance, foreign: Iterable[str]) -> bool:
    """Whether an estimate is the one without the prompt plus CFG times what the prompt adds.

    foreign: places of other nodes' patches, as `foreign_patches` names them.
    """
    return guidance.guider == _PLAIN and not any(place.startswith(_AROUND_CFG) for place in foreign)
