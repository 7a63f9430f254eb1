"""The host and the files of tests/identity, with odd nodes of kinds that packs have."""

from __future__ import annotations

import importlib

import pytest
from faults import odd_nodes
from identity.conftest import cache, run, written  # noqa: F401

from . import nodes_here


@pytest.fixture(autouse=True, scope="session")
def _more_nodes(comfy_host):
    host_nodes = importlib.import_module("nodes")
    host_nodes.NODE_CLASS_MAPPINGS.update(odd_nodes.NODE_CLASS_MAPPINGS)
    nodes_here.register(host_nodes)
