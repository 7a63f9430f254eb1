"""A TCP proxy between a client and a server that can delay, cut, stall or refuse."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType


class Proxy:
    """Forwards a free loopback `port` to another, as `mode` says.

    "pass"; "slow": every piece comes `delay` seconds later; "stall": connections are taken and nothing ever comes;
    "cut": connections are taken and closed; "refuse": nobody listens.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.mode = "pass"
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.port = 0
        self._listen()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set("refuse")

    def set(self, mode: str, delay: float = 0.0) -> None:
        """Change the mode; "cut" and "refuse" also end what is open."""
        self.mode, self.delay = mode, delay
        if mode in ("cut", "refuse"):
            for one in list(self._open):
                _close(one)
            self._open.clear()
        if mode == "refuse" and self._listener is not None:
            _close(self._listener)
            self._listener = None
        if mode != "refuse" and self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self.mode == "cut":
                _close(client)
                continue
            self._open.add(client)
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                _close(client)
                continue
            self._open.add(server)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                while self.mode == "stall":
                    time.sleep(0.02)
                time.sleep(self.delay)
                sink.sendall(piece)
        _close(source)
        _close(sink)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
