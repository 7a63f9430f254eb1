"""Write a checkpoint's averaged weights as ComfyUI loads them: `python -m small_wan.export --work DIR`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from . import architecture
from .codec import Codec

WEIGHTS = Path(__file__).parent / "weights"
MODEL_FILE = WEIGHTS / "small_wan_t2v.safetensors"
CODEC_FILE = WEIGHTS / "codec.safetensors"
LORA_FILE = WEIGHTS / "small_wan_4step_lora.safetensors"


def write(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Save fp16 safetensors by atomic rename: a host that has the old file mapped keeps it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, part, metadata)
    os.replace(part, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the training's work folder")
    parser.add_argument("--model", type=Path, default=MODEL_FILE, help="where to write the model")
    args = parser.parse_args()
    state = torch.load(args.work / "checkpoint.pt", map_location="cpu")
    write(state["average"], args.model, architecture.METADATA)
    codec_file = args.model.with_name(CODEC_FILE.name)
    part = codec_file.with_suffix(".part")
    Codec.load(args.work / "codec.safetensors").save(part)
    os.replace(part, codec_file)
    print(f"{args.model}: step {state['step']}, {args.model.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
