"""What a user installs agrees with itself and leaves their ComfyUI as it was."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path


def requirements(checkout: Path) -> list[str]:
    lines = (checkout / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_both_dependency_lists_agree(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == requirements(checkout)


def test_requirements_are_lower_bounds_that_leave_torch_and_numpy_alone(checkout: Path) -> None:
    for line in requirements(checkout):
        assert re.fullmatch(r"[A-Za-z0-9_-]+(\[[a-z]+\])?>=[0-9.]+", line), line
        assert line.partition(">=")[0] not in {"torch", "torchvision", "torchaudio", "numpy"}


def test_installing_them_into_a_complete_environment_changes_nothing(checkout: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--disable-pip-version-check"]
    result = subprocess.run(
        [*command, "-r", str(checkout / "requirements.txt")], check=True, capture_output=True, text=True
    )
    assert "Would install" not in result.stdout


def test_web_folder_is_declared_once(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    assert "web" not in project["tool"]["comfy"], "WEB_DIRECTORY is set too: scripts would load twice"
