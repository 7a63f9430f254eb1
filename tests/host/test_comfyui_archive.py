"""ComfyUI is taken from where the user says, and an archive is trusted only by its digest."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tools import comfyui

COMPLETE = ("top/vendor/ComfyUI/main.py", "top/vendor/ComfyUI/nodes.py", "top/vendor/ComfyUI/comfy/a.py")


def archive_of(file: Path, *names: str, link: str | None = None) -> comfyui.SourceArchive:
    """Write a .tar.gz with small files of these names, and return its description."""
    with tarfile.open(file, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"#"))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type = tarfile.SYMTYPE
            member.linkname = "/etc/passwd"
            tar.addfile(member)
    return replace(comfyui.ARCHIVE, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def test_only_comfyui_is_unpacked(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", *COMPLETE, "top/setup.py", "top/vendor/other.py")
    comfyui.unpack(tmp_path / "a.tar.gz", archive, tmp_path / "out")
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.py"))
    assert files == ["comfy/a.py", "main.py", "nodes.py"]


def test_wrong_sha256_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive_of(tmp_path / "a.tar.gz", *COMPLETE)
    with pytest.raises(comfyui.ComfyUINotFound, match="sha256"):
        comfyui.unpack(tmp_path / "a.tar.gz", comfyui.ARCHIVE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", *COMPLETE, "top/vendor/ComfyUI/../../../evil.py")
    with pytest.raises(comfyui.ComfyUINotFound, match=r"evil\.py"):
        comfyui.unpack(tmp_path / "a.tar.gz", archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil.py"))


def test_link_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", *COMPLETE, link="top/vendor/ComfyUI/link")
    with pytest.raises(comfyui.ComfyUINotFound, match="link"):
        comfyui.unpack(tmp_path / "a.tar.gz", archive, tmp_path / "out")


def test_archive_without_comfyui_is_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", "top/setup.py")
    with pytest.raises(comfyui.ComfyUINotFound, match="holds no ComfyUI"):
        comfyui.unpack(tmp_path / "a.tar.gz", archive, tmp_path / "out")


def test_comfyui_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("main.py", "nodes.py"):
        (tmp_path / name).touch()
    (tmp_path / "comfy").mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert comfyui.find() == tmp_path


def test_wrong_comfyui_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(comfyui.ComfyUINotFound, match=r"COMFYUI_PATH=.*unset it"):
        comfyui.find()


def test_checkout_inside_custom_nodes_uses_that_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("main.py", "nodes.py"):
        (tmp_path / name).touch()
    (tmp_path / "comfy").mkdir()
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfyui, "CHECKOUT", tmp_path / "custom_nodes" / "chorus")
    assert comfyui.find() == tmp_path
