"""Train the bench's small Wan on this machine and keep what it has come to, every minute: see tests/bench_wan/train.py.

Only the speed is measured here. How good the weights are, the judge of tests/bench_wan says, on any machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench_wan import distill, train
from bench_wan.export import FROM_IMAGE_FILE, LORA_FILE, MODEL_FILE

from . import models
from .prepare import CHECKOUT, TRAVEL
from .prepare import WEIGHTS as TRAVELLED
from .results import write

# The first that exists is gone on from.
STARTS = (
    TRAVEL / TRAVELLED,
    MODEL_FILE,
    CHECKOUT / "tests" / "small_wan" / "weights" / "small_wan_t2v.safetensors",
)
RATE = 2e-3  # of learning at its peak, with batches 16 to 32 times those on a CPU
STILLS = 2  # single frames for each video: from them the number of dots is learnt
CLOSING = 4.0  # seconds before the end of the budget at which the training stops


def start(trained: Path, from_image: bool) -> Path:
    """What to begin with; trained: where this machine's own training leaves its weights."""
    first = (trained,) if from_image else ()
    return next(file for file in (*first, *STARTS) if file.exists())


def main(arguments: Sequence[str]) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.training", description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few steps, on the CPU")
    parser.add_argument("--seconds", type=float, default=360.0, help="of the whole task, training and its preparation")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--captions", type=int, default=60_000, help="so many prompts; scenes are never repeated")
    parser.add_argument("--weights", type=Path, help="to begin with; default: the best that are here")
    parser.add_argument("--from-image", action="store_true", help="train the model that is given the first frame")
    parser.add_argument("--fresh", action="store_true", help="begin with random weights")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write; the weights lie beside it")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here", file=sys.stderr)
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = options.output.with_name(MODEL_FILE.name)
    made = options.output.with_name(FROM_IMAGE_FILE.name) if options.from_image else trained
    given = None if options.fresh else options.weights or start(trained, options.from_image)
    stills = 0 if options.from_image else STILLS * options.batch  # a given frame leaves nothing to learn from a still
    result: dict[str, Any] = {
        "about": (__doc__ or "").strip(),
        "commit": models.commit(),
        "machine": models.machine(device),
        "torch": torch.__version__,
        "from": None if given is None else given.name,
        "from_image": options.from_image,
        "batch": options.batch,
        "stills": stills,
        "rate": RATE,
        "curve": [],
    }
    write(result, options.output)

    def keep(line: dict) -> None:
        result["curve"].append(line)
        if torch.cuda.is_available():
            result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        write(result, options.output)

    minutes = (options.seconds - CLOSING - (time.monotonic() - began)) / 60
    command = ["--work", str(options.work), "--minutes", f"{minutes:.4f}", "--pool", str(options.captions), "--draw"]
    command += ["--batch", str(options.batch), "--stills", str(stills), "--rate", str(RATE)]
    command += ["--from-image"] if options.from_image else []
    command += ["--weights", str(made), "--every", "5" if options.small else "60"]
    if given is not None:
        command += ["--from-weights", str(given)]
    print(" ".join(command), flush=True)
    train.main(command, keep)
    return 0


def distilled(arguments: Sequence[str]) -> int:
    """Distil what the training has come to."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.training", description=distill.__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    trained = options.output.with_name(MODEL_FILE.name)
    if not trained.exists():
        print(f"{trained} is not there: the training has come to nothing", file=sys.stderr)
        return 1
    few = (
        ["--teacher", "2", "--steps", "2", "--batch", "2"] if options.small else ["--teacher", "1024", "--batch", "64"]
    )
    options.work.mkdir(parents=True, exist_ok=True)
    sys.argv = ["distill", "--work", str(options.work), "--model", str(trained)]
    sys.argv += ["--out", str(options.output.with_name(LORA_FILE.name)), *few]
    began = time.monotonic()
    distill.main()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = {"machine": models.machine(device), "command": sys.argv[5:], "seconds": round(time.monotonic() - began, 1)}
    write(told, options.output)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["distil"]:
        sys.exit(distilled(sys.argv[2:]))
    sys.exit(main(sys.argv[1:]))
