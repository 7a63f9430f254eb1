"""The routes over HTTP: what they answer, what they refuse, and that nothing hostile gets through."""

from __future__ import annotations

import http.client
import io
import json
import random
import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
import torch
from PIL import Image

from chorus.cache import LocalCache
from chorus.comfy.limit import GIGABYTE, choose_limit, limit_bytes
from chorus.comfy.server import listing
from chorus.comfy.server.routes import ROUTES
from chorus.messages import BadInput

from .conftest import Answer
from .entries import FRAMES, SIDE, SPACE, fill

if TYPE_CHECKING:
    from tools.server import ComfyServer

CACHE = "routes"
MISSING = "0" * 32


@pytest.fixture(scope="module")
def ids(face_server: ComfyServer) -> list[str]:
    return fill(face_server.base / "user" / "__chorus" / CACHE, 7)


@pytest.fixture
def ask(ask_cache, ids):
    """`ask("/entries")` below the cache's path, `ask("/status", cache=None)` below the root."""
    return partial(ask_cache, cache=CACHE)


def test_status_names_the_caches_and_where_they_are(ask, face_server: ComfyServer) -> None:
    status = ask("/status", cache=None).json
    assert status["version"] == 1
    assert CACHE in status["caches"]
    assert Path(status["folder"]) == face_server.base / "user" / "__chorus"
    assert status["limit_gb"] == 20 and status["limit_from"] is None


def test_entries_come_in_pages_newest_first(ask, ids) -> None:
    page = ask("/entries?limit=3&offset=2").json
    assert page["total"] == 7
    assert [entry["id"] for entry in page["entries"]] == ids[::-1][2:5]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("words=RED", [5, 0]),
        ("words=take%203", [3]),
        ("words=%25", []),
        ("sort=oldest&limit=2", [0, 1]),
        ("source=false", []),
        ("shape=1x16x4x12x12&limit=1", [6]),
        ("shape=1x16x4x12x13", []),
        ("weights=weights-b", []),
        ("created_after=9999999999", []),
    ],
)
def test_entries_answer_a_query(ask, ids, query, numbers) -> None:
    assert [entry["id"] for entry in ask(f"/entries?{query}").json["entries"]] == [ids[number] for number in numbers]


def test_entry_says_everything(ask, ids) -> None:
    entry = ask(f"/entries/{ids[2]}").json
    assert entry["prompt"] == "A blue ball rolls left, take 2"
    assert entry["size"] == [96, 96, 13]
    assert entry["settings"]["seed"] == 2 and entry["made"] == {"total": 0, "entries": []}
    assert ask(f"/entries/{MISSING}").code == "no_such_entry"


def test_stats_add_up(ask) -> None:
    stats = ask("/stats").json
    assert stats["entries"] == 7 and 0 < stats["bytes"] < stats["limit"]
    (model,) = stats["models"]
    assert (model["weights"], model["entries"]) == ("weights-a", 7)
    assert stats["growth"] == pytest.approx(stats["bytes"] / 7)


def test_preview_is_an_animation_and_frames_a_strip(ask, ids) -> None:
    with Image.open(io.BytesIO(ask(f"/entries/{ids[1]}/preview").body)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (SIDE, SIDE))
    with Image.open(io.BytesIO(ask(f"/entries/{ids[1]}/frames").body)) as picture:
        assert picture.size == (SIDE, FRAMES * SIDE)


def test_pictures_may_be_kept_and_asked_for_in_parts(ask, ids) -> None:
    path = f"/entries/{ids[0]}/preview"
    whole = ask(path)
    assert "no-cache" in whole.headers["Cache-Control"] and whole.headers["Content-Type"] == "image/webp"
    assert ask(path, headers={"If-None-Match": whole.headers["ETag"]}).status == 304
    part = ask(path, headers={"Range": "bytes=4-11"})
    assert (part.status, part.body) == (206, whole.body[4:12])
    assert part.headers["Content-Range"] == f"bytes 4-11/{len(whole.body)}"
    assert ask(path, headers={"Range": "bytes=-5"}).body == whole.body[-5:]
    assert ask(path, headers={"Range": f"bytes={len(whole.body)}-"}).status == 416
    assert ask(path, headers={"Range": "bytes=9-2"}).status == 416


def test_pin_and_forget_change_the_cache(ask, ids, face_server: ComfyServer) -> None:
    (other,) = fill(face_server.base / "user" / "__chorus" / "to forget", 1)

    def entry() -> Answer:
        return ask(f"/entries/{other}", cache="to forget")

    assert ask("/pin", cache="to forget", post={"ids": [other], "pinned": True}).status == 200
    assert entry().json["pinned"] is True
    preview = ask(f"/entries/{other}/preview", cache="to forget")
    assert preview.status == 200
    assert ask("/forget", cache="to forget", post={"ids": [other, MISSING]}).status == 200
    assert entry().status == 404
    assert ask(f"/entries/{other}/preview", cache="to forget").status == 404


def test_limit_is_chosen_and_kept(ask) -> None:
    assert ask("/limit", cache=None, post={"gigabytes": 1.5}).json["limit_gb"] == 1.5
    assert ask("/stats").json["limit"] == int(1.5 * 2**30)
    for wrong in (0, -1, "20", None, True, 1e30):
        assert ask("/limit", cache=None, post={"gigabytes": wrong}).status == 400
    assert ask("/limit", cache=None, post={"gigabytes": 20}).json["limit_gb"] == 20


def test_a_limit_leaves_the_files_of_other_programs_alone(tmp_path: Path) -> None:
    theirs = '{"editor.fontSize": 14, "limit_gb": 3}'
    (tmp_path / "settings.json").write_text(theirs)
    choose_limit(tmp_path, 40)
    assert (limit_bytes(tmp_path), (tmp_path / "settings.json").read_text()) == (40 * GIGABYTE, theirs)
    (own,) = set(tmp_path.iterdir()) - {tmp_path / "settings.json"}
    own.write_text('{"mine": "years of work"}')
    with pytest.raises(BadInput, match="not Chorus's"):
        choose_limit(tmp_path, 50)
    assert own.read_text() == '{"mine": "years of work"}'
    assert limit_bytes(tmp_path) == 20 * GIGABYTE


def test_a_limit_that_an_earlier_version_kept_still_holds(tmp_path: Path) -> None:
    former = tmp_path / "settings.json"
    former.write_text('{"limit_gb": 7}\n')
    assert limit_bytes(tmp_path) == 7 * GIGABYTE
    choose_limit(tmp_path, 9)
    assert limit_bytes(tmp_path) == 9 * GIGABYTE and not former.exists()


@pytest.mark.parametrize("path", ["/pin", "/forget", "/export"])
def test_state_changes_by_json_post_from_here_only(ask, ids, path) -> None:
    body = {"ids": [ids[0]], "pinned": True}
    assert ask(path).status in (404, 405)
    assert ask(path, post=body, headers={"Content-Type": "text/plain"}).status == 415
    assert ask(path, post=body, headers={"Origin": "http://elsewhere.example"}).status == 403
    assert ask(path, post=body, headers={"Sec-Fetch-Site": "cross-site"}).status == 403
    assert ask(f"/entries/{ids[0]}").json["pinned"] is False


def test_what_is_shown_of_one_cache_is_changed_in_no_other(ask, ids) -> None:
    """Every change names its cache in its path; none falls back to another, whatever the body says."""
    body = {"ids": [ids[0]], "pinned": True, "cache": CACHE}
    for path in ("/pin", "/forget", "/export"):
        assert ask(path, cache="nowhere", post=body).code == "no_such_cache"
        assert ask(path, cache="", post=body).status in (404, 405)
        assert ask(path, cache=None, post=body).status in (404, 405)
    assert ask(f"/entries/{ids[0]}").json["pinned"] is False


@pytest.mark.parametrize(
    "name", ["nowhere", "../routes", "..", "routes/..", "/etc", "routes\0", "C:\\", "r" * 300, "%2e%2e"]
)
def test_cache_that_is_none_is_not_made(ask, name, cache_folder: Path) -> None:
    before = sorted(path.name for path in cache_folder.iterdir())
    assert ask("/stats", cache=name).status == 404
    assert sorted(path.name for path in cache_folder.iterdir()) == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"ids": 5}',
        b'{"ids": ["../x"]}',
        b'{"ids": [null]}',
        b'{"ids": ["' + b"A" * 32 + b'"]}',
        b"\xff\xfe",
    ],
)
def test_bad_body_is_refused_with_a_reason(ask, body) -> None:
    for path in ("/forget", "/export"):
        answer = ask(path, post=body)
        assert answer.status == 400 and answer.json["error"]["message"]


def test_too_many_ids_are_refused(ask) -> None:
    assert ask("/forget", post={"ids": [MISSING] * 1001}).status == 400


TEXTS = [
    "",
    "-1",
    "1e400",
    "nan",
    "1_0",
    "\0",
    "%ff",
    "😀",
    "x" * 2000,
    "'; DROP TABLE entries; --",
    "../../etc",
    "1x" * 9,
]
TYPES = ["application/json; charset=foo", "application/json; charset=utf-16", "application/zip", "text/plain", "", "x"]
BODIES = [
    b"",
    b"{",
    b"\xff\xfe{}",
    b"\0" * 100,
    b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    b'{"ids": [[]], "pinned": 1}',
    b'{"ids": [], "query": {}}',
    b'{"query": {"words": {"a": 1}, "evil": 1}}',
    b'{"query": {"words": "\\ud800"}}',
    b'{"query": {"created_before": 1e999}}',
    *(b'{"gigabytes": ' + number + b"}" for number in (b"1e999", b"NaN", b"9" * 400, b"9" * 5000, b"true", b"[]")),
    *(
        json.dumps({"folder": folder}).encode()
        for folder in ("~nobodyhere/x", "/a" * 3000, "/dev/null/x", "\0", "\ud800", "x")
    ),
    *(
        json.dumps({"url": url, "blobs": blobs}).encode()
        for url in ("x", "postgresql://[::1", "postgresql://127.0.0.1:99999999/x", "postgresql://a:b/c@d", "\0")
        for blobs in ("file:///srv/none", "s3://", "file://%00")
    ),
]


def test_whatever_is_asked_gets_an_answer_or_a_reason(face_server: ComfyServer) -> None:
    """Every route, with odd methods, parameters, bodies and headers: never a fault of the server, and nothing done."""
    folder = face_server.base / "user" / "__chorus"
    (entry,) = fill(folder / "odd", 1)
    place, chance, counted = urlsplit(face_server.url), random.Random(7), Counter[int]()

    def status() -> tuple[Any, ...]:
        own = sorted(path.name for path in folder.iterdir() if "limit" in path.name or "place" in path.name)
        return ask("GET", "/chorus/v1/status"), ask("GET", "/chorus/v1/caches/odd/entries"), own

    def ask(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> bytes:
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
        try:
            connection.request(method, quote(path, safe="/?=&%~"), body, dict(headers))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        counted[answer.status] += 1
        assert answer.status < 500 or answer.status == 503, (method, path[:200], body and body[:100], headers, content)
        served = method in ("GET", "POST") and "Content-Encoding" not in headers  # not refused by aiohttp's parser
        if served and answer.status not in (200, 206, 304, 404, 405):
            assert answer.status == 416 or json.loads(content)["error"]["message"], (method, path[:200], content)
        return content

    before = status()
    for method, route, _ in ROUTES:
        path = route.format(cache="odd", entry=entry)
        for other in ("PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "X"):
            ask(other, path, b"{}")
        for text in TEXTS:
            ask(method, route.format(cache=text, entry=entry), b"" if method == "POST" else None)
            ask(method, route.format(cache="odd", entry=text), b"" if method == "POST" else None)
        if method == "POST":
            for body in BODIES:
                ask("POST", path, body, {"Content-Type": "application/json"})
            for kind in TYPES:
                ask("POST", path, b'{"ids": [], "folder": "x", "gigabytes": 0}', {"Content-Type": kind})
            for coding in ("gzip", "deflate", "x"):  # of others aiohttp's parser says that it lacks the package
                ask("POST", path, b"{}", {"Content-Type": "application/json", "Content-Encoding": coding})
        else:
            for parts in ("bytes=5-2", "bytes=0-0,5-9", "bytes=99999-", "bytes=a-b", "items=0-5", "x" * 5000):
                ask("GET", path, None, {"Range": parts})
    names = [*listing._READERS, "limit", "offset", "meaning", "evil", "user"]
    for _ in range(150):
        asked = ((chance.choice(names), chance.choice([*TEXTS, "true", "1x2"])) for _ in range(chance.randint(1, 4)))
        query = "&".join(f"{name}={quote(text)}" for name, text in asked)
        ask("GET", f"/chorus/v1/caches/odd/entries?{query}")
    assert status() == before
    assert counted[200] > 50 and counted[400] > 200 and counted[415] > 20, counted


def test_damaged_entry_is_an_error_in_words(ask, face_server: ComfyServer) -> None:
    folder = face_server.base / "user" / "__chorus" / "damaged"
    (entry_id,) = fill(folder, 1)
    (file,) = folder.rglob(f"*{entry_id}*")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    answer = ask(f"/entries/{entry_id}/preview", cache="damaged")
    assert answer.status == 409 and "quarantine" in answer.json["error"]["message"]


def test_what_another_process_forgets_is_not_shown_any_more(ask, cache_folder: Path) -> None:
    folder = cache_folder / "forgotten elsewhere"
    kept, gone = fill(folder, 2)
    pictures = [f"/entries/{entry_id}/{what}" for entry_id in (gone, kept) for what in ("preview", "frames")]
    assert [ask(path, cache=folder.name).status for path in pictures] == [200] * 4
    with closing(LocalCache(folder)) as cache:
        cache.forget(gone)
    assert [ask(path, cache=folder.name).status for path in pictures] == [404, 404, 200, 200]


@pytest.mark.parametrize("latent_format", ["torch", "__class__", "LatentFormat", "Nobody", "__getattr__"])
def test_a_latent_format_of_any_name_is_listed(ask, cache_folder: Path, latent_format: str) -> None:
    space = replace(SPACE, latent_format=latent_format)
    folder = cache_folder / f"format {latent_format}"
    (entry_id,) = fill(folder, 1, space=space)
    for path in ("/entries", "/stats", f"/entries/{entry_id}"):
        assert ask(path, cache=folder.name).status == 200
    assert ask("/entries", cache=folder.name).json["entries"][0]["size"] == [96, 96, 4]


def test_a_prompt_that_is_no_unicode_is_listed_and_searched(ask, cache_folder: Path) -> None:
    folder = cache_folder / "surrogate"
    (entry_id,) = fill(folder, 1, prompt="a \ud800 b")
    for path in ("/entries", "/entries?words=b", "/entries?meaning=a%20b", f"/entries/{entry_id}"):
        answer = ask(path, cache=folder.name)
        assert (answer.status, "a \\ud800 b" in answer.body.decode()) == (200, True), path


@pytest.mark.parametrize(
    "text",
    [
        b'{"workflow":{"a":"' + b"x" * 2**26 + b'"}}',
        b'{"workflow":{"a":[' + b"{}," * 3_000_000 + b"1]}}",
        b'{"workflow":' + b"[" * 100_000,
        b'{"workflow":NaN}',
    ],
    ids=["long", "many", "deep", "NaN"],
)
def test_a_workflow_that_is_a_bomb_is_damage(ask, cache_folder: Path, text: bytes, monkeypatch, request) -> None:
    """As after a file was edited on the disk: what is imported or stored is checked before."""
    folder = cache_folder / f"bomb {request.node.callspec.id}"
    graph = torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)
    monkeypatch.setattr("chorus.cache.format._check", lambda *_: None)
    (entry_id,) = fill(folder, 1, tensors={"final": torch.zeros(SPACE.shape), "workflow": graph})
    answer = ask(f"/entries/{entry_id}/workflow", cache=folder.name)
    assert (answer.status, answer.code) == (409, "cache_error")
    assert "workflow" in answer.json["error"]["message"] and len(answer.body) < 2000
    assert ask(f"/entries/{entry_id}", cache=folder.name).status == 404


def test_newer_entries_of_another_process_are_seen(ask, face_server: ComfyServer) -> None:
    folder = face_server.base / "user" / "__chorus" / "shared by two"
    fill(folder, 1)
    first = ask("/stats", cache="shared by two").json
    fill(folder, 1, prompt="another one")
    second = ask("/stats", cache="shared by two").json
    assert (first["entries"], second["entries"]) == (1, 2) and first["version"] != second["version"]
