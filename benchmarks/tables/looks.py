"""What a look finds of what the new prompt changes, by the cut: the calibration of chorus/reuse/looks.json.

Sampled with the bench model's twin in plain torch, many pairs at once, on the tuning half. The truth is where the
target's video under the source's noise ends up different from the source's. The first look compares the estimates of
the first step; the second one those of a later step, of the state that the first join made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load_file

from bench_wan import sampling
from bench_wan.export import LORA_FILE, MODEL_FILE
from bench_wan.text import Encoder
from bench_wan.twin import Twin
from chorus.reuse.course import calibrated
from chorus.reuse.join import Cut, channel_spread, difference, rim, token_means
from chorus.reuse.regions import on_cells
from small_wan.distill import LORA_PREFIX, merge

from .. import report
from ..samples import Bench
from ..scene_pairs import TUNED, ScenePair, scene_pairs

FULL = {4: 110, 20: 66}
QUICK = {20: 11}
AT_ONCE = 11
PATCH = (1, 2, 2)
DIFFERENT = 0.3  # in channel spreads, of the finished videos: the truth
HIGHEST = (0.9, 0.6, 0.45, 0.3)  # upper bounds of the threshold, in channel spreads


@dataclass(frozen=True)
class Seen:
    """One pair: [T, H, W] on the token grid. second: by HIGHEST; {} without a second look."""

    change: str
    truth: torch.Tensor
    first: torch.Tensor
    second: dict[float, torch.Tensor]


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps, look, upper bound of the threshold and what the prompt changes."""
    rows = []
    for steps, count in (FULL if full else QUICK).items():
        seen = list(_looked(scene_pairs(count, TUNED), steps))
        for highest in HIGHEST:
            for look in ("first", "both") if calibrated().rule(steps).second_look else ("first",):
                masks = [_mask(one, highest, look) for one in seen]
                for change in ("all", *sorted({one.change for one in seen})):
                    picked = [i for i, one in enumerate(seen) if change in ("all", one.change)]
                    row = _row(change, [seen[i] for i in picked], [masks[i] for i in picked])
                    rows.append({"steps": steps, "look": look, "highest": highest, **row})
    return report.Result(name="looks", title="What a look finds", columns=list(rows[0]), rows=rows, seeds=[TUNED])


def _cut(highest: float) -> Cut:
    return replace(calibrated().cut, highest=highest)


def _mask(seen: Seen, highest: float, look: str) -> torch.Tensor:
    mask = _cut(highest)(seen.first)
    return mask | _cut(highest)(seen.second[highest]) if look == "both" and highest in seen.second else mask


def _row(change: str, seen: list[Seen], masks: list[torch.Tensor]) -> dict:
    marked = np.array([float(mask.float().mean()) for mask in masks])
    true = np.array([float(one.truth.float().mean()) for one in seen])
    both = np.array([float((mask & one.truth).float().mean()) for mask, one in zip(masks, seen, strict=True)])
    return {
        "change": change,
        "n": len(seen),
        "differs": report.estimate(true),
        "marked": report.estimate(marked),
        "found": report.combined(lambda a, b: float(a.sum() / max(1e-9, b.sum())), both, true),
        "right": report.combined(lambda a, b: float(a.sum() / max(1e-9, b.sum())), both, marked),
    }


def twin(steps: int) -> tuple[Twin, float]:
    """The model for so many steps, and its CFG: with the LoRA and without CFG where it is distilled."""
    weights = {name: value.float() for name, value in load_file(MODEL_FILE).items()}
    distilled = steps <= sampling.DISTILLED_STEPS
    if distilled:
        factors = {name.removeprefix(LORA_PREFIX): value.float() for name, value in load_file(LORA_FILE).items()}
        weights = merge(weights, factors)
    model = Twin()
    model.load_state_dict(weights)
    return model.eval(), 1.0 if distilled else sampling.CFG


def _looked(pairs: list[ScenePair], steps: int) -> Iterator[Seen]:
    model, cfg = twin(steps)
    encoder, sigmas = Encoder(), sampling.sigmas(steps).tolist()
    second_look = calibrated().rule(steps).second_look
    for first in range(0, len(pairs), AT_ONCE):
        some = pairs[first : first + AT_ONCE]
        noise = sampling.noise([pair.source_seed for pair in some])
        contexts = [encoder([getattr(pair, side).text for pair in some]) for side in ("source", "target")]
        source, target = (sampling.path(model, context, noise, steps, cfg) for context in contexts)
        looks = [_estimate(path, sigmas, 0) for path in (source, target)]
        for i, pair in enumerate(some):
            one = slice(i, i + 1)
            spread = channel_spread(source[-1][one])
            first = _apart(looks[1][one], looks[0][one], spread) / cfg
            second = {}
            for highest in HIGHEST if second_look else ():
                mask = _cut(highest)(first)
                if float(mask.float().mean()) > calibrated().cut.everywhere:
                    continue
                cells = on_cells(mask, PATCH, tuple(noise.shape[-3:]))
                clean = (source[second_look][one] - sigmas[second_look] * noise[one]) / (1 - sigmas[second_look])
                x0 = torch.lerp(clean, looks[1][one], rim(cells))
                x = sigmas[second_look] * noise[one] + (1 - sigmas[second_look]) * x0
                estimate = sampling.estimate(model, contexts[1][one], x, sigmas[second_look], cfg)
                second[highest] = _apart(estimate, _estimate(source, sigmas, second_look)[one], spread) / cfg
            truth = _apart(target[-1][one], source[-1][one], spread) > DIFFERENT
            yield Seen(pair.change, truth, first, second)


def _apart(target: torch.Tensor, source: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return difference(token_means(target, PATCH), token_means(source, PATCH), spread)


def _estimate(path: list[torch.Tensor], sigmas: list[float], step: int) -> torch.Tensor:
    """x0 at a step of an Euler path."""
    velocity = (path[step + 1] - path[step]) / (sigmas[step + 1] - sigmas[step])
    return path[step] - sigmas[step] * velocity
