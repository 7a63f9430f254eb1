"""A request that was stored is known again by another process, under the host's own choice of node cache."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tools import base_directory
from tools.server import ComfyServer

from . import files
from .conftest import assert_same
from .graphs import CASES, GREEN, Graph, in_cache, node

KNOWN_AGAIN = (
    "sampler",
    "guidance",
    "kjnodes",
    "teacache",
    "quantised",
    "speech",
    "control",
    "rounded",
    "non-persistent buffer",
    "slots",
    "logger",
    "binds the network",
)


def _saving(case: str) -> Graph:
    g = in_cache(CASES[case].graph(), f"case-{case.replace(' ', '-')}")
    g["keep"] = node("SaveLatent", samples=["store", 0], filename_prefix="kept")
    return g


def _green(g: Graph) -> Graph:
    g = copy.deepcopy(g)
    g["positive"]["inputs"]["text"] = g["lookup"]["inputs"]["prompt"] = GREEN
    return g


def _latent(base: Path, item: dict) -> torch.Tensor:
    [saved] = item["outputs"]["keep"]["latents"]
    return safetensors.torch.load_file(base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


@pytest.fixture(scope="module")
def rounds(tmp_path_factory) -> dict[str, list[tuple[dict, torch.Tensor]]]:
    """case → (report, latent) of its request: stored, again in the same server after another prompt, and in a new one.

    The files are written again in between, with the same content, as by a second download.
    """
    base = tmp_path_factory.mktemp("restarted")
    packs = base_directory.CUSTOM_NODES | base_directory.TEST_PACKS
    found: dict[str, list[tuple[dict, torch.Tensor]]] = {case: [] for case in KNOWN_AGAIN}

    def ask(server: ComfyServer, case: str) -> None:
        item = server.client().queue(_saving(case))
        found[case].append((item["outputs"]["store"]["chorus"][0], _latent(base, item)))

    for first in (True, False):
        server = ComfyServer(base, custom_nodes=packs)
        base_directory.prepare(base, packs)
        files.write_all(base)
        with server:
            for case in KNOWN_AGAIN:
                ask(server, case)
                if first:
                    server.client().queue(_green(_saving(case)))
                    ask(server, case)
    return found


@pytest.mark.parametrize("case", KNOWN_AGAIN)
def test_a_request_is_identical_in_the_same_server(rounds, case):
    (first, latent), (again, same), _ = rounds[case]
    assert first["outcome"] == "miss"
    assert (again["outcome"], again["steps_computed"]) == ("identical", 0)
    assert_same(same, latent, "the stored result")


@pytest.mark.parametrize("case", KNOWN_AGAIN)
def test_a_request_is_identical_after_a_restart(rounds, case):
    (_, latent), _, (anew, same) = rounds[case]
    assert (anew["outcome"], anew["steps_computed"]) == ("identical", 0)
    assert_same(same, latent, "the stored result")
