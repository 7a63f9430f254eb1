"""Pack what a machine without network lacks: `python benchmarks/gpu/prepare.py`.

Makes `benchmarks/gpu/travel/`, which git ignores, for the Python of that machine: ComfyUI's Python sources and the
packages that it and Chorus need for sampling and that a machine with PyTorch may lack. Runs on any Python 3.11 or
newer; needs pip and the network the first time.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(CHECKOUT)

from tools import comfyui, environment  # noqa: E402
from tools.devcache import build_once, cache_folder  # noqa: E402

TRAVEL = Path(__file__).resolve().parent / "travel"
ARCHIVE, ABOUT, WEIGHTS = "travel.tar.xz", "travel.json", "weights.safetensors"
# As requirements-dev.txt pins them; trampoline is what torchsde needs.
PACKAGES = ("blake3", "comfy-aimdo", "comfy-kitchen", "torchsde", "zstandard")
UNPINNED = ("trampoline",)
# 135 MB of kernels for AMD's GPUs would travel for nothing.
LEFT_OUT = ("comfy_kitchen/backends/hip/*.so",)
# Of ComfyUI only Python files and small tables travel, and none of these folders at its top.
HOST_LEFT_OUT = {"api_server", "blueprints", "comfy_api_nodes", "custom_nodes", "models", "script_examples", "tests"}
HOST_LEFT_OUT |= {"tests-unit", "input", "output", ".git", ".github", ".ci"}
HOST_LARGEST = 200_000  # bytes of a file: vocabularies of text encoders are larger
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
LARGEST = 64 * 2**20  # bytes that the checkout and what is packed may have together


class PreparationFailed(RuntimeError):
    """What could not be packed, and why."""


def pins() -> list[str]:
    """The packages with their versions."""
    lines = environment.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    found = {line.partition("==")[0].lower(): line.partition("#")[0].strip() for line in lines if "==" in line}
    return [found[name] for name in PACKAGES] + list(UNPINNED)


def prepare(python: str, travel: Path, report: Callable[[str], None] = print) -> dict:
    """Make `travel` for the Python of version `python` ("3.12"); returns what its travel.json says."""
    files = (Path(__file__), environment.REQUIREMENTS, Path(comfyui.__file__))
    host = comfyui.find(report)
    key = environment.content_key((*files, host / "comfyui_version.py"))
    cached = build_once(
        cache_folder() / f"travel-{python}-{key}", lambda empty: _build(empty, host, python, report), report
    )
    travel.mkdir(parents=True, exist_ok=True)
    for name in (ARCHIVE, ABOUT):
        shutil.copy2(cached / name, travel / name)
    told: dict = json.loads((travel / ABOUT).read_text(encoding="utf-8"))
    return told


def _build(folder: Path, host: Path, python: str, report: Callable[[str], None]) -> None:
    site = folder / "site"
    report(f"fetching {', '.join(pins())} for Python {python}")
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--target", str(site), "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    done = subprocess.run([*command, *pins()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise PreparationFailed(f"pip could not fetch the packages for Python {python}:\n{done.stdout[-2000:]}")
    for pattern in LEFT_OUT:
        for file in site.glob(pattern):
            file.unlink()
    report("packing; a minute or less")
    part = folder / f"{ARCHIVE}.part"
    with lzma.open(part, "wb", preset=2) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for file in sorted(path for path in site.rglob("*") if path.is_file()):
            tar.add(file, str(Path("site") / file.relative_to(site)))
        for file in _host_files(host):
            tar.add(file, str(Path("ComfyUI") / file.relative_to(host)))
    part.replace(folder / ARCHIVE)
    shutil.rmtree(site)
    version = (host / "comfyui_version.py").read_text(encoding="utf-8").partition('__version__ = "')[2]
    about = {"python": python, "packages": pins(), "comfyui": version.partition('"')[0]}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _host_files(host: Path) -> Iterator[Path]:
    for path in sorted(host.iterdir()):
        if path.name in HOST_LEFT_OUT:
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".json") and file.is_file() and file.stat().st_size <= HOST_LARGEST:
                yield file


def checkout_bytes() -> int:
    """What git tracks here, in bytes; 0 outside git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=False).stdout
    files = [CHECKOUT / name for name in listed.decode().split("\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file())


def export(checkpoint: Path, file: Path) -> None:
    """The averaged weights of a training's checkpoint.pt, which the training goes on from on the other machine."""
    import torch

    from bench_wan.export import write_model

    write_model(torch.load(checkpoint, map_location="cpu")["average"], file)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu/prepare.py", description=__doc__)
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python; default: 3.12")
    parser.add_argument("--travel", type=Path, default=TRAVEL, help="folder to make; default: benchmarks/gpu/travel")
    parser.add_argument("--checkpoint", type=Path, help="a training's checkpoint.pt: its averaged weights travel, too")
    options = parser.parse_args(arguments)
    try:
        about = prepare(options.python, options.travel)
    except (PreparationFailed, comfyui.ComfyUINotFound) as problem:
        print(problem, file=sys.stderr)
        return 1
    weights = options.travel / WEIGHTS
    weights.unlink(missing_ok=True)
    if options.checkpoint is not None:
        from tools.launch import expose_packages

        expose_packages()
        export(options.checkpoint, weights)
    packed = sum(file.stat().st_size for file in options.travel.iterdir())
    both = packed + checkout_bytes()
    print(f"{options.travel}: {packed / 2**20:.1f} MiB for Python {about['python']}, with ComfyUI {about['comfyui']}")
    print(f"with the checkout: {both / 2**20:.1f} MiB of at most {LARGEST / 2**20:.0f}")
    if both > LARGEST:
        print("that is too much to travel in one go", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
