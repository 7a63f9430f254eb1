"""Shared caches on a real PostgreSQL, each test in a tenant of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from chorus.cache.shared import Settings, SharedCache, breaker, database, objects


@pytest.fixture
def tenant() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """The shared folder."""
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def open_cache(postgres, share: Path, tenant: str, tmp_path: Path) -> Iterator[Callable[..., SharedCache]]:
    """`open_cache(url=…, blobs=…, tenant=…, tier=…, max_bytes=…)`: a cache, as one more machine would open it."""
    opened: list[SharedCache] = []

    def open_one(name="default", *, url="", blobs="", tier=None, tier_bytes=10**9, **options) -> SharedCache:
        settings = Settings(url or postgres.url(), blobs or share.as_uri(), options.pop("tenant", tenant), tier_bytes)
        tier = tier or tmp_path / f"machine-{len(opened)}"
        opened.append(SharedCache(settings, name, tier=tier, **{"upkeep": False, **options}))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache) -> SharedCache:
    return open_cache()


@pytest.fixture
def db(postgres) -> Iterator[psycopg.Connection]:
    """A superuser's connection, past all policies."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def short_pause(monkeypatch) -> None:
    """A service that could not be reached is asked again after half a second."""
    for module in (database, objects):
        monkeypatch.setattr(module, "PAUSE", 0.5)
    assert breaker  # the pauses are read when breakers are made


@pytest.fixture
def s3_environment(s3_server, monkeypatch) -> Callable[..., None]:
    """`s3_environment(port)`: point the object store's own variables at the endpoint, or at a proxy before it."""

    def point(port: int = 0) -> None:
        for name, value in s3_server.environment(port).items():
            monkeypatch.setenv(name, value)

    point()
    return point


@pytest.fixture
def start(checkout: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`start("writer.py", …)`: one of this folder's programs as a process of its own."""
    started: list[subprocess.Popen] = []

    def start_one(program: str, *arguments: object, **environment: str) -> subprocess.Popen:
        path = os.pathsep.join([str(checkout), str(checkout / "tests" / "cache")])
        started.append(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(program)), *map(str, arguments)],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def stored_files(share: Path) -> dict[str, int]:
    """{entry id: size} of the files in a shared folder, unfinished ones under their own names."""
    found = {}
    for path in share.glob("*/??/*"):
        try:
            found[path.name.removesuffix(".safetensors")] = path.stat().st_size
        except FileNotFoundError:
            continue
    return found
