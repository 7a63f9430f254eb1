"""One setting, a URL; and its secrets stay where they are."""

from __future__ import annotations

import logging
import traceback

import psycopg
import pytest

from chorus.cache import CacheError, CacheUnavailable
from chorus.cache.shared import Settings, SharedCache, from_environment
from chorus.cache.shared.settings import is_set
from tools.s3 import SECRET

from ..cache.sample import EMBEDDER, SPACE, new_entry, random_vector

PASSWORD = "sesame/öffne%dich"
QUOTED = "sesame%2F%C3%B6ffne%25dich"


def test_without_a_url_the_cache_is_local():
    assert not is_set({})
    assert not is_set({"CHORUS_CACHE_URL": "  ", "CHORUS_CACHE_BLOBS": "s3://bucket"})
    assert is_set({"CHORUS_CACHE_URL": "postgresql:///db"})


def test_the_environment_says_all():
    settings = from_environment(
        {
            "CHORUS_CACHE_URL": "postgresql://host/db",
            "CHORUS_CACHE_BLOBS": "s3://bucket/prefix",
            "CHORUS_CACHE_TENANT": "team-a",
            "CHORUS_CACHE_LOCAL_GB": "0.5",
        }
    )
    assert settings == Settings("postgresql://host/db", "s3://bucket/prefix", "team-a", 2**29)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "mysql://u:hush-hush@host/db"}, "not a postgresql:// URL"),
        ({"blobs": ""}, "CHORUS_CACHE_BLOBS is not set"),
        ({"blobs": "/mnt/share"}, "without a scheme"),
        ({"blobs": "ftp://host/x"}, "ftp:// is no location"),
        ({"blobs": "s3://key:hush-hush@bucket/prefix"}, "carries credentials"),
        ({"blobs": "s3://bucket?token=hush-hush"}, "carries credentials"),
        ({"tenant": "../other"}, "'../other' is no name for a tenant"),
        ({"tenant": "Team A"}, "lower-case"),
        ({"url": "postgresql://u:hush-hush@host/db?no_such_option=1"}, "cannot read the URL"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_setting_is_named_without_its_secrets(changes, said, tmp_path):
    values = {"url": "postgresql://host/db", "blobs": "s3://bucket", "tenant": "default", **changes}
    with pytest.raises(CacheUnavailable, match=said) as caught:
        SharedCache(Settings(**values), "default", tier=tmp_path, upkeep=False)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_wrong_number_is_named():
    with pytest.raises(ValueError, match="CHORUS_CACHE_LOCAL_GB='much'"):
        from_environment({"CHORUS_CACHE_URL": "postgresql://host/db", "CHORUS_CACHE_LOCAL_GB": "much"})


@pytest.fixture
def role(postgres, tenant, cache):
    """A role with a password, that owns nothing."""
    cache.version()
    quoted = PASSWORD.replace("'", "''").replace("%", "%%")
    postgres.execute(f"CREATE ROLE {tenant} LOGIN SUPERUSER PASSWORD '{quoted.replace('%%', '%')}'")
    yield tenant
    postgres.execute(f"DROP ROLE {tenant}")


def said_by(error: BaseException, caplog) -> str:
    """All that a person or a log could see of an error."""
    logging.getLogger("test").error("seen", exc_info=error)
    return "".join(traceback.format_exception(error)) + repr(error) + str(error.args) + caplog.text


def assert_no_secret(text: str) -> None:
    for secret in (PASSWORD, QUOTED, "sesame", "ffne", SECRET):
        assert secret not in text


def test_no_password_in_anything_that_is_said(postgres, role, open_cache, caplog, s3_environment, share):
    caplog.set_level(logging.DEBUG)
    url = postgres.url(user=role, password=QUOTED)
    cache = open_cache(url=url)
    entry = cache.put(new_entry(1))
    assert [match.entry for match in cache.search(random_vector(1), EMBEDDER, SPACE)] == [entry]
    seen = [repr(cache), repr(vars(cache)), repr(cache._settings), repr(entry)]

    wrong = [
        open_cache(url=url.replace(QUOTED, QUOTED + "x")),  # the server refuses it
        open_cache(url=postgres.url(user=role, password=QUOTED, port=1)),  # nobody listens
        open_cache(url=postgres.url("no_such_database", user=role, password=QUOTED)),
        open_cache(url=url, blobs="s3://no-such-bucket"),
        open_cache(url=url, blobs="file:///no/such/folder"),
    ]
    for one in wrong:
        with pytest.raises(CacheUnavailable) as caught:
            one.put(new_entry(2))
        seen.append(said_by(caught.value, caplog))
    assert "password authentication failed" in seen[4]
    assert "refused" in seen[5]
    assert "no_such_database" in seen[6]
    assert "s3://no-such-bucket" in seen[7]
    assert "no such folder" in seen[8]
    assert_no_secret("".join(seen))

    # Nor in what is stored: the database, and the files.
    with psycopg.connect(postgres.url()) as connection:
        for table in ("tenants", "caches", "entries", "days"):
            assert_no_secret(str(connection.execute(f"SELECT * FROM chorus.{table}").fetchall()))
    for path in share.rglob("*"):
        if path.is_file():
            assert b"sesame" not in path.read_bytes()


def test_a_secret_in_a_servers_answer_is_blotted_out(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc+def/123")
    monkeypatch.setenv("PGPASSWORD", "from-the-environment")
    settings = Settings(f"postgresql://u:{QUOTED}@host/db?password=another%20one", "s3://bucket")
    text = f"{QUOTED} {PASSWORD} abc+def/123 from-the-environment another%20one another one plain"
    assert settings.redacted(text) == "*** *** *** *** *** *** plain"
    assert "sesame" not in repr(settings)


def test_credentials_may_come_from_the_environment(postgres, role, open_cache, monkeypatch):
    monkeypatch.setenv("PGUSER", role)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    cache = open_cache(url=f"postgresql://127.0.0.1:{postgres.port}/postgres")
    assert cache.put(new_entry(1)).bytes == cache.stats().bytes
    monkeypatch.delenv("PGPASSWORD")
    with pytest.raises(CacheError, match="no password supplied"):
        open_cache(url=f"postgresql://127.0.0.1:{postgres.port}/postgres").version()
