"""How well the small Wan follows held-out prompts: `python -m small_wan.evaluate --steps 20 10`.

Run from `tests/` with ComfyUI on PYTHONPATH. Samples through the host (see `sampling`) and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import export, judge, sampling, scenes

if TYPE_CHECKING:
    import torch
    from comfy.model_patcher import ModelPatcher

BATCH = 16
FIRST_SEED = 10_000


def interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    z = 1.96
    centre = (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return centre - half, centre + half


def held_out(count: int, *, two_objects: bool, seed: int) -> list[scenes.Caption]:
    """Captions whose main attributes were combined in no training scene."""
    rng = np.random.default_rng([seed, int(two_objects)])
    share = 1.0 if two_objects else 0.0
    return [scenes.sample_caption(rng, held_out=True, two_objects=share) for _ in range(count)]


def videos(model: ModelPatcher, captions: list[scenes.Caption], *, steps: int, cfg: float) -> list[np.ndarray]:
    """[T, H, W, 3] a caption, as VAEDecode gives it; caption i is sampled with seed FIRST_SEED + i."""
    from .nodes import load_vae

    vae, made = load_vae(), []
    for first in range(0, len(captions), BATCH):
        texts = [caption.text for caption in captions[first : first + BATCH]]
        seeds = [FIRST_SEED + first + i for i in range(len(texts))]
        latent: torch.Tensor = sampling.sample(model, texts, seeds, steps=steps, cfg=cfg)
        made += list(vae.decode(latent).numpy())
    return made


def score(made: list[np.ndarray], captions: list[scenes.Caption]) -> dict:
    """Accuracy an attribute as [rate, low, high], the mean over attributes, and the mean fidelity error."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for video, caption in zip(made, captions, strict=True):
        outcome = judge.correct(video, caption)
        for name, hit in outcome.items():
            outcomes[name].append(hit)
        outcomes["all of a video's"].append(all(outcome.values()))
    attributes = {}
    for name, hits in outcomes.items():
        low, high = interval(sum(hits), len(hits))
        attributes[name] = [round(x, 3) for x in (sum(hits) / len(hits), low, high)]
    named = [hit for name, hits in outcomes.items() if name != "all of a video's" for hit in hits]
    errors = [judge.fidelity(video, caption) for video, caption in zip(made, captions, strict=True)]
    return {
        "n": len(made),
        "accuracy": round(float(np.mean(named)), 4),
        "fidelity error": round(float(np.mean(errors)), 4),
        "attributes": attributes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=export.MODEL_FILE)
    parser.add_argument("--lora", type=Path, help="LoRA file to apply at strength 1")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 10])
    parser.add_argument("--cfg", type=float, nargs="+", default=[sampling.CFG])
    parser.add_argument("--single", type=int, default=96, help="held-out captions with one object")
    parser.add_argument("--two", type=int, default=64, help="held-out captions with two objects")
    parser.add_argument("--seed", type=int, default=0, help="draws the captions")
    args = parser.parse_args()
    model = sampling.load(args.model, args.lora)
    for cfg in args.cfg:
        for steps in args.steps:
            for two_objects, count in ((False, args.single), (True, args.two)):
                if not count:
                    continue
                captions = held_out(count, two_objects=two_objects, seed=args.seed)
                made = videos(model, captions, steps=steps, cfg=cfg)
                setting = {"steps": steps, "cfg": cfg, "objects": 2 if two_objects else 1}
                print(json.dumps(setting | score(made, captions)), flush=True)


if __name__ == "__main__":
    main()
