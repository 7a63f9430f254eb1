"""One setting, a URL; and its secrets stay where they are."""

from __future__ import annotations

import logging
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
import pytest

from chorus.cache import CacheError, CacheUnavailable
from chorus.cache.shared import Settings, SharedCache, from_environment
from chorus.cache.shared.settings import BLOBS, URL, is_set
from chorus.comfy.place import Place, _shown
from tools.s3 import SECRET

from ..cache.sample import EMBEDDER, SPACE, new_entry, random_vector

PASSWORD = "sesame/öffne%dich"
QUOTED = "sesame%2F%C3%B6ffne%25dich"
S3 = {
    "AWS_ACCESS_KEY_ID": "AKIA",
    "AWS_SECRET_ACCESS_KEY": "0123456789",
    "AWS_ALLOW_HTTP": "true",
    "AWS_REGION": "x",
}


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
        ({"blobs": "s3://bucket/x#hush-hush"}, "carries credentials"),
        ({"blobs": "s3://key:hu/sh-hush@bucket/prefix"}, "carries credentials"),
        ({"blobs": "s3://key/hush-hush@bucket/prefix"}, "carries credentials"),
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


ODD = ["/", "//", "@", ":", "?", "#", "%", "[", '"', " ", "/1@", "?a=b@", "@h:1/"]


@pytest.mark.parametrize(
    "password", [*(f"sesame{odd}opened" for odd in ODD), quote(f"sesame{''.join(ODD)}&=+,'öopened", safe="")]
)
def test_no_part_of_an_odd_password_is_said(password, tmp_path, caplog, monkeypatch):
    """Whatever character it has, encoded or not: in no message, representation, log line or answer of the panel."""
    caplog.set_level(logging.DEBUG)
    for name, value in S3.items():
        monkeypatch.setenv(name, value)
    seen = []
    proxy, endpoint = ({name: f"http://user:{password}@127.0.0.1:1"} for name in ("AWS_PROXY_URL", "AWS_ENDPOINT_URL"))
    for url, addresses in (
        (f"postgresql://chorus:{password}@127.0.0.1:1/db", {}),
        (f"postgresql://:{password}@127.0.0.1:1/db", {}),
        (f"postgresql://chorus:12{password}@127.0.0.1:1/db", {}),
        (f"postgresql://127.0.0.1:1/db?user=chorus&password={password}", {}),
        (f"postgresql://chorus@127.0.0.1:1/db?sslpassword={password}&sslmode=disable", {}),
        ("postgresql://127.0.0.1:1/db", proxy),
        ("postgresql://127.0.0.1:1/db", endpoint),
    ):
        for name, value in addresses.items():
            monkeypatch.setenv(name, value)
        place = Place(tmp_path, url, "s3://bucket/x" if addresses else tmp_path.as_uri())
        for part, value in ((URL, url), (BLOBS, place.blobs)):
            monkeypatch.setenv(part, value)
        seen += [repr(place), *_shown(place).values()]
        try:
            settings = place.settings()
            seen += [repr(settings), settings.place]
            cache = SharedCache(settings, "default", tier=tmp_path, upkeep=False)
            with pytest.raises(CacheUnavailable) as caught:
                (cache._objects.mark if addresses else cache.stats)()
            seen.append(said_by(caught.value, caplog))
            cache.close()
        except CacheUnavailable as error:
            seen.append(said_by(error, caplog))
        for name in (URL, *addresses):
            monkeypatch.delenv(name)
        seen += _shown(place).values()  # as if it had been chosen
    assert len(seen) > 15
    for part in ("sesame", "opened"):
        assert part not in "".join(seen), next(text for text in seen if part in text)[:500]


@contextmanager
def greedy_server() -> Iterator[tuple[int, list[bytes]]]:
    """A server that asks whoever connects for a password in clear text: (port, what it was told)."""
    told: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                with server.accept()[0] as connection:
                    connection.settimeout(5)
                    request = connection.recv(8)
                    if request[4:] == struct.pack(">i", 80877103):  # is there TLS?
                        connection.sendall(b"N")
                        request = connection.recv(8)
                    told.append(connection.recv(4096))
                    connection.sendall(b"R" + struct.pack(">ii", 8, 3))
                    told.append(connection.recv(4096))
            except OSError:
                if server.fileno() < 0:
                    return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], told
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.mark.parametrize("source", ["PGPASSWORD", "PGPASSFILE", "HOME", "PGSERVICE", "PGOPTIONS"])
@pytest.mark.parametrize("chosen", [False, True], ids=["of the environment", "chosen"])
@pytest.mark.skipif(sys.platform == "win32", reason="another home folder")
def test_a_chosen_url_gets_nothing_secret_of_the_environment(source, chosen, tmp_path, monkeypatch):
    passwords = tmp_path / ".pgpass"
    passwords.write_text(f"*:*:*:*:{SECRET}\n")
    passwords.chmod(0o600)
    (tmp_path / "services").write_text(f"[own]\npassword={SECRET}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    value = {
        "PGPASSWORD": SECRET,
        "PGPASSFILE": str(passwords),
        "HOME": str(tmp_path),
        "PGSERVICE": "own",
        "PGOPTIONS": f"-c my.secret={SECRET}",
    }[source]
    monkeypatch.setenv(source, value)
    with greedy_server() as (port, told):
        url, blobs = f"postgresql://chorus@127.0.0.1:{port}/db", tmp_path.as_uri()
        if not chosen:
            monkeypatch.setenv(URL, url)
        cache = SharedCache(Place(tmp_path, url, blobs).settings(), "default", tier=tmp_path, upkeep=False)
        with pytest.raises(CacheUnavailable):
            cache.version()
        cache.close()
    assert told  # it was asked at all
    assert any(SECRET.encode() in text for text in told) is not chosen


@pytest.mark.parametrize(
    ("url", "blobs", "said"),
    [
        ("postgresql://h/db?passfile=/root/.pgpass", "file:///srv", "passfile"),
        ("postgresql://h/db?service=own", "file:///srv", "service"),
        ("postgresql://h/db?sslkeylogfile=/etc/passwd", "file:///srv", "sslkeylogfile"),
        ("postgresql://h/db?sslcert=/a&sslkey=/b", "file:///srv", "sslcert, sslkey"),
        ("postgresql://h/db", "s3://bucket/x", "a bucket needs credentials"),
    ],
)
def test_what_would_need_or_read_a_secret_cannot_be_chosen(url, blobs, said, tmp_path, monkeypatch):
    with pytest.raises(CacheUnavailable, match=said):
        Place(tmp_path, url, blobs).settings()
    monkeypatch.setenv(URL, url)
    monkeypatch.setenv(BLOBS, blobs)
    assert Place(tmp_path, url, blobs).settings().url == url  # whoever sets the environment may
