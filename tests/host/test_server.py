"""The test server: starts with given packs, runs graphs, tells what went wrong, leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools.client import ExecutionFailed, ExecutionInterrupted, Progress, PromptRejected
from tools.server import ComfyServer, ServerFailure

SMALL_PACK = '''
import subprocess, sys, time
import comfy.utils
from comfy_api.latest import ComfyExtension, io

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

class Steps(io.ComfyNode):
    """Counts, one step each 20 ms; -1 fails."""
    @classmethod
    def define_schema(cls):
        return io.Schema("TestSteps", inputs=[io.Int.Input("steps", min=-1)], is_output_node=True)

    @classmethod
    def execute(cls, steps):
        if steps < 0:
            raise ValueError("cannot count down")
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            time.sleep(0.02)
            bar.update(1)
        return io.NodeOutput(ui={"text": [str(steps)]})

class Pack(ComfyExtension):
    async def get_node_list(self):
        return [Steps]

async def comfy_entrypoint():
    return Pack()
'''


def steps(count: Any) -> dict[str, Any]:
    return {"1": {"class_type": "TestSteps", "inputs": {"steps": count}}}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    (folder / "__init__.py").write_text(SMALL_PACK, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(pack: Path) -> Iterator[ComfyServer]:
    with ComfyServer(custom_nodes={"small": pack}) as server:
        yield server


def test_object_info_has_the_packs_nodes(server: ComfyServer) -> None:
    info = server.client().object_info()
    assert "TestSteps" in info and "KSampler" in info


def test_queue_reports_progress_and_returns_the_history(server: ComfyServer) -> None:
    seen: list[Progress] = []
    item = server.client().queue(steps(3), seen.append)
    assert item["outputs"]["1"]["text"] == ["3"]
    values = [progress.value for progress in seen]  # ComfyUI sends ten a second at most
    assert values == sorted(values) and values[-1] == 3
    assert {(progress.node_id, progress.maximum) for progress in seen} == {("1", 3)}


def test_rejected_graph_names_node_and_input(server: ComfyServer) -> None:
    with pytest.raises(PromptRejected, match=r"node 1 \(TestSteps\).*steps") as error:
        server.client().queue(steps("many"))
    assert "1" in error.value.node_errors


def test_failing_node_is_named_with_its_error(server: ComfyServer) -> None:
    with pytest.raises(ExecutionFailed, match=r"node 1 \(TestSteps\) raised ValueError: cannot count down"):
        server.client().queue(steps(-1))


def test_interrupt_ends_the_run(server: ComfyServer) -> None:
    client = server.client()

    def stop(progress: Progress) -> None:
        threading.Thread(target=client.interrupt).start()

    with pytest.raises(ExecutionInterrupted):
        client.queue(steps(500), stop)


def test_free_is_accepted_and_the_server_goes_on(server: ComfyServer) -> None:
    server.client().free()
    assert server.client().queue(steps(1))["status"]["completed"]


def test_server_that_cannot_start_shows_the_end_of_its_log() -> None:
    refused = pytest.raises(ServerFailure, match=r"status 2(.|\n)*--no-such-option")
    with refused, ComfyServer(arguments=["--no-such-option"]):
        pass


@contextlib.contextmanager
def hold_server(checkout: Path, script_folder: Path, pack: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds a server: it prints the base folder, then `up` once it answers."""
    (script_folder / "hold.py").write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tools.server import ComfyServer\n"
        "server = ComfyServer(custom_nodes={'small': Path(sys.argv[1])})\n"
        "print(server.base, flush=True)\n"
        "with server:\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-P", str(checkout / "tools" / "launch.py"), "hold", str(pack)]
    environment = os.environ | {"PYTHONPATH": str(script_folder)}
    # Its own session: a Ctrl-C at the terminal reaches it through this test alone.
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        try:
            yield holder
        finally:
            holder.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                holder.wait(30)
            holder.kill()


def assert_nothing_left(base: Path, processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
    assert not base.exists()


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot signal one process alone")


@posix
def test_ctrl_c_leaves_no_process_and_no_folder(checkout: Path, tmp_path: Path, pack: Path) -> None:
    with hold_server(checkout, tmp_path, pack) as holder:
        assert holder.stdout is not None
        base = Path(holder.stdout.readline().strip())
        assert holder.stdout.readline() == "up\n"
        started = psutil.Process(holder.pid).children(recursive=True)
        assert len(started) == 2  # the server, and the process its pack started
        holder.send_signal(signal.SIGINT)
        holder.wait(60)
    assert_nothing_left(base, started)


@posix
def test_termination_during_the_start_leaves_nothing(checkout: Path, tmp_path: Path, pack: Path) -> None:
    with hold_server(checkout, tmp_path, pack) as holder:
        assert holder.stdout is not None
        base = Path(holder.stdout.readline().strip())
        while not (started := psutil.Process(holder.pid).children(recursive=True)):
            time.sleep(0.05)
        holder.send_signal(signal.SIGTERM)
        holder.wait(60)
    assert_nothing_left(base, started)


def test_restart_keeps_the_base_directory_and_tells_which_pack_broke(server: ComfyServer, pack: Path) -> None:
    (server.base / "output" / "kept.txt").write_text("x", encoding="utf-8")
    first = psutil.Process(server.process_id)
    (pack / "__init__.py").write_text("import no_such_module_at_all", encoding="utf-8")
    with pytest.raises(ServerFailure, match=r"'small' did not import(.|\n)*no_such_module_at_all"):
        server.restart()
    assert not first.is_running()
    assert (server.base / "output" / "kept.txt").exists()
