"""Everything that is to be known about a GPU, in order of worth: `python benchmarks/gpu/run.py --out DIR`.

Needs Python 3.11 or newer with PyTorch, NumPy and what a machine for PyTorch usually has; the rest is taken from
`benchmarks/gpu/travel/` (see prepare.py), or from the development environment where this runs in it. Each task is a
process with a time budget of its own and writes DIR/NAME.json as soon as it knows something. A task that fails or hangs
costs its own results only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CHECKOUT = FOLDER.parents[1]
TRAVEL = FOLDER / "travel"
GRACE = 10.0  # seconds after its budget until a task is stopped
GRACE_SMALL = 120.0  # of a rehearsal, which may share its processor with much else
LEAST = 15.0  # seconds without which no task begins
DOUBTFUL = 3  # exit status of a task that works and found something wrong
TAIL = 4000  # characters of a failed task's output that are kept


@dataclass(frozen=True)
class Task:
    """module: what is run, with these arguments. seconds: its budget. after: the task without which it is not begun."""

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: float
    after: str = ""
    small: tuple[str, ...] = ()  # further arguments of a rehearsal


def _latency(model: str, seconds: float, steps: int = 4) -> Task:
    name = model if steps == 4 else f"{model}-{steps}"
    arguments = ("--model", model, "--steps", str(steps), "--seconds", "{seconds}")
    return Task(name, "benchmarks.gpu.latency", arguments, seconds, after="check", small=("--repeats", "0"))


TRAINING = ("--work", "{work}", "--seconds", "{seconds}")
FEW_SCENES = ("--batch", "2", "--captions", "400")
# In order of worth.
TASKS = (
    Task("check", "benchmarks.gpu.check", (), 60),
    _latency("wan-1.3b", 60),
    _latency("wan-14b", 150),
    Task("train", "benchmarks.gpu.training", TRAINING, 240, small=FEW_SCENES),
    Task("distil", "benchmarks.gpu.training", ("distil", *TRAINING), 80),
    Task("train-image", "benchmarks.gpu.training", ("--from-image", *TRAINING), 120, small=FEW_SCENES),
    _latency("wan-1.3b", 100, steps=50),
    _latency("hunyuan-1.5", 60),
)
NAMES = [task.name for task in TASKS]


class NotReady(RuntimeError):
    """Why nothing can be run here."""


def environment(work: Path) -> dict[str, str]:
    """The variables under which tasks find ComfyUI and the packages. Raises NotReady."""
    found = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    archive = TRAVEL / "travel.tar.xz"
    if not archive.exists():
        return found
    about = json.loads((TRAVEL / "travel.json").read_text(encoding="utf-8"))
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if about["python"] != here:
        raise NotReady(
            f"{archive} is for Python {about['python']}, this is {here}: run prepare.py with --python {here}, "
            f"or delete {TRAVEL} where ComfyUI and the packages are installed"
        )
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    paths = [str(work / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return found | {"COMFYUI_PATH": str(work / "ComfyUI"), "PYTHONPATH": os.pathsep.join(paths)}


class Log:
    """What is printed, in a file, too."""

    def __init__(self, file: Path):
        self._file = file.open("a", encoding="utf-8")
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        self.add(f"[{time.monotonic() - self._began:6.1f} s] {line}\n")

    def add(self, text: str) -> None:
        for stream in (sys.stdout, self._file):
            stream.write(text)
            stream.flush()


def run(task: Task, seconds: float, options: argparse.Namespace, work: Path, found: dict[str, str], log: Log) -> str:
    """Run a task; "" or why it did not come to its end."""
    file = options.out / f"{task.name}.json"
    filled = [part.format(seconds=round(seconds, 1), work=work / task.name) for part in task.arguments]
    command = [sys.executable, "-P", str(CHECKOUT / "tools" / "launch.py"), task.module, *filled]
    command += ["--output", str(file), *(("--small", *task.small) if options.small else ())]
    output, grace = work / f"{task.name}.log", GRACE_SMALL if options.small else GRACE
    with output.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=found, cwd=work)
        try:
            code = _wait(process, output, seconds + grace, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code == 0:
        return ""
    why = f"stopped after {seconds + grace:.0f} s" if code is None else f"exit status {code}"
    tail = output.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    _write(kept | {"failed": why, "output": tail}, file)
    return why


def _wait(process: subprocess.Popen, output: Path, seconds: float, log: Log) -> int | None:
    """The exit status, None where the time was over. Passes on what the process prints."""
    deadline, read = time.monotonic() + seconds, 0
    while True:
        code = process.poll()
        with output.open("rb") as stream:
            stream.seek(read)
            new = stream.read()
        read += len(new)
        if new:
            log.add(new.decode("utf-8", "replace"))
        if code is not None or time.monotonic() > deadline:
            return code
        time.sleep(0.1)


def _write(result: dict, file: Path) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)


def chosen(wanted: Sequence[str]) -> list[tuple[Task, float]]:
    """The tasks of the command line, NAME or NAME=SECONDS each, in order of worth; all by default."""
    given = dict(part.partition("=")[::2] for part in wanted or NAMES)
    if unknown := given.keys() - set(NAMES):
        raise NotReady(f"no task {', '.join(sorted(unknown))}: expected some of {', '.join(NAMES)}")
    return [(task, float(given[task.name] or task.seconds)) for task in TASKS if task.name in given]


def main(arguments: Sequence[str]) -> int:
    """Returns 1 where a task failed or was not begun for that, 2 where nothing could be run."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu/run.py", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK[=SECONDS]", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=840.0, help="of everything; default: 840")
    parser.add_argument("--small", action="store_true", help="a rehearsal: tiny models, on the CPU")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the task under way ends, too
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "run.log")
    failed: list[str] = []
    broken: set[str] = set()  # those without which others make no sense
    with tempfile.TemporaryDirectory(prefix="chorus_gpu_", ignore_cleanup_errors=True) as folder:
        try:
            tasks, found = chosen(options.tasks), environment(Path(folder))
        except NotReady as problem:
            log.say(str(problem))
            return 2
        for task, seconds in tasks:
            left = options.seconds - (time.monotonic() - began) - GRACE
            if task.after in broken:
                log.say(f"{task.name}: not begun, since {task.after} failed")
                continue
            if left < LEAST:
                log.say(f"{task.name}: not begun, {max(0.0, left):.0f} s are left")
                continue
            log.say(f"{task.name}: {min(seconds, left):.0f} s")
            why = run(task, min(seconds, left), options, Path(folder), found, log)
            log.say(f"{task.name}: {why or 'done'}")
            if why:
                failed.append(task.name)
            if why and not why.endswith(f" {DOUBTFUL}"):
                broken.add(task.name)
    log.say(f"failed: {', '.join(failed)}" if failed else "all done")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
