"""Two real ComfyUI servers share a cache: what the first has made, the second reuses."""

from __future__ import annotations

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools import demo_graph
from tools.demo_requests import SEED, SOURCE, TARGET
from tools.s3 import SECRET
from tools.server import ComfyServer

PASSWORD = "open-sesame-42"


@pytest.fixture(scope="module")
def environment(postgres, s3_server):
    """What an operator sets on every machine: a database of its own, with a role and a password."""
    postgres.execute(f"CREATE ROLE fleet LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE fleet OWNER fleet")
    postgres.execute("CREATE EXTENSION vector", database="fleet")
    yield {
        **s3_server.environment(),
        "CHORUS_CACHE_URL": postgres.url("fleet", "fleet", PASSWORD),
        "CHORUS_CACHE_BLOBS": f"s3://{s3_server.bucket}/fleet",
        "CHORUS_CACHE_TENANT": "studio",
    }
    postgres.execute("DROP DATABASE fleet WITH (FORCE)", "DROP ROLE fleet")


@pytest.fixture(scope="module")
def machines(environment):
    """Two servers, each with a base directory, and so local copies, of its own."""
    servers = [ComfyServer(environment=environment, arguments=["--cache-none"]) for _ in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ComfyServer.start, servers))
        yield servers
    finally:
        for server in servers:
            server.__exit__(None, None, None)


def render(server, caption, seed=SEED):
    graph = demo_graph.build(demo_graph.load_template(), caption.text, seed)
    outputs = server.client().queue(graph.nodes)["outputs"]
    return outputs[graph.store]["chorus"][0], outputs[graph.store]["text"][0]


def wait_for(postgres, *entries) -> None:
    """Stores and hits are committed behind the render. entries: (tenant, cache, hits), the oldest first."""
    for _ in range(300):
        found = postgres.execute("SELECT tenant, cache, hits FROM chorus.entries ORDER BY seq", database="fleet")
        if found == list(entries):
            return
        time.sleep(0.1)
    pytest.fail(f"in 30 s the catalog has not come to {entries}; it has {found}")


def test_a_video_made_by_the_first_is_a_hit_on_the_second(machines, environment, postgres):
    first, second = machines
    made, text = render(first, SOURCE)
    assert made["outcome"] == "miss" and "being stored as" in text, text

    wait_for(postgres, ("studio", "default", 0))
    hit, text = render(second, TARGET)
    assert (hit["outcome"], hit["source_prompt"]) == ("hit", SOURCE.text), hit["reason"]
    assert hit["step_equivalents"] < made["step_equivalents"]
    assert "being stored as" in text, text

    wait_for(postgres, ("studio", "default", 1), ("studio", "default", 0))
    same, _ = render(second, SOURCE)
    assert (same["outcome"], same["steps_computed"]) == ("identical", 0)
    back, _ = render(first, TARGET)
    assert (back["outcome"], back["steps_computed"]) == ("identical", 0)

    # An identical request is a hit, too.
    wait_for(postgres, ("studio", "default", 2), ("studio", "default", 1))

    for server in machines:
        assert not list((server.base / "user").rglob("catalog-*.sqlite"))
        assert len(list((server.base / "user" / "__chorus" / "default" / "shared").rglob("*.safetensors"))) == 2
        everything = server.log() + str(server.client().get("/history"))
        assert PASSWORD not in everything and SECRET not in everything


def ask(server, path, body=None, kind="application/json"):
    """What a route of the default cache answers."""
    request = urllib.request.Request(f"{server.url}/chorus/v1/caches/default{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def test_a_bundle_from_one_machine_brings_back_what_the_fleet_has_lost(machines, postgres):
    first, second = machines
    render(first, SOURCE)
    render(second, SOURCE)
    listed = json.loads(ask(first, "/entries"))["entries"]
    ids = [entry["id"] for entry in listed]
    bundle = ask(first, "/export", json.dumps({"query": {}}).encode())
    ask(second, "/forget", json.dumps({"ids": ids}).encode())
    assert json.loads(ask(first, "/entries"))["total"] == 0
    taken = json.loads(ask(second, "/import", bundle, "application/zip"))
    assert (taken["added"], taken["refused"]) == (len(ids), 0) and ids
    again = json.loads(ask(first, "/entries"))["entries"]
    assert sorted(entry["id"] for entry in again) == sorted(ids)
    made, _ = render(first, SOURCE)
    assert made["outcome"] == "identical"
