"""Run a real ComfyUI server with this pack, for tests, benchmarks and the demo."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from . import base_directory, comfyui
from .client import ComfyClient

_GRACE = 10.0
"""Seconds a server has to end by itself before it is killed."""


class ServerFailure(RuntimeError):
    """ComfyUI did not start, or a custom node did not import; the message holds the log's end."""


class ComfyServer:
    """A ComfyUI server on a free loopback port, alive inside a `with` block.

    Whatever ends the block (the end, an exception, Ctrl-C), the server and its children are gone
    afterwards, and so is the base directory unless the caller gave it.

    Args:
        base: base directory; give one to keep it, or to start again on what a server left there.
        custom_nodes, models: see `base_directory.prepare`.
        extra_model_paths: model kind (`loras`, …) to further folders to search.
        arguments: further command line arguments for `main.py`.
        environment: environment variables to add.
        api_nodes: also load ComfyUI's nodes for paid services.
        start_timeout: seconds to wait until the server answers.

    Attributes:
        base: the base directory.
        log_path: file with all the server's output.
        url: `http://127.0.0.1:PORT`, once started.

    Example:
        with ComfyServer() as server:
            server.client().queue(prompt)
    """

    def __init__(
        self,
        base: Path | None = None,
        *,
        custom_nodes: Mapping[str, Path] = base_directory.CUSTOM_NODES,
        models: Mapping[str, Path] = base_directory.MODELS,
        extra_model_paths: Mapping[str, Sequence[Path]] | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        api_nodes: bool = False,
        start_timeout: float = 240.0,
    ) -> None:
        self._temporary = base is None
        self.base = Path(tempfile.mkdtemp(prefix="chorus-comfyui-")) if base is None else base.absolute()
        self.log_path = self.base / "comfyui.log"
        self.url = ""
        self._custom_nodes = custom_nodes
        self._models = models
        self._extra_model_paths = extra_model_paths
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._api_nodes = api_nodes
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        try:
            self.start()
        except BaseException:
            self._remove_temporary()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._remove_temporary()

    @property
    def process_id(self) -> int:
        """The server's process id; also its process group on POSIX."""
        if self._process is None:
            raise ServerFailure("the server is not running: call start() first")
        return self._process.pid

    def start(self, port: int = 0) -> None:
        """Start the server and wait until it answers. port: 0 takes a free one. Raises `ServerFailure`."""
        if self._process is not None:
            raise ServerFailure(f"the server already runs at {self.url}: call stop() first")
        root = comfyui.find()
        base_directory.prepare(self.base, self._custom_nodes, self._models, root)
        port = port or _free_port()
        command = [sys.executable, str(root / "main.py"), "--base-directory", str(self.base)]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
        # The default database lies in ComfyUI's own folder, which several servers share.
        command += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        if not self._api_nodes:
            command.append("--disable-api-nodes")
        if not _has_gpu():
            command.append("--cpu")
        if self._extra_model_paths:
            config = self.base / "extra_model_paths.yaml"
            base_directory.write_extra_model_paths(config, self._extra_model_paths)
            command += ["--extra-model-paths-config", str(config)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONUNBUFFERED": "1"}
        group: dict[str, int | bool] = {"start_new_session": True}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command + self._arguments,
                cwd=root,
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **group,  # type: ignore[call-overload]
            )
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and every process it started. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                if sys.platform == "win32":
                    process.send_signal(signal.CTRL_BREAK_EVENT)
                else:
                    process.send_signal(signal.SIGINT)
                process.wait(_GRACE)
        finally:
            _kill_group(process)
            process.wait()

    def restart(self) -> None:
        """Stop, and start again in the same base directory, perhaps on another port."""
        self.stop()
        self.start()

    def client(self) -> ComfyClient:
        """Return an API client for this server."""
        return ComfyClient(self.url)

    def forget_outputs(self) -> None:
        """Let the host drop what its default node cache keeps, as a restart would: the next graph runs anew."""
        made = "Using RAM pressure cache."  # the host logs it for each new cache
        before = self.log().count(made)
        deadline = time.monotonic() + 60
        while self.log().count(made) == before:
            if time.monotonic() > deadline:
                raise ServerFailure(f"the host did not drop its node cache.\n{self._log_end()}")
            self.client().free(unload_models=False)  # more than once: the host may miss one just after a run
            time.sleep(0.05)

    def log(self) -> str:
        """Return everything the server has written so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout
        while not _answers(self.url):
            if (status := self._process.poll()) is not None:
                raise ServerFailure(f"ComfyUI ended with status {status} at its start.\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise ServerFailure(f"ComfyUI did not answer within {self._start_timeout:.0f} s.\n{self._log_end()}")
            time.sleep(0.1)
        for name in self._custom_nodes:
            folder = re.escape(str(self.base / "custom_nodes" / name))
            if re.search(rf"\(IMPORT FAILED\): {folder}$", self.log(), re.MULTILINE):
                raise ServerFailure(f"custom node '{name}' did not import.\n{self._log_end(200)}")

    def _log_end(self, lines: int = 40) -> str:
        return f"The end of {self.log_path}:\n" + "\n".join(self.log().splitlines()[-lines:])

    def _remove_temporary(self) -> None:
        if self._temporary:
            shutil.rmtree(self.base, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
