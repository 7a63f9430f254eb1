"""Fixtures for tests in a plain process, against a ComfyUI server, and inside ComfyUI.

`chorus`, `tools`, `small_wan`, `bench_wan` and `benchmarks` import by their bare names through a finder, since
the checkout on `sys.path` would hide ComfyUI's `nodes`. When ComfyUI runs in this process it loads
a second copy of the pack's modules: tests of anything ComfyUI calls use `pack_module`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

_spec = importlib.util.spec_from_file_location("launch", CHECKOUT / "tools" / "launch.py")
assert _spec is not None and _spec.loader is not None
_launch = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_launch)
_launch.expose_packages()
# Their graphs and nodes serve other folders, too.
_launch.expose_packages({name: CHECKOUT / "tests" / name for name in ("sampling", "identity", "faults", "families")})

if TYPE_CHECKING:
    from tools.inprocess import ComfyHost
    from tools.postgres import Postgres
    from tools.s3 import S3Server
    from tools.server import ComfyServer


def pytest_addoption(parser: pytest.Parser) -> None:
    from tools.inprocess import NODE_CACHES

    parser.addoption(
        "--node-cache",
        choices=NODE_CACHES,
        default="default",
        help="how ComfyUI inside the test process keeps node outputs: as users have it by default, or another way",
    )
    parser.addoption(
        "--write-tables",
        action="store_true",
        help="write the tables of the docs that tests compare with what they find, instead of comparing",
    )


def pytest_configure() -> None:
    _launch.unwind_on_signals()


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The checkout's root folder."""
    return CHECKOUT


@pytest.fixture(scope="session")
def comfy_server() -> Iterator[ComfyServer]:
    """A ComfyUI server with this pack and encoders for tests, one for all; leave it idle and its cache to others."""
    from tools import base_directory
    from tools.server import ComfyServer

    encoders = {name: folder for name, folder in base_directory.TEST_PACKS.items() if folder.name == "families"}
    with ComfyServer(custom_nodes=base_directory.CUSTOM_NODES | encoders) as server:
        yield server


@pytest.fixture(scope="module")
def fresh_comfy_server() -> Iterator[ComfyServer]:
    """A ComfyUI server of this test module's own, to fill, restart or break."""
    from tools.server import ComfyServer

    with ComfyServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL with pgvector, one for all tests; leave it running."""
    from tools.postgres import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 protocol endpoint, one for all tests; leave it running."""
    from tools.s3 import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def comfy_host(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> ComfyHost:
    """ComfyUI in this process, on the CPU, with its own nodes, this pack and the test packs loaded as it loads them."""
    from tools import base_directory, inprocess

    return inprocess.boot(
        tmp_path_factory.mktemp("comfyui"),
        custom_nodes=base_directory.CUSTOM_NODES | base_directory.TEST_PACKS,
        node_cache=pytestconfig.getoption("--node-cache"),
    )


@pytest.fixture(scope="session")
def chorus_pack(comfy_host: ComfyHost) -> ModuleType:
    """This pack's top package as ComfyUI loaded it."""
    return comfy_host.pack


@pytest.fixture(scope="session")
def pack_module(comfy_host: ComfyHost) -> Callable[[str], ModuleType]:
    """`pack_module("chorus.reuse.plan")`: the very module that ComfyUI runs."""
    return comfy_host.module
