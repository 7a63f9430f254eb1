"""A real S3 protocol endpoint for tests and benchmarks: moto's server, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import TracebackType

from .postgres import _free_port

_START = 60.0  # seconds
SECRET = "s3-secret-0123456789"


class S3Server:
    """An endpoint with one bucket, alive inside a `with` block.

    environment: what a client needs. requests go to 127.0.0.1, `port`.
    """

    bucket = "chorus"

    def __init__(self) -> None:
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + _START
        while True:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{self.bucket}", method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
                return self
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise
                time.sleep(0.1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def environment(self, port: int = 0) -> dict[str, str]:
        """Environment variables of a client. port: another than the server's own, as of a proxy."""
        return {
            "AWS_ACCESS_KEY_ID": "s3-key-id-0123456789",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ALLOW_HTTP": "true",
        }
