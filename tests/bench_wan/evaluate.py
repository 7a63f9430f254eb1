"""How often the bench model shows what prompts name: `python -m bench_wan.evaluate`, from `tests/`.

Prompts that were kept from training, 20 Euler steps, CFG 3, sampled by the twin. With `--from-image` for the model that
is given the first frame: of a scene that shows the prompt, and how far the video's first frame is from it. With
`--distilled` under the LoRA, 4 steps at CFG 1.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from small_wan.distill import LORA_PREFIX, merge

from . import judge, latents, sampling, train
from .captions import sample_caption
from .export import FROM_IMAGE_FILE, LORA_FILE, MODEL_FILE
from .text import Encoder
from .twin import Twin

STEPS, AT_ONCE = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from-image", action="store_true", help="the model that is given the first frame")
    parser.add_argument("--distilled", action="store_true", help="the model under its LoRA")
    parser.add_argument("--model", type=Path, help="default: the one in the repository")
    parser.add_argument("--lora", type=Path, help="with --distilled; default: the one in the repository")
    parser.add_argument("--count", type=int, default=40, help="of prompts")
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    weights = _read(args.model or (FROM_IMAGE_FILE if args.from_image else MODEL_FILE))
    if args.distilled:
        weights = merge(
            weights, {name.removeprefix(LORA_PREFIX): value for name, value in _read(args.lora or LORA_FILE).items()}
        )
    steps, cfg = (sampling.DISTILLED_STEPS, 1.0) if args.distilled else (STEPS, sampling.CFG)
    model = Twin(in_dim=weights["patch_embedding.weight"].shape[1])
    model.load_state_dict(weights)
    rng, right, codec = np.random.default_rng(args.seed), defaultdict(list), latents.codec()
    captions = [sample_caption(rng, held_out=True) for _ in range(args.count)]
    for first in range(0, args.count, AT_ONCE):
        some = captions[first : first + AT_ONCE]
        context, noise = Encoder()([c.text for c in some]), sampling.noise(range(first, first + len(some)))
        truth = train.drawn(some, args.seed * 1_000 + first)[0].float() if args.from_image else None
        given = None if truth is None else train.first_frame(truth)
        with train.quick(torch.device("cpu")):
            states = sampling.path(model, context, noise, steps, cfg, given)
        videos = codec.decode(states[-1]).float().numpy()
        for video, caption in zip(videos, some, strict=True):
            for name, shown in judge.correct(video, caption).items():
                right[name].append(shown)
            right["objects too many"].append(judge.copies(video, caption))
        if truth is not None:
            frames = codec.decode(truth[:, :, :1]).float().numpy()[:, 0]
            right["difference to the given frame"] += list(np.sqrt(((videos[:, 0] - frames) ** 2).mean((1, 2, 3))))
    for name, values in sorted(right.items()):
        print(f"{name}: {np.mean(values):.2f} (n = {len(values)})")


def _read(file: Path) -> dict[str, torch.Tensor]:
    return {name: value.float() for name, value in load_file(file).items()}


if __name__ == "__main__":
    main()
