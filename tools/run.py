"""The one entry for developers: `python tools/run.py COMMAND [ARGUMENT ...]`.

Works with any Python 3.11 or newer and nothing installed; what a command needs is installed once,
outside the checkout. `make COMMAND` is the same.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

if sys.version_info < (3, 11):  # noqa: UP036 - run before anything could have checked it
    sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: start tools/run.py with that")

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[0] = str(CHECKOUT)  # instead of tools/, so that `tools` is a package

from tools import comfyui, devcache, environment  # noqa: E402

# These wait for servers and browsers, which two files at a time would starve.
ALONE = ("tests/demo", "tests/face", "tests/host", "tests/shared", "tests/workflows")


def demo(arguments: Sequence[str]) -> int:
    """start ComfyUI with the pack and show it at work"""
    return _run_module("tools.demo", CHECKOUT / "tools" / "demo.py", arguments)


def test(arguments: Sequence[str]) -> int:
    """run the tests; arguments go to pytest"""
    _install_browser()
    # -P keeps the checkout off sys.path, where its `nodes` would hide ComfyUI's.
    pytest = [_python(), "-P", "-m", "pytest", "-q"]
    if arguments:
        return _run([*pytest, *arguments])
    # Such small tensors are not faster with more threads, and threads that wait for each other starve beside others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    two_files = [*pytest, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    return max(
        _run([*two_files, *(f"--ignore={folder}" for folder in ALONE)]),
        _run([*pytest, *ALONE]),
        # ComfyUI keeps node outputs as users have it by default; what depends on that most runs the classic way, too.
        _run([*two_files, "tests/sampling", "--node-cache", "classic"]),
    )


def _install_browser() -> None:
    """The templates are opened in Chromium, which no Python package brings; Debian's is installed where it may be."""
    if shutil.which("chromium") or not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        _run(["apt-get", *command])


def lint(arguments: Sequence[str]) -> int:
    """check style, format and types"""
    python = _python()
    checks = (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "chorus", "tools"],
    )
    failed = [check for check in checks if _run([python, "-m", *check])]
    for check in failed:
        print(f"failed: {' '.join(check)}", file=sys.stderr)
    return 1 if failed else 0


def bench(arguments: Sequence[str]) -> int:
    """measure quality, cost and speed with few samples, in minutes; arguments name tables"""
    return _run_module("benchmarks", CHECKOUT / "benchmarks" / "__main__.py", arguments)


def bench_full(arguments: Sequence[str]) -> int:
    """measure with all samples, for hours; goes on where it was stopped"""
    return bench(["--full", *arguments])


def screenshots(arguments: Sequence[str]) -> int:
    """take the pictures of docs/tour.md and the README's recording from the real page"""
    _install_browser()
    return _run_module("tools.screenshots", CHECKOUT / "tools" / "screenshots.py", arguments)


def python(arguments: Sequence[str]) -> int:
    """run the development environment's Python; arguments go to it"""
    return _run([_python(), *arguments])


def clean_caches(arguments: Sequence[str]) -> int:
    """delete the installed environments and the fetched ComfyUI"""
    for path in devcache.remove_all():
        print(f"deleted {path}")
    return 0


def usage(arguments: Sequence[str]) -> int:
    """show this list"""
    print("make COMMAND, or: python tools/run.py COMMAND [ARGUMENT ...]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<14}{command.__doc__}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "help": usage,
    "demo": demo,
    "test": test,
    "lint": lint,
    "bench": bench,
    "bench-full": bench_full,
    "screenshots": screenshots,
    "python": python,
    "clean-caches": clean_caches,
}


def main(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name and return its exit status."""
    name, *rest = arguments or ["help"]
    command = COMMANDS.get(name)
    if command is None:
        print(f"there is no command '{name}'; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return command(rest)
    except (environment.EnvironmentFailure, comfyui.ComfyUINotFound) as error:
        print(error, file=sys.stderr)
        return 1


def _python() -> str:
    return str(environment.ensure(_report))


def _report(line: str) -> None:
    print(line, flush=True)


def _run_module(module: str, file: Path, arguments: Sequence[str]) -> int:
    if not file.is_file():
        print(f"{file} does not exist, so there is nothing to run in this checkout", file=sys.stderr)
        return 1
    return _run([_python(), "-P", str(CHECKOUT / "tools" / "launch.py"), module, *arguments])


def _run(command: Sequence[str]) -> int:
    """Run a command to its end, whatever signals arrive: it has servers to stop first."""
    with subprocess.Popen(command, cwd=CHECKOUT) as process:

        def forward(signum: int, frame: FrameType | None) -> None:
            process.terminate()

        previous = signal.signal(signal.SIGTERM, forward)
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:  # the terminal sent it to the command as well
                    continue
        finally:
            signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
