"""How often the bench model shows what prompts name: `python -m bench_wan.evaluate`, from `tests/`.

Prompts that were kept from training, 20 Euler steps, CFG 3, sampled by the twin.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from . import judge, latents, sampling
from .captions import sample_caption
from .export import MODEL_FILE
from .text import Encoder
from .train import quick
from .twin import Twin

STEPS, AT_ONCE = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FILE)
    parser.add_argument("--count", type=int, default=40, help="of prompts")
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    model = Twin()
    model.load_state_dict({name: value.float() for name, value in load_file(args.model).items()})
    rng, right = np.random.default_rng(args.seed), defaultdict(list)
    captions = [sample_caption(rng, held_out=True) for _ in range(args.count)]
    for first in range(0, args.count, AT_ONCE):
        some = captions[first : first + AT_ONCE]
        context, noise = Encoder()([c.text for c in some]), sampling.noise(range(first, first + len(some)))
        with quick(torch.device("cpu")):
            states = sampling.path(model, context, noise, STEPS)
        for video, caption in zip(latents.codec().decode(states[-1]).float().numpy(), some, strict=True):
            for name, shown in judge.correct(video, caption).items():
                right[name].append(shown)
            right["objects too many"].append(judge.copies(video, caption))
    for name, values in sorted(right.items()):
        print(f"{name}: {np.mean(values):.2f} (n = {len(values)})")


if __name__ == "__main__":
    main()
