"""Does everything work here? The machine, the imports, and a tiny model through the host and Chorus, in some seconds.

On a GPU the same requests run on the CPU, too: both must come to the same pictures.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import models
from .latency import COLD, FEW, LOOK_AMPLIFIED, LOOKS, PLAIN, Bench
from .results import rounded, write

CASES = (PLAIN, COLD, LOOKS[0.1], LOOKS[0.25], LOOKS[0.5], LOOK_AMPLIFIED)
SAME = 2e-2  # relative difference of pictures in fp32 that two devices may have
PACKAGES = ("numpy", "triton", "comfy-kitchen", "comfy-aimdo", "transformers", "safetensors", "zstandard", "blake3")
SEED = 42


def versions() -> dict[str, str]:
    """Of the packages that matter; "missing" where there is none."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def tiny(device: torch.device) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor], list[str]]:
    """(figures, latents by case, what is wrong) of a tiny Wan on a device."""
    rows, latents, wrong = {}, {}, []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, models.caches_in(Path(folder)):
        bench = Bench(models.SIZES["wan-1.3b", "small"], device, torch.float32)
        bench.remember_source(FEW)
        for case in CASES:
            measured = bench.request(case, FEW, seed=SEED)
            rows[case.name] = {"steps": measured.kinds, "step_equivalents": rounded(measured.equivalents)}
            latents[case.name] = measured.latent.cpu().float()
            if fault := bench.fault(case, FEW, measured):
                wrong.append(f"{device.type}, {case.name}: {fault}")
    amplified, plain = latents[LOOK_AMPLIFIED.name], latents[LOOKS[0.25].name]
    if torch.equal(amplified, plain):
        wrong.append(f"{device.type}: amplification changes nothing")
    return rows, latents, wrong


def main(arguments: Sequence[str]) -> int:
    """Returns 1 where nothing works, 3 where something is not as it should be; the file says what."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.check", description=__doc__)
    parser.add_argument("--small", action="store_true", help="on the CPU")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    if not options.small and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here", file=sys.stderr)
        return 1
    models.import_comfyui(cpu=options.small)
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    result: dict[str, Any] = {"about": (__doc__ or "").strip(), **models.circumstances(device), "packages": versions()}
    result["compilers"] = {name: shutil.which(name) or "missing" for name in ("gcc", "g++", "nvcc")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result["gpu"] = {
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "free_gb": round(torch.cuda.mem_get_info(device)[0] / 1e9, 1),
            "capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
        }
    print(f"{result['machine']}, torch {result['torch']}, ComfyUI {result['comfyui']}", flush=True)
    write(result, options.output)
    result["rows"], here, wrong = tiny(device)
    if device.type != "cpu":
        _, there, more = tiny(torch.device("cpu"))
        wrong += more
        apart = {name: float((x - there[name]).norm() / there[name].norm()) for name, x in here.items()}
        result["difference_to_cpu"] = {name: rounded(value) for name, value in apart.items()}
        wrong += [f"{name}: {x:.2e} away from the CPU's picture" for name, x in apart.items() if not x < SAME]
    result |= {"wrong": wrong, "seconds": round(time.perf_counter() - began, 1)}
    write(result, options.output)
    for line in wrong or ["all as it should be"]:
        print(line, flush=True)
    return 3 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
