"""Let torchvision and torchaudio import beside a CPU build of torch.

For Linux, PyPI has both only as CUDA builds, whose compiled libraries cannot load beside a CPU
torch; torchvision then fails on operators nobody defined, torchaudio on its own libraries. Their
Python parts are all that ComfyUI and open_clip need on a CPU. Where the packages import as they
are, this changes nothing.

Run as a script by an environment's own Python, it repairs that environment. Inside the
environment it is a module that a `.pth` file loads at start.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

_libraries: list[object] = []


class _BeforeTorchvision:
    """An import hook that defines torchvision's operators when torchvision is first imported.

    Doing it at start would import torch in every Python process of the environment.
    """

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)  # its definitions go when it does


def install_hook() -> None:
    """Define torchvision's operators before its import, in this process."""
    sys.meta_path.insert(0, _BeforeTorchvision())


def repair() -> None:
    """Make `import torchvision, torchaudio` work in the environment of this interpreter.

    Raises:
        SystemExit: a package still does not import; the message holds its error.
    """
    packages = Path(sysconfig.get_path("purelib"))
    if _import_error("torchvision"):
        (packages / "torch_media_shims.py").write_bytes(Path(__file__).read_bytes())
        (packages / "torch_media_shims.pth").write_text(
            "import torch_media_shims; torch_media_shims.install_hook()\n", encoding="utf-8"
        )
    if _import_error("torchaudio"):
        for library in (packages / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    for name in ("torchvision", "torchaudio"):
        if error := _import_error(name):
            raise SystemExit(f"{name} does not import in {sys.prefix}:\n{error}")


def _import_error(name: str) -> str:
    result = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True)
    return result.stderr if result.returncode else ""


if __name__ == "__main__":
    repair()
