"""Many workers at once: no entry lost or evicted twice, the limit kept at every moment, and killed ones tidied up."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from ..cache.sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector
from .conftest import stored_files

AUDIT = """
CREATE TABLE IF NOT EXISTS public.audit (tenant text, id text);
CREATE OR REPLACE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN INSERT INTO public.audit VALUES (old.tenant, old.id); RETURN old; END $$;
CREATE OR REPLACE TRIGGER audit AFTER DELETE ON chorus.entries FOR EACH ROW EXECUTE FUNCTION public.note();
"""


@pytest.fixture
def dropped(cache, db, tenant):
    """`dropped()`: how often the row of each id was deleted."""
    cache.version()
    db.execute(AUDIT)
    yield lambda: Counter(row[0] for row in db.execute("SELECT id FROM audit WHERE tenant = %s", (tenant,)))
    db.execute("DROP TRIGGER audit ON chorus.entries; DROP TABLE audit; DROP FUNCTION note")


@pytest.fixture
def start_worker(start, postgres, share, tenant, tmp_path):
    def start_one(first, count, kilobytes):
        return start(
            "worker.py", postgres.url(), share.as_uri(), tenant, tmp_path / f"tier-{first}", first, count, kilobytes
        )

    return start_one


def let_go(workers):
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()


def said_by(worker):
    output, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, output
    return [line.split() for line in output.splitlines()]


def used(db, tenant):
    """(what the catalog says is taken, what its rows and reservations add up to), of one moment."""
    return db.execute(
        "SELECT bytes, (SELECT coalesce(sum(bytes), 0) FROM chorus.entries WHERE tenant = %(t)s),"
        " (SELECT coalesce(sum(bytes), 0) FROM chorus.reservations WHERE tenant = %(t)s)"
        " FROM chorus.caches WHERE tenant = %(t)s",
        {"t": tenant},
    ).fetchone()


def test_many_writers_and_evictors_keep_the_limit_and_lose_nothing(
    open_cache, start_worker, share, db, tenant, dropped
):
    kilobytes, limit = 30, 700_000
    cache = open_cache(max_bytes=limit)
    cache.version()
    workers = [start_worker(1000 * n, 24, kilobytes) for n in range(3)]
    let_go(workers)
    samples = largest = 0
    while any(worker.poll() is None for worker in workers):
        counted, rows, reserved = used(db, tenant)
        assert counted == rows
        assert rows + reserved <= limit
        files = sum(stored_files(share).values())
        assert files <= limit
        largest = max(largest, files)
        samples += 1
        time.sleep(0.02)
    said = [line for worker in workers for line in said_by(worker)]
    assert samples > 20 and largest > limit / 2

    put = {entry_id: int(number) for kind, entry_id, number in said if kind == "put"}
    forgotten = {entry_id for kind, entry_id, _ in said if kind == "forgot"}
    gone, kept = dropped(), {entry.id: entry for entry in cache.entries(limit=1000)}
    assert len(put) == 72 and forgotten
    assert set(gone.values()) == {1}  # evicted or forgotten, once
    assert put.keys() == gone.keys() | kept.keys()  # none is lost
    assert not gone.keys() & kept.keys() and forgotten <= gone.keys()
    assert len(gone) > 40
    for entry_id, entry in kept.items():
        assert entry.settings["number"] == put[entry_id]
        assert_is_entry(put[entry_id], open_cache().load(entry_id), kilobytes=kilobytes)
    assert set(stored_files(share)) == kept.keys()
    served = sum(int(line[1]) for line in said if line[0] == "done")
    assert served == cache.stats().hits > 50


def test_killed_workers_lose_no_entry_and_what_they_left_is_swept(
    open_cache, start_worker, share, db, tenant, dropped, monkeypatch
):
    limit, put = 2_000_000, {}
    cache = open_cache(max_bytes=limit)
    cache.version()
    for n in range(3):
        worker = start_worker(1000 * n, 1000, 100)
        let_go([worker])
        for _ in range(3 + 4 * n):  # die at various moments after the last line
            _, entry_id, number = worker.stdout.readline().split()
            put[entry_id] = int(number)
        time.sleep(0.01 * n)
        worker.kill()
        for line in worker.stdout.read().splitlines():
            if line.startswith("put ") and len(line.split()) == 3:
                put[line.split()[1]] = int(line.split()[2])
    kept, gone = {entry.id: entry for entry in cache.entries(limit=1000)}, dropped()
    assert put.keys() <= kept.keys() | gone.keys()
    assert set(gone.values()) <= {1}
    for entry_id, entry in kept.items():
        assert_is_entry(entry.settings["number"], cache.load(entry_id), kilobytes=100)
    assert sum(stored_files(share).values()) <= limit

    monkeypatch.setattr("chorus.cache.shared.cache.RESERVED_FOR", 0.0)  # as if their minutes had passed
    cache.sweep()
    for table in ("reservations", "garbage"):
        assert db.execute(f"SELECT count(*) FROM chorus.{table} WHERE tenant = %s", (tenant,)).fetchone() == (0,)
    assert {name for name in stored_files(share) if "#" not in name} == kept.keys()
    counted, rows, _ = used(db, tenant)
    assert counted == rows == sum(entry.bytes for entry in kept.values())


def test_a_writer_that_is_taken_for_dead_loses_its_entry_and_nothing_else(open_cache, share, monkeypatch):
    slow, other = open_cache(), open_cache()
    kept = other.put(new_entry(1))
    write = slow._objects.write

    def overslept(entry_id, content):
        monkeypatch.setattr("chorus.cache.shared.cache.RESERVED_FOR", 0.0)
        other.sweep()
        write(entry_id, content)

    monkeypatch.setattr(slow._objects, "write", overslept)
    with pytest.raises(Exception, match="minutes passed"):
        slow.put(new_entry(2))
    assert other.entries() == [kept]
    assert other.stats().bytes == kept.bytes
    assert [match.entry for match in other.search(random_vector(2), EMBEDDER, SPACE)] == [kept]
