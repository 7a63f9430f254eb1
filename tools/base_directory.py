"""The folder a ComfyUI runs in (`--base-directory`): custom nodes, models, input, output, user."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SMALL_WAN = CHECKOUT / "tests" / "small_wan"
BENCH_WAN = CHECKOUT / "tests" / "bench_wan"

PACK_FOLDER = "chorus"
"""The pack's folder name in `custom_nodes`."""

CUSTOM_NODES = {PACK_FOLDER: CHECKOUT, "chorus_small_wan": SMALL_WAN}
"""What lies in `custom_nodes` by default: this pack, and the test-only one."""

TEST_PACKS = {f"chorus_test_{folder.name}": folder for folder in sorted((CHECKOUT / "tests" / "packs").glob("[a-z]*"))}
"""Packs of test-only nodes that patch models in the ways that packs in use do; for tests of this pack beside others."""

MODELS = {
    "diffusion_models/small_wan_t2v.safetensors": SMALL_WAN / "weights" / "small_wan_t2v.safetensors",
    "loras/small_wan_4step_lora.safetensors": SMALL_WAN / "weights" / "small_wan_4step_lora.safetensors",
    "diffusion_models/bench_wan_t2v.safetensors": BENCH_WAN / "weights" / "bench_wan_t2v.safetensors",
    "diffusion_models/bench_wan_i2v.safetensors": BENCH_WAN / "weights" / "bench_wan_i2v.safetensors",
    "loras/bench_wan_4step_lora.safetensors": BENCH_WAN / "weights" / "bench_wan_4step_lora.safetensors",
}
"""What lies in `models` by default, where the file exists."""

_NOT_COPIED = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis")


def prepare(
    base: Path,
    custom_nodes: Mapping[str, Path] = CUSTOM_NODES,
    models: Mapping[str, Path] = MODELS,
    comfyui: Path | None = None,
) -> None:
    """Make `base` a base directory for ComfyUI; one that was used before keeps what it holds.

    Args:
        base: the folder; made if missing.
        custom_nodes: folder name in `custom_nodes` to the pack's folder.
        models: path below `models` to the file; a file that does not exist is left out.
        comfyui: the ComfyUI whose own input images lie in `input`, as they do where people installed it.
    """
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, source in custom_nodes.items():
        if (source / "__init__.py").is_file():
            _link_or_copy(source, base / "custom_nodes" / name)
    for name, source in models.items():
        if source.is_file():
            _link_or_copy(source, base / "models" / name)
    if comfyui is not None and (comfyui / "input").is_dir():
        for source in (comfyui / "input").glob("*.png"):
            shutil.copyfile(source, base / "input" / source.name)


def write_extra_model_paths(file: Path, folders: Mapping[str, Sequence[Path]]) -> None:
    """Write an `--extra-model-paths-config` file: model kind (`loras`, …) to folders."""
    kinds = {kind: "\n".join(str(path.absolute()) for path in paths) for kind, paths in folders.items()}
    file.write_text(json.dumps({"chorus_tools": kinds}), encoding="utf-8")  # JSON is YAML


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    elif target.exists():
        target.unlink()
    try:
        os.symlink(source.absolute(), target, target_is_directory=source.is_dir())
    except OSError:  # Windows without developer mode
        if source.is_dir():
            shutil.copytree(source, target, ignore=_NOT_COPIED)
        else:
            shutil.copyfile(source, target)
