"""Runs of graphs with and without Chorus, and what was said about them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sampling.conftest import Result, cache, run  # noqa: F401 - fixtures
from sampling.graphs import Graph, plain

from . import odd_nodes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-lines", action="store_true", help="plant a fault at every line, not at a sample of them (many minutes)"
    )


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """One thread: such small tensors are computed faster without more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _odd_nodes(comfy_host) -> None:
    """The nodes of this folder, beside the host's own."""
    import nodes

    nodes.NODE_CLASS_MAPPINGS.update(odd_nodes.NODE_CLASS_MAPPINGS)


class Said(logging.Handler):
    """What was logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def take(self) -> str:
        lines, self.lines = self.lines, []
        return "\n".join(lines)


@pytest.fixture
def said() -> Iterator[Said]:
    handler = Said()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def told(result: Result) -> str:
    """Everything that the nodes of a graph show: their texts, the reason and the notes of the report."""
    texts = [str(text) for shown in result.outputs.values() for text in shown.get("text", ())]
    report: dict[str, Any] = result.report or {}
    return "\n".join([*texts, str(report.get("reason", "")), *map(str, report.get("notes", []))])


@pytest.fixture
def as_without_chorus(run):  # noqa: F811
    """`as_without_chorus(graph)`: runs it, and asks for the bits that the same graph gives without the Chorus nodes."""

    def check(g: Graph) -> Result:
        expected = run(plain(g)).latent
        result = run(g)
        assert torch.equal(result.latent, expected)
        return result

    return check
