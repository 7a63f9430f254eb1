"""A tenant's entries are for its own workers."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from chorus.cache import CacheUnavailable, EntryMissing, EntryTooLarge
from chorus.cache.shared.schema import MIGRATIONS, TABLES

from ..cache.sample import EMBEDDER, SPACE, assert_is_entry, new_entry, random_vector


@pytest.fixture
def bound(postgres, cache, tenant) -> Iterator[str]:
    """URL of a role that is bound to the tenant `team-a…`; the tables are there."""
    cache.version()
    role, home = f"{tenant}_worker", f"a{tenant}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass-word'", f"SELECT chorus.admit('{role}', '{home}')")
    yield postgres.url(user=role, password="pass-word")
    postgres.execute(
        f"DELETE FROM chorus.tenant_roles WHERE role = '{role}'", f"DROP OWNED BY {role}", f"DROP ROLE {role}"
    )


def test_tenants_do_not_see_each_other(open_cache, tenant):
    ours, theirs = open_cache(), open_cache(tenant=f"{tenant}-b")
    entry = ours.put(new_entry(1))
    assert theirs.search(random_vector(1), EMBEDDER, SPACE) == []
    assert theirs.find_request("request-1") is theirs.get(entry.id) is None
    assert theirs.entries() == [] and theirs.stats().bytes == 0
    with pytest.raises(EntryMissing):
        theirs.load(entry.id)
    theirs.forget(entry.id)
    theirs.record_hit(entry.id, 1.0)
    theirs.clear()
    assert ours.get(entry.id) == entry
    assert_is_entry(1, ours.load(entry.id))
    # The same embedder's vectors may have another length elsewhere.
    theirs.put(new_entry(2, vector=random_vector(2, 7)))


def test_caches_of_a_tenant_are_apart(open_cache):
    one, other = open_cache("one"), open_cache("other")
    entry = one.put(new_entry(1))
    assert other.entries() == [] and other.get(entry.id) is None
    other.clear()
    assert_is_entry(1, one.load(entry.id))


def test_a_bound_role_works_in_its_own_tenant(bound, open_cache, tenant, share):
    home = f"a{tenant}"
    cache = open_cache(url=bound, tenant=home, max_bytes=20_000)
    made = [cache.put(new_entry(n)) for n in range(6)]
    assert_is_entry(5, cache.load(made[5].id))
    assert cache.search(random_vector(5), EMBEDDER, SPACE)[0].entry == made[5]
    cache.record_hit(made[5].id, 1.0)
    cache.pin(made[5].id)
    cache.sweep()
    cache.forget(made[4].id)
    assert cache.stats().entries == len(list(share.glob(f"{home}/??/*"))) == 2
    assert cache.clear() == 2


def test_a_bound_role_cannot_leave_its_tenant_by_its_settings(bound, cache, open_cache, tenant):
    cache.put(new_entry(1, prompt="private"))
    intruder = open_cache(url=bound, tenant=tenant)
    with pytest.raises(CacheUnavailable) as caught:
        intruder.entries()
    assert "row-level security" in str(caught.value)
    assert cache.count() == 1


def test_a_bound_role_cannot_leave_its_tenant_by_sql(bound, cache, tenant, db):
    entry = cache.put(new_entry(1, prompt="private"))
    with psycopg.connect(bound, autocommit=True) as worker:
        worker.execute("SELECT set_config('chorus.tenant', %s, false)", (tenant,))
        for table in TABLES:
            rows = worker.execute(f"SELECT * FROM chorus.{table} WHERE tenant = %s", (tenant,)).fetchall()
            assert rows == [], table
        assert worker.execute("DELETE FROM chorus.entries").rowcount == 0
        assert worker.execute("UPDATE chorus.entries SET hits = 99").rowcount == 0
        assert worker.execute("UPDATE chorus.caches SET bytes = 0").rowcount == 0
        refused = [
            ("INSERT INTO chorus.days VALUES (%s, 'default', current_date, 1, 1)", (tenant,)),
            ("INSERT INTO chorus.garbage (tenant, cache, id, bytes) VALUES (%s, 'default', %s, 1)", (tenant, entry.id)),
            ("SELECT * FROM chorus.tenant_roles", ()),
            ("UPDATE chorus.tenant_roles SET tenant = %s", (tenant,)),
            ("SELECT chorus.admit(current_user, %s)", (tenant,)),
            ("ALTER TABLE chorus.entries DISABLE ROW LEVEL SECURITY", ()),
            ("DROP POLICY own_tenant ON chorus.entries", ()),
            ("TRUNCATE chorus.entries", ()),
            ("CREATE FUNCTION chorus.tenant() RETURNS text LANGUAGE sql AS 'SELECT 1'", ()),
            ("CREATE TABLE chorus.mine ()", ()),
            ("SET ROLE postgres", ()),
            ("SET SESSION AUTHORIZATION postgres", ()),
            ("UPDATE chorus.tenants SET max_bytes = NULL", ()),
        ]
        for statement, values in refused:
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
                worker.execute(statement, values)
    ((found, hits),) = db.execute("SELECT id, hits FROM chorus.entries WHERE tenant = %s", (tenant,)).fetchall()
    assert (found, hits) == (entry.id, 0)


ROW = (
    "INSERT INTO chorus.entries (seq, tenant, cache, id, space, embedder, is_source, request, bytes, digest,"
    " vector_sha256, record, checksum, created, weights, latent_format, shape, folded)"
    " SELECT %s + g, %s, 'default', md5(g::text), 's', 'e', true, 'r', 1, 'd', 'v', '{}', 'c', 0, 'w', 'f', 's', 'p'"
    " FROM generate_series(1, 20) g"
)
VECTOR = (
    "INSERT INTO chorus.vectors (seq, tenant, cache, embedder, space, dims, vector)"
    " VALUES (%s, %s, 'default', 'e', 's', 2, '[1,0]')"
)


def test_a_tenant_that_takes_numbers_in_advance_keeps_nobody_from_storing(bound, cache, open_cache, tenant, db):
    home = f"a{tenant}"
    open_cache(url=bound, tenant=home).version()
    cache.put(new_entry(1))
    ((last,),) = db.execute("SELECT max(seq) FROM chorus.entries").fetchall()
    with psycopg.connect(bound, autocommit=True) as worker:
        assert worker.execute(ROW, (last, home)).rowcount == 20
        worker.execute(VECTOR, (last + 1, home))
    made = [cache.put(new_entry(n)) for n in range(2, 9)]
    ((taken,),) = db.execute(
        "SELECT count(*) FROM chorus.entries a JOIN chorus.entries b USING (seq) WHERE a.tenant = %s AND b.tenant = %s",
        (tenant, home),
    ).fetchall()
    assert taken == 7  # they do have the same numbers
    for number, entry in enumerate(made, 2):
        assert [match.entry for match in cache.search(random_vector(number), EMBEDDER, SPACE, k=1)] == [entry]
        assert_is_entry(number, cache.load(entry.id))
    cache.clear()
    assert db.execute("SELECT count(*) FROM chorus.entries WHERE tenant = %s", (home,)).fetchone() == (20,)


def test_a_tenant_cannot_tell_which_numbers_another_has(bound, cache, open_cache, tenant, db):
    home = f"a{tenant}"
    open_cache(url=bound, tenant=home).version()
    cache.put(new_entry(1))
    cache.put(new_entry(2, is_source=False))
    seqs = [seq for (seq,) in db.execute("SELECT seq FROM chorus.entries WHERE tenant = %s", (tenant,)).fetchall()]
    answers = set()
    with psycopg.connect(bound, autocommit=True) as worker:
        for seq in (*seqs, max(seqs) + 1000):
            with pytest.raises(psycopg.Error) as caught:
                worker.execute(VECTOR, (seq, home))
            answers.add((type(caught.value), str(caught.value).replace(str(seq), "?")))
    assert len(answers) == 1
    assert db.execute("SELECT count(*) FROM chorus.vectors WHERE tenant = %s", (home,)).fetchone() == (0,)


def test_tables_of_version_1_are_migrated_with_all_tenants_rows(postgres, tenant, open_cache, monkeypatch):
    """By their owner, an ordinary role, whom row-level security shows one tenant only; planted vectors go."""
    database, role = f"db_{tenant}", f"{tenant}_owner"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass-word'", f"CREATE DATABASE {database} OWNER {role}")
    postgres.execute("CREATE EXTENSION vector", database=database)
    url = postgres.url(database, role, "pass-word")
    try:
        with monkeypatch.context() as patch:
            patch.setattr("chorus.cache.shared.database.MIGRATIONS", MIGRATIONS[:1])
            old = {name: open_cache(url=url, tenant=name) for name in (tenant, f"{tenant}-b")}
            made = {name: [cache.put(new_entry(n)) for n in range(3)] for name, cache in old.items()}
            result = old[tenant].put(new_entry(9, is_source=False))
            for cache in old.values():
                cache.close()
        with psycopg.connect(postgres.url(database), autocommit=True) as db:
            ((seq,),) = db.execute("SELECT seq FROM chorus.entries WHERE id = %s", (result.id,)).fetchall()
            db.execute(VECTOR, (seq, f"{tenant}-b"))
            for name, entries in made.items():
                cache = open_cache(url=url, tenant=name)
                assert [cache.get(entry.id) for entry in entries] == entries
                assert cache.search(random_vector(1), EMBEDDER, SPACE)[0].entry == entries[1]
                assert_is_entry(5, cache.load(cache.put(new_entry(5)).id))
                cache.close()
            assert db.execute("SELECT number FROM chorus.version").fetchone() == (len(MIGRATIONS),)
            assert db.execute("SELECT count(*) FROM chorus.vectors").fetchone() == (8,)
            forced = "SELECT relname FROM pg_class WHERE relnamespace = 'chorus'::regnamespace AND relforcerowsecurity"
            assert {name for (name,) in db.execute(forced).fetchall()} == set(TABLES)
    finally:
        postgres.execute(f"DROP DATABASE {database} WITH (FORCE)", f"DROP ROLE {role}")


def test_the_owner_is_kept_to_a_tenant_too(postgres, tenant, tmp_path, share, open_cache):
    """An ordinary role that owns the tables: migrations, and one tenant a connection."""
    database, role = f"db_{tenant}", f"{tenant}_owner"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass-word'", f"CREATE DATABASE {database} OWNER {role}")
    postgres.execute("CREATE EXTENSION vector", database=database)
    url = postgres.url(database, role, "pass-word")
    try:
        ours, theirs = open_cache(url=url), open_cache(url=url, tenant=f"{tenant}-b")
        ours.put(new_entry(1))
        theirs.put(new_entry(2))
        assert ours.count() == theirs.count() == 1
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT * FROM chorus.entries").fetchall() == []
            connection.execute("SELECT set_config('chorus.tenant', %s, false)", (tenant,))
            assert connection.execute("SELECT count(*) FROM chorus.entries").fetchone() == (1,)
        ours.close()
        theirs.close()
    finally:
        postgres.execute(f"DROP DATABASE {database} WITH (FORCE)", f"DROP ROLE {role}")


def test_a_role_without_rights_is_told_what_is_missing(postgres, tenant, open_cache):
    role = f"{tenant}_guest"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'pass-word'", f"CREATE DATABASE db_{tenant}")
    try:
        cache = open_cache(url=postgres.url(f"db_{tenant}", role, "pass-word"))
        with pytest.raises(CacheUnavailable, match=r"may not make them.*owner"):
            cache.version()
        cache.close()
    finally:
        postgres.execute(f"DROP DATABASE db_{tenant} WITH (FORCE)", f"DROP ROLE {role}")


def test_a_limit_of_the_tenant_holds_for_its_caches_together(open_cache, tenant, db):
    one, other = open_cache("one"), open_cache("other")
    size = one.put(new_entry(1)).bytes
    other.put(new_entry(2))
    db.execute("UPDATE chorus.tenants SET max_bytes = %s WHERE tenant = %s", (int(3.5 * size), tenant))
    for number in range(3, 8):
        other.put(new_entry(number))
        assert one.stats().bytes + other.stats().bytes <= 3.5 * size
    assert (one.count(), other.count()) == (1, 2)
    with pytest.raises(EntryTooLarge):
        one.put(new_entry(9, kilobytes=100))
