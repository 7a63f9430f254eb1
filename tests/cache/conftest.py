"""A cache in a temporary folder, and other processes that use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chorus.cache import LocalCache


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def open_cache(root: Path) -> Iterator[Callable[..., LocalCache]]:
    """`open_cache(max_bytes=…)`: a cache in `root`, closed at the end; may be called again."""
    opened = []

    def open_one(**options) -> LocalCache:
        opened.append(LocalCache(root, **options))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache: Callable[..., LocalCache]) -> LocalCache:
    return open_cache()


@pytest.fixture
def start(checkout: Path) -> Callable[..., subprocess.Popen]:
    """`start("writer.py", …)`: one of this folder's programs as a process of its own."""

    def start_one(program: str, *arguments: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(program)), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start_one
