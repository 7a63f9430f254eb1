"""The load table: real workers against a real database, and that it sees what it is there to see."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import load_worker
from benchmarks.tables import load
from chorus.cache.shared import Settings, SharedCache
from tools.postgres import Postgres


def test_workers_are_counted_and_what_is_lost_double_or_wrong_is_seen(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(load, "WORKERS", 2)
    with Postgres() as server:
        lines, found = load.run(server, tmp_path, entries=30, seconds=3.0)
        assert {"search", "load", "store"} <= {line[0] for line in lines}
        assert found["operations"] == len(lines) > 20
        assert (found["errors"], found["lost"], found["double"], found["wrong"], found["over_limit"]) == (0,) * 5
        assert found["dropped"] > 0 and found["workers_failed"] == 0 and found["limit_looks"] > 5
        assert found["kept"] + found["dropped"] - found["stored"] in (
            0,
            1,
        )  # the killed one may have been unable to note

        share = tmp_path / "share"
        settings = Settings(server.url(), share.as_uri(), load.TENANT, 0)
        cache = SharedCache(settings, "load", tier=tmp_path / "none", upkeep=False)
        # A store that was confirmed and left no trace; a row dropped twice; files with another content.
        server.execute(f"INSERT INTO audit SELECT '{'d' * 32}' FROM generate_series(1, 2)")
        monkeypatch.setattr(load_worker, "content", lambda number: torch.zeros(load_worker.SPACE.shape))
        seen = load._compare(cache, server, share, [["store", 0.1, "", "e" * 32, 1]])
        assert (seen["lost"], seen["double"]) == (1, 1)
        assert seen["wrong"] == seen["kept"] == found["kept"] > 0
        cache.close()
