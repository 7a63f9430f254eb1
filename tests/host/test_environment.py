"""The development environment is found by content and survives interrupted and parallel builds."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tools import devcache, environment


def test_key_follows_content_not_path_or_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("torch==2.13.0\n")
    second.write_text("torch==2.13.0\n")
    assert environment.content_key([first]) == environment.content_key([second])
    second.write_text("torch==2.13.1\n")
    assert environment.content_key([first]) != environment.content_key([second])


def test_key_depends_on_the_python_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment.content_key([])
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert environment.content_key([]) != here


def test_interrupted_build_is_redone_from_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "env-x"

    def interrupted(target: Path) -> None:
        (target / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        devcache.build_once(folder, interrupted, print)
    seen: list[list[Path]] = []
    devcache.build_once(folder, lambda target: seen.append(list(target.iterdir())), print)
    assert seen == [[]]


def test_finished_build_is_not_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "env-x"
    devcache.build_once(folder, lambda target: None, print)
    devcache.build_once(folder, lambda target: pytest.fail("built twice"), print)


def test_concurrent_builds_build_once(tmp_path: Path) -> None:
    builds: list[Path] = []

    def build(target: Path) -> None:
        builds.append(target)
        time.sleep(0.2)

    threads = [threading.Thread(target=devcache.build_once, args=(tmp_path / "env-x", build, print)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_cache_folder_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_DEV_CACHE", str(tmp_path))
    assert devcache.cache_folder() == tmp_path


def test_clean_caches_deletes_only_what_the_tools_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_DEV_CACHE", str(tmp_path))
    for name in ("env-1", "comfyui-1", "holiday-photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "env-1.lock").touch()
    devcache.remove_all()
    assert [path.name for path in tmp_path.iterdir()] == ["holiday-photos"]


def test_failed_step_tells_the_command_output_and_the_status(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such wheel'); raise SystemExit(3)"]
    with pytest.raises(environment.EnvironmentFailure, match=r"status 3(.|\n)*no such wheel"):
        environment._run("step", command, tmp_path / "log", lambda line: None)


def test_media_packages_import_beside_this_torch() -> None:
    code = "import torchvision, torchaudio, open_clip, segment_anything"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
