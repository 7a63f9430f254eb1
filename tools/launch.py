"""Start code of this checkout without putting the checkout on `sys.path`.

ComfyUI has top-level modules `nodes` and `server`; this checkout has a folder `nodes`, and
`tools` a `server.py`. On `sys.path` either would hide ComfyUI's in a process that runs both.

As a script it runs a module: `python -P tools/launch.py MODULE [ARGUMENT ...]`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

PACKAGES = {
    "chorus": CHECKOUT / "chorus",
    "tools": CHECKOUT / "tools",
    "benchmarks": CHECKOUT / "benchmarks",
    "small_wan": CHECKOUT / "tests" / "small_wan",
    "bench_wan": CHECKOUT / "tests" / "bench_wan",
}
"""The checkout's packages that may be imported by their bare name."""


class _PackageFinder:
    """Finds exactly the top-level packages it was given, each in its folder."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        folder = self.folders.get(name)
        if folder is None or not folder.is_dir():
            return None
        if not (folder / "__init__.py").is_file():  # a package made of its folder alone
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            return spec
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def expose_packages(folders: Mapping[str, Path] = PACKAGES) -> None:
    """Let `import NAME` find the package in `folders[NAME]`, before anything on `sys.path`."""
    sys.meta_path.insert(0, _PackageFinder(folders))  # type: ignore[arg-type]


def unwind_on_signals() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt here, so that `with` blocks stop their servers.

    SIGINT too: a shell starts background jobs, and so the servers they start, with it ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    expose_packages()
    unwind_on_signals()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
