"""A process killed at any line of the cache's code, a few hundred times: nothing wrong is served, nothing lost.

test_processes.py kills at random moments, inside SQLite and the system's calls too.
"""

from __future__ import annotations

import json
import os

import pytest

from .test_processes import finish

STRIDES = {"put": 4, "evict": 4, "hit": 5, "forget": 5, "rebuild": 18}  # every so many lines


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("operation", STRIDES)
def test_killed_anywhere_nothing_wrong_is_served_and_nothing_promised_is_lost(start, root, operation):
    output = finish(start("killed_at_lines.py", operation, root, STRIDES[operation])).splitlines()
    found = json.loads(output[-1])
    assert found["trials"] >= 30
    assert found["finished"] < found["trials"] / 10
    assert (found["wrong"], found["lost"]) == (0, 0)
