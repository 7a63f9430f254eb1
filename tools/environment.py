"""The development environment: a virtual environment cached by the content of its requirements."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .devcache import build_once, cache_folder

TOOLS = Path(__file__).resolve().parent
REQUIREMENTS = TOOLS / "requirements-dev.txt"
SHIMS = TOOLS / "torch_media_shims.py"

_SHOWN = ("Collecting ", "Installing collected packages", "ERROR", "error:")


class EnvironmentFailure(RuntimeError):
    """The environment could not be made; the message says why and what to do."""


def ensure(report: Callable[[str], None] = print) -> Path:
    """Return the environment's Python, installing the environment first where it is missing.

    A finished environment costs a look at two small files. Raises `EnvironmentFailure`.
    """
    folder = cache_folder() / f"env-{content_key((REQUIREMENTS, SHIMS))}"
    build_once(folder, lambda empty: _build(empty, report), report)
    python = python_of(folder)
    if not python.exists():
        raise EnvironmentFailure(
            f"{python} is gone, most likely because the Python it was made from was removed: "
            f"delete {folder} and try again"
        )
    return python


def python_of(folder: Path) -> Path:
    """Return the interpreter of the virtual environment in `folder`."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def content_key(files: Iterable[Path]) -> str:
    """Return a short digest of the files' content, this Python's version and this platform."""
    digest = hashlib.sha256()
    for part in (
        platform.python_implementation(),
        platform.python_version(),
        sys.platform,
        platform.machine(),
    ):
        digest.update(part.encode() + b"\0")
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _build(folder: Path, report: Callable[[str], None]) -> None:
    began = time.monotonic()
    report(f"making the development environment in {folder} (once; a few minutes)")
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    python = str(python_of(folder))
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
    ]
    log = folder / "install.log"
    _run("1/2 installing requirements-dev.txt", [*pip, "-r", str(REQUIREMENTS)], log, report)
    _run("2/2 checking torchvision and torchaudio", [python, str(SHIMS)], log, report)
    report(f"environment ready after {time.monotonic() - began:.0f} s")


def _run(title: str, command: Sequence[str], log: Path, report: Callable[[str], None]) -> None:
    """Run `command`, with all its output in `log` and the telling lines through `report`."""
    report(title)
    tail: list[str] = []
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            tail = [*tail[-19:], line.rstrip()]
            if line.lstrip().startswith(_SHOWN):
                report("  " + line.partition(" (from ")[0].strip()[:100])
    if process.returncode:
        raise EnvironmentFailure(
            f"'{title}' failed with exit status {process.returncode}; run again once the cause is gone. "
            "The end of its output:\n" + "\n".join(tail)
        )
