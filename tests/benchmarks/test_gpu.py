"""The GPU's tasks, rehearsed on the CPU at a small size: as they travel, in an environment that holds no more than a
machine for PyTorch does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import prepare, run

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="what travels is for Linux on x86-64"
    ),
    pytest.mark.timeout(500),  # the first time packages are fetched
]

# What the machine brings; what these require comes with them.
MACHINE = ("torch", "torchvision", "torchaudio", "numpy", "einops", "transformers", "tokenizers", "safetensors")
MACHINE += ("sentencepiece", "psutil", "tqdm", "aiohttp", "scipy", "pillow", "pyyaml", "requests", "yarl", "sympy")
TRAVELS = ("blake3", "comfy_aimdo", "comfy_kitchen", "torchsde", "zstandard", "trampoline")
ABSENT = ("av", "sqlalchemy", "faiss", "open_clip", "comfyui_frontend_package")
# Those of the looks are the method's own matter.
COURSES = {
    "without Chorus": "FFFF",
    "cold": "FFFF",
    "early start": "-FFF",
    "early start, 25%": "-FSF",
}
LOOKS = {"look and join, 10%", "look and join, 25%", "look and join, 25%, amplified", "look and join, 50%"}
# Of the 14 × 14 tokens a frame, 5 × 5, 7 × 7 and 10 × 10 are visible.
VISIBLE = {"10%": 25 / 196, "25%": 49 / 196, "50%": 100 / 196}


def distributions(names: tuple[str, ...]) -> set[str]:
    """These and all that they require, as far as it is installed."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            waiting += [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in required if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A Python with the packages of the machine, and no others."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", str(folder)], check=True)  # type: ignore[attr-defined]
    site = next(folder.glob("lib/python*/site-packages"))
    for name in distributions(MACHINE):
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))
    for file in Path(torch.__file__).parents[1].glob("torch_media_shims.*"):  # what tools/ adds to a CPU build of torch
        (site / file.name).symlink_to(file)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def travelled(tmp_path_factory, checkout) -> Path:
    """A copy of the checkout as it travels: tracked files, and what prepare.py packs for this Python."""
    folder = tmp_path_factory.mktemp("travelled")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (checkout / name).is_file() and not name.startswith("docs/images"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, folder / name)
    travel = folder / "benchmarks" / "gpu" / "travel"
    prepare.prepare(f"{sys.version_info.major}.{sys.version_info.minor}", travel)
    packed = sum(file.stat().st_size for file in travel.iterdir())
    assert packed + prepare.checkout_bytes() < prepare.LARGEST
    return folder


def started(bare: Path, travelled: Path, out: Path, *tasks: str) -> subprocess.Popen:
    """The one command, as it is given on the machine."""
    # CXX: nothing can be compiled here, so that the training has to go on without.
    plain = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    command = [str(bare), "benchmarks/gpu/run.py", "--small", "--out", str(out), *tasks]
    return subprocess.Popen(command, cwd=travelled, env=plain | {"CXX": "/nowhere"}, process_group=0)


def read(file: Path) -> dict:
    found: dict = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def results(bare, travelled, tmp_path_factory) -> Path:
    """What all tasks leave behind, where the 14B model is planted with a configuration that no network has."""
    source = travelled / "benchmarks" / "gpu" / "models.py"
    sound = source.read_text(encoding="utf-8")
    faulty = sound.replace(
        '("wan-14b", "small"): Size(_wan(256, 512, 4, 2', '("wan-14b", "small"): Size(_wan(255, 512, 4, 2'
    )
    assert faulty != sound
    source.write_text(faulty, encoding="utf-8")
    out = tmp_path_factory.mktemp("out")
    tasks = [f"{name}=20" if name.startswith("train") else name for name in run.NAMES]
    process = started(bare, travelled, out, *tasks)
    try:
        assert process.wait(400) == 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        source.write_text(sound, encoding="utf-8")
    return out


def test_the_environment_is_bare(bare):
    program = "import importlib.util as u; print([n for n in {!r} if u.find_spec(n)])"
    there = subprocess.run(
        [bare, "-c", program.format((*TRAVELS, *ABSENT))], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == "[]"
    subprocess.run([bare, "-c", "import torch, torchvision, transformers, scipy, einops"], check=True)


def test_each_step_is_what_the_course_says(results):
    check, rows = read(results / "check.json"), read(results / "wan-1.3b.json")["rows"]
    assert check["wrong"] == []
    assert {row["case"] for row in rows} == COURSES.keys() | LOOKS
    assert {row["status"] for row in rows} == {"measured"}
    for row in rows:
        assert row["steps"] == COURSES.get(row["case"], row["steps"]) and len(row["steps"]) == 4
        share = next((share for label, share in VISIBLE.items() if label in row["case"]), 0.0)
        expected = row["steps"].count("F") + share * row["steps"].count("S")
        assert row["step_equivalents"] == pytest.approx(expected, abs=1e-4)
        assert row["n"] == 1 and row["mean"] > 0 and row["wall_over_limit"] > 0
        if row["case"] in LOOKS:
            assert row["steps"][0] == "F" and row["step_equivalents"] <= 3
            assert "S" in row["steps"]


def test_fifty_steps_and_a_model_of_another_family(results):
    rows = {row["case"]: row for row in read(results / "wan-1.3b-50.json")["rows"]}
    course = rows["look and join, 25%"]["steps"]
    assert len(course) == 50 and course[0] == "F" and course.count("S") >= 10
    expected = course.count("F") + VISIBLE["25%"] * course.count("S")
    assert rows["look and join, 25%"]["step_equivalents"] == pytest.approx(expected, abs=1e-4)
    assert rows["early start"]["step_equivalents"] == 37
    assert rows["without Chorus"]["status"] == "extrapolated" and rows["without Chorus"]["step_equivalents"] == 50
    hunyuan = {row["case"]: row for row in read(results / "hunyuan-1.5.json")["rows"]}
    course = hunyuan["look and join, 25%"]["steps"]
    assert len(course) == 4 and course[0] == "F" and "S" in course
    expected = course.count("F") + VISIBLE["25%"] * course.count("S")
    assert hunyuan["look and join, 25%"]["step_equivalents"] == pytest.approx(expected, abs=1e-4)
    assert {row["status"] for row in (*rows.values(), *hunyuan.values())} == {"measured", "extrapolated"}


def test_a_failed_task_stops_no_other_and_says_why(results):
    failed = read(results / "wan-14b.json")
    assert failed["failed"] == "exit status 1" and "dim % num_heads" in failed["output"]
    others = [name for name in run.NAMES if name != "wan-14b"]
    assert {name: read(results / f"{name}.json").get("failed") for name in others} == dict.fromkeys(others)
    assert "failed: wan-14b\n" in (results / "run.log").read_text(encoding="utf-8")


def test_the_training_leaves_weights_that_a_network_takes_even_where_nothing_compiles(results):
    from safetensors.torch import load_file

    from bench_wan.twin import Twin

    assert "not compiled: " in (results / "run.log").read_text(encoding="utf-8")
    curve = read(results / "train.json")["curve"]
    assert curve and curve[-1]["samples"] >= 2
    file = results / "bench_wan_t2v.safetensors"
    assert file.stat().st_size < 16 * 2**20
    weights = load_file(file)
    Twin().load_state_dict({name: value.float() for name, value in weights.items()})
    before = load_file(Path(__file__).parents[1] / "small_wan" / "weights" / "small_wan_t2v.safetensors")
    moved = [name for name, value in weights.items() if not value.equal(before[name])]
    assert len(moved) > 100
    for name in ("bench_wan_4step_lora", "bench_wan_i2v"):
        assert (results / f"{name}.safetensors").stat().st_size < 16 * 2**20
    given_a_frame = load_file(results / "bench_wan_i2v.safetensors")
    Twin(in_dim=36).load_state_dict({name: value.float() for name, value in given_a_frame.items()})
    assert read(results / "train-image.json")["from"] == "bench_wan_t2v.safetensors"


def test_as_many_files_come_back_as_may(results):
    assert len(list(results.iterdir())) <= 13  # two calls of at most 8 each, see README.md


def test_what_is_known_outlives_a_killed_run(bare, travelled, tmp_path):
    process = started(bare, travelled, tmp_path, "wan-1.3b")
    try:
        deadline, file = time.monotonic() + 100, tmp_path / "wan-1.3b.json"
        while process.poll() is None and time.monotonic() < deadline:
            if file.exists() and any(row["n"] for row in read(file)["rows"]):
                break
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    measured = [row for row in read(file)["rows"] if row["n"]]
    assert 0 < len(measured) < len(COURSES) + len(LOOKS)
    assert measured[0]["case"] == "without Chorus" and measured[0]["step_equivalents"] == 4


def test_a_machine_without_cuda_is_told_so(bare, travelled, tmp_path):
    command = [bare, "benchmarks/gpu/run.py", "--out", str(tmp_path), "check", "wan-1.3b"]
    hidden = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=travelled, env=hidden, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no CUDA device" in done.stdout and "wan-1.3b: not begun, since check failed" in done.stdout
    assert not (tmp_path / "wan-1.3b.json").exists()


def test_a_check_that_only_doubts_stops_nothing(travelled, tmp_path, monkeypatch):
    """Figures with a fault are worth more than none. Only a check that cannot run keeps others from beginning."""
    ends = {"check": f"exit status {run.DOUBTFUL}", "wan-1.3b": "", "train": "exit status 1"}
    begun = []

    def done(task: run.Task, *rest: object) -> str:
        begun.append(task.name)
        return ends.get(task.name, "")

    monkeypatch.setattr(run, "run", done)
    monkeypatch.setattr(run, "TRAVEL", tmp_path)
    assert run.main(["--out", str(tmp_path / "out"), "check", "wan-1.3b", "train", "distil", "hunyuan-1.5"]) == 1
    assert begun == ["check", "wan-1.3b", "train", "distil", "hunyuan-1.5"]
    assert "failed: check, train\n" in (tmp_path / "out" / "run.log").read_text(encoding="utf-8")


def test_what_was_packed_for_another_python_is_declined(travelled, tmp_path, monkeypatch):
    about = tmp_path / "travel.json"
    about.write_text('{"python": "3.99"}', encoding="utf-8")
    (tmp_path / "travel.tar.xz").touch()
    monkeypatch.setattr(run, "TRAVEL", tmp_path)
    assert run.main(["--out", str(tmp_path / "out"), "--small"]) == 2
    assert "is for Python 3.99" in (tmp_path / "out" / "run.log").read_text(encoding="utf-8")


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(run.NotReady, match="no task wan-2b"):
        run.chosen(["check", "wan-2b=30"])
    assert [(task.name, seconds) for task, seconds in run.chosen(["train=30", "check"])] == [
        ("check", 60),
        ("train", 30),
    ]
