"""Write a checkpoint's averaged weights as ComfyUI loads them: `python -m bench_wan.export --work DIR`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from small_wan.export import write

from .twin import CONFIG

WEIGHTS = Path(__file__).parent / "weights"
MODEL_FILE = WEIGHTS / "bench_wan_t2v.safetensors"
FROM_IMAGE_FILE = WEIGHTS / "bench_wan_i2v.safetensors"
LORA_FILE = WEIGHTS / "bench_wan_4step_lora.safetensors"
# What the host's model detection cannot read from the tensors.
METADATA = {"config": json.dumps({"transformer": {k: CONFIG[k] for k in ("text_dim", "num_heads")}})}


def write_model(average: Mapping[str, torch.Tensor], file: Path) -> None:
    """The averaged weights in fp16, without what only training needs. By atomic rename."""
    shipped = {name: value.cpu() for name, value in average.items() if not name.startswith("marks.")}
    write(shipped, file, METADATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the training's work folder")
    parser.add_argument("--model", type=Path, default=MODEL_FILE, help="where to write the model")
    args = parser.parse_args()
    state = torch.load(args.work / "checkpoint.pt", map_location="cpu")
    write_model(state["average"], args.model)
    print(f"{args.model}: after {state['samples']} samples, {args.model.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
