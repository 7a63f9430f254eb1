"""Answers at once while a service cannot be reached, and notices when it can be reached again."""

from __future__ import annotations

import threading
import time

from ...messages import Message


class Breaker:
    """Closed while all is well. A fault opens it: for `pause` seconds nobody asks, then one caller may try.

    Safe for any number of threads.
    """

    def __init__(self, pause: float):
        self._pause = pause
        self._lock = threading.Lock()
        self._until = 0.0  # monotonic seconds; 0 while closed
        self._reason: Message | str = ""

    def allows(self) -> bool:
        """Whether the service may be asked now. Of all that come after a pause, only the first may."""
        with self._lock:
            if not self._until:
                return True
            now = time.monotonic()
            if now < self._until:
                return False
            self._until = now + self._pause  # the others go on waiting while this one tries
            return True

    def is_open(self) -> bool:
        """Whether the service was away lately."""
        return time.monotonic() < self._until

    @property
    def reason(self) -> Message | str:
        """Why it was opened last."""
        return self._reason

    def closed(self) -> None:
        """The service answered."""
        self._until = 0.0

    def opened(self, reason: Message | str) -> None:
        """The service did not answer."""
        with self._lock:
            self._reason = reason
            self._until = time.monotonic() + self._pause
