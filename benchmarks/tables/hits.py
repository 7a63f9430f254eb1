"""Look and join against its rivals at the cost of each hit, by what the prompt changes: words, details, objects,
seams, and how much of the source stays.

Details are matched one by one with those that a system should show. Fewer steps should show those of the same prompt
and seed with all steps; so should all that take the request's own noise. A hit with a look should show the source's
outside its edit mask, and inside it those of the target with all steps under the source's noise; where everything
differs, the latter alone. NIRVANA should show the source's. Consistency is the difference to the source outside the
named objects. The Fréchet distance is to cold runs of the same prompts with other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.ndimage

from bench_wan import details, judge
from chorus.reuse.course import calibrated
from tools.demo_pictures import mask_of, outlined

from .. import metrics, report
from ..rivals import between, nirvana
from ..samples import Bench
from ..scene_pairs import REPORTED, ScenePair, scene_pairs
from ..systems import DISTILLED_STEPS, EARLY_START, BenchWan, Request, System

FULL = {4: 165, 20: 99, 50: 55}
QUICK = {4: 22, 20: 11}
PICTURED = ("colour", "second shape", "direction", "added", "background")  # kinds of change
HIT = System("look and join")
SKIPPING = System("look and join, none left out", selective=False)
OTHER_TAKE = 500_000  # added to a seed
RIM = 2  # pixels around an object that count as part of it


@dataclass(frozen=True)
class Pair:
    """One pair at one number of steps, with what is sampled for every system."""

    of: ScenePair
    source: Request
    target: Request

    @property
    def target_on_source_noise(self) -> Request:
        return replace(self.target, seed=self.source.seed)


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by steps, system and what the prompt changes."""
    wan, rows = bench.of(BenchWan()), []
    summary: dict[str, dict] = {}
    pictures: dict[str, dict[str, np.ndarray]] = {}
    for steps, count in (FULL if full else QUICK).items():
        pairs = [pair_of(pair, steps) for pair in scene_pairs(count, REPORTED)]
        compared, measured = zip(*wan.each(pairs, lambda pair: _measured(Systems(wan, pair))), strict=True)
        told = of_systems(measured)
        firsts = {systems.pair.of.change: systems for systems in reversed(compared)}
        pictures |= {f"{change}, {steps} steps": firsts[change].pictures() for change in PICTURED if change in firsts}
        for change in ("all", *sorted({p.of.change for p in pairs})):
            chosen = np.array([change in ("all", p.of.change) for p in pairs])
            rows += [
                _row(steps, change, name, {k: v[chosen] for k, v in of.items()}, told, chosen)
                for name, of in told.items()
                if name != "other takes"
            ]
        for key, value in _summary(steps, told).items():
            summary.setdefault(key, {})[str(steps)] = value
    return report.Result(
        name="hits",
        title="Hits with a look against their rivals at equal cost",
        columns=list(rows[0]),
        rows=rows,
        seeds=[REPORTED],
        summary=summary,
        draw=lambda axes: _draw(axes, pictures),
        plot_size=(11.0, 1.45 * max(1, len(pictures))),
    )


def _draw(axes: Any, pictures: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """A row of pictures for each kind of change, a column for each system."""
    names = list(next(iter(pictures.values()), {}))
    rows = [np.concatenate([_framed(row[name]) for name in names], 1) for row in pictures.values()]
    if not rows:
        return
    axes.imshow(np.concatenate(rows))
    axes.set_xticks([(i + 0.5) * rows[0].shape[1] / len(names) for i in range(len(names))], names, fontsize=7)
    axes.set_yticks([(i + 0.5) * rows[0].shape[0] for i in range(len(rows))], list(pictures), fontsize=7)
    axes.tick_params(length=0)
    axes.set_frame_on(False)


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((3, 3), (3, 3), (0, 0)), constant_values=1.0)


def pair_of(pair: ScenePair, steps: int) -> Pair:
    """With the requests for so many steps."""
    return Pair(
        pair,
        Request(pair.source.text, pair.source_seed, steps, caption=pair.source, image=pair.image),
        Request(pair.target.text, pair.target_seed, steps, caption=pair.target, image=pair.image),
    )


def _measured(systems: Systems) -> tuple[Systems, dict[str, dict]]:
    return systems, systems.measured()


Told = dict[str, dict[str, np.ndarray]]


def of_systems(measured: Sequence[Mapping[str, Mapping[str, Any]]]) -> Told:
    """What `Systems.measured` gave for many pairs, by system and measure."""
    told: dict[str, list[Mapping[str, Any]]] = {}
    for pair in measured:
        for name, measures in pair.items():
            told.setdefault(name, []).append(measures)
    return {name: {k: np.array([m[k] for m in of], float) for k in of[0]} for name, of in told.items()}


class Systems:
    """One pair under every system. What is measured of a video: numbers, and `features` [F].

    hit: how Chorus serves the target from the source.
    """

    def __init__(self, wan: Bench, pair: Pair, hit: System = HIT):
        self.wan, self.pair, self.steps = wan, pair, pair.target.steps
        self.cold, self.source = wan.sample(pair.target), wan.sample(pair.source)
        self.on_source = wan.sample(pair.target_on_source_noise)
        self.other = wan.sample(replace(pair.target, seed=pair.target.seed + OTHER_TAKE))
        self.hit = self._reads(hit)
        self.source_frames = wan.frames(self.source)
        self.taken = judge.object_masks(self.source_frames, pair.of.source)

    def compared(self) -> dict[str, dict]:
        """The hit, and fewer steps at its cost; by system."""
        return {
            "other takes": self._told(self.other, self.other),
            "cold": self._told(self.cold, self.cold),
            "look and join": self._told(self.hit, self.source, inside=self.on_source),
            "fewer steps": between(self.hit["step_equivalents"], self.steps, self._fewer),
        }

    def measured(self) -> dict[str, dict]:
        """All systems."""
        cost = self.hit["step_equivalents"]
        return {
            **self.compared(),
            SKIPPING.name: self._told(self._reads(SKIPPING), self.source, inside=self.on_source),
            EARLY_START.name: self._told(self._reads(EARLY_START), self.cold),
            "fewer steps, source's seed": between(cost, self.steps, self._fewer_on_source),
            "NIRVANA": between(cost, self.steps, self._nirvana),
        }

    def pictures(self) -> dict[str, np.ndarray]:
        """The last frame under each system, [H, W, 3] in [0, 1]; rivals with the number of steps nearest to the cost.

        The hit has a line around its edit mask.
        """
        steps = max(1, round(self.hit["step_equivalents"]))
        shown = {
            "source": self.source,
            "in full": self.cold,
            "in full,\nsource's seed": self.on_source,
            "look and join": self.hit,
            "fewer steps": self.wan.sample(_shorter(self.pair.target, steps)),
            "fewer steps,\nsource's seed": self.wan.sample(_shorter(self.pair.target_on_source_noise, steps)),
            "early start": self._reads(EARLY_START),
            "NIRVANA": self._reads(nirvana(self.steps - steps)),
        }
        videos = {name: self.wan.frames(sample) for name, sample in shown.items()}
        if self.hit["masks"] is not None:
            whole = (255 * videos["look and join"]).round().astype(np.uint8)
            videos["look and join"] = outlined(whole, self.hit["masks"]) / 255
        return {name: frames[-1] for name, frames in videos.items()}

    def _reads(self, system: System) -> dict:
        return self.wan.sample(self.pair.target, system, self.pair.source)

    def _fewer(self, steps: int) -> dict:
        return self._told(self.wan.sample(_shorter(self.pair.target, steps)), self.cold)

    def _fewer_on_source(self, steps: int) -> dict:
        return self._told(self.wan.sample(_shorter(self.pair.target_on_source_noise, steps)), self.on_source)

    def _nirvana(self, steps: int) -> dict:
        sample = self.on_source if steps == self.steps else self._reads(nirvana(self.steps - steps))
        return self._told(sample, self.source)

    def _told(self, sample: dict, reference: dict, inside: dict | None = None) -> dict[str, Any]:
        """reference: the sample whose details are expected; inside: the one expected inside the edit mask, None for the
        same.
        """
        frames = self.wan.frames(sample)
        wanted = details.find(self.wan.frames(reference))
        if inside is not None and sample["masks"] is not None:
            edit = mask_of(sample["masks"], "edit", frames.shape[:3])
            everywhere = edit.mean() > calibrated().cut.everywhere
            wanted = [one for one in wanted if not everywhere and not _lies_in(one, edit)]
            wanted += [one for one in details.find(self.wan.frames(inside)) if everywhere or _lies_in(one, edit)]
        wanted = details.visible(wanted, frames)
        objects = np.maximum(self.taken, judge.object_masks(frames, self.pair.of.target)) > 0.1
        outside = ~scipy.ndimage.binary_dilation(objects, np.ones((1, 2 * RIM + 1, 2 * RIM + 1)))
        return {
            **{name: float(sample[name]) for name in ("alignment", "error", "seams", "flicker", "copies")},
            "cost": float(sample["step_equivalents"]),
            "features": sample["features"],
            "wanted": len(wanted),
            "kept": details.matched(wanted, details.find(frames)),
            "difference": metrics.difference(frames, self.source_frames, outside, BenchWan.side),
        }


def _lies_in(detail: details.Detail, mask: np.ndarray) -> bool:
    """Whether a detail lies in a mask in most of the frames that show it."""
    frames = detail.seen.nonzero()[0]
    x, y = np.clip(detail.places[frames].astype(int), 0, mask.shape[1] - 1).T
    return bool(mask[frames, y, x].mean() > 0.5)


def _shorter(request: Request, steps: int) -> Request:
    """The same model in fewer steps: one that is distilled stays so."""
    return replace(request, steps=steps, full_model=request.steps > DISTILLED_STEPS)


def _row(steps: int, change: str, system: str, of: dict, told: Told, chosen: np.ndarray) -> dict:
    cold = told["cold"]["alignment"][chosen]
    return {
        "steps": steps,
        "change": change,
        "system": system,
        "n": int(chosen.sum()),
        "cost": report.estimate(of["cost"] / steps),
        "alignment loss": report.estimate(cold - of["alignment"]),
        "details kept": report.combined(kept_share, of["kept"], of["wanted"]),
        "object error": report.estimate(of["error"]),
        "seams": report.estimate(of["seams"]),
        "flicker": report.estimate(of["flicker"]),
        "copies": report.estimate(of["copies"]),
        "difference to the source": report.estimate(of["difference"]),
        "Fréchet distance": _distance(of["features"], told["other takes"]["features"][chosen]),
    }


def _distance(features: np.ndarray, others: np.ndarray) -> dict | str:
    """Of two sets of videos, [N, F] each; nothing where halves of them are too few."""
    return report.over_halves(metrics.frechet_distance, features, others) if len(others) >= 20 else ""


def kept_share(kept: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the wanted details that videos show; [N] each."""
    return float(kept.sum() / max(1.0, wanted.sum()))


def _ratio(above: np.ndarray, below: np.ndarray) -> float:
    return float(above.mean() / below.mean()) if below.mean() > 0 else float("nan")


def _summary(steps: int, told: Told) -> dict[str, dict]:
    hit, cold = told["look and join"], told["cold"]["alignment"]
    consistency = (told["fewer steps, source's seed"]["difference"], hit["difference"])
    return {
        **over_fewer(steps, told),
        "consistency_ratio_source": report.combined(_ratio, *consistency),
        "loss_ratio_vs_nirvana": report.combined(_ratio, cold - hit["alignment"], cold - told["NIRVANA"]["alignment"]),
    }


def over_fewer(steps: int, told: Told) -> dict[str, dict]:
    """The hit's cost, and how it compares with fewer steps on the request's own seed, by the summary's keys."""
    hit, fewer = told["look and join"], told["fewer steps"]

    def kept_more(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
        return kept_share(a, b) - kept_share(c, d)

    def loss_ratio(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
        lost = 1.0 - kept_share(c, d)
        return (1.0 - kept_share(a, b)) / lost if lost > 0 else float("nan")

    details_of = (hit["kept"], hit["wanted"], fewer["kept"], fewer["wanted"])
    return {
        "hit_cost": report.estimate(hit["cost"] / steps),
        "alignment_vs_fewer": report.estimate(hit["alignment"] - fewer["alignment"]),
        "details_vs_fewer": report.combined(kept_more, *details_of),
        "details_loss_over_fewer": report.combined(loss_ratio, *details_of),
        "error_ratio_vs_fewer": report.combined(_ratio, hit["error"], fewer["error"]),
        "seams_ratio_vs_fewer": report.combined(_ratio, hit["seams"], fewer["seams"]),
        "consistency_ratio_own": report.combined(_ratio, fewer["difference"], hit["difference"]),
    }
