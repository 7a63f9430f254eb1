"""Export and import over HTTP: entries go out and come back whole, and nothing hostile gets in."""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import threading
import time
import zipfile
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import torch

from chorus.cache import LocalCache
from chorus.cache.bundle import MANIFEST

from .conftest import Answer
from .entries import SPACE, fill, new_entry, unreadable

if TYPE_CHECKING:
    from tools.server import ComfyServer

CACHE = "bundles"
COUNT = 7
MISSING = "0" * 32
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture(scope="module")
def ids(face_server: ComfyServer) -> list[str]:
    return fill(face_server.base / "user" / "__chorus" / CACHE, COUNT)


@pytest.fixture
def ask(ask_cache, ids):
    """`ask("/entries")` below the cache's path, `ask("/status", cache=None)` below the root."""
    return partial(ask_cache, cache=CACHE)


@pytest.fixture
def export(ask):
    """`export(ids)`, `export(query={…})`: the answer."""

    def asked(chosen: list[str] | None = None, *, cache: str = CACHE, **body: Any) -> Answer:
        return ask("/export", cache=cache, post=body if chosen is None else {"ids": chosen, **body})

    return asked


@pytest.fixture
def take(ask):
    """`take(content, cache="…")`: what the import of a bundle is answered with."""

    def asked(content: bytes, *, cache: str, **headers: str) -> Answer:
        return ask("/import", cache=cache, post=content, headers={**ZIP, **headers})

    return asked


@pytest.fixture
def leaves_nothing(cache_folder: Path, face_server: ComfyServer):
    """No cache that was not there before, no file half-written, and none without a name that the server still holds."""

    def found() -> list[str]:
        names = [str(path) for path in [*cache_folder.iterdir(), *cache_folder.glob("*/partial/*")]]
        held = Path(f"/proc/{face_server.process_id}/fd")
        for file in held.iterdir() if held.is_dir() else ():
            with suppress(OSError):  # closed meanwhile
                name = str(file.readlink())
                names += [name] if name.startswith(str(cache_folder)) and name.endswith("(deleted)") else []
        return sorted(names)

    before = found()
    yield
    end = time.monotonic() + 20  # the server may not have noticed yet who has gone
    while found() != before and time.monotonic() < end:
        time.sleep(0.1)
    assert found() == before


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        assert bundle.testzip() is None
        return {name: bundle.read(name) for name in bundle.namelist()}


def listed(content: bytes) -> list[str]:
    return [entry["id"] for entry in json.loads(members(content)[MANIFEST])["entries"]]


def counted(folder: Path) -> int:
    with closing(LocalCache(folder)) as cache:
        return cache.count()


def test_what_is_exported_forgotten_and_imported_is_what_it_was(export, take, ask, cache_folder) -> None:
    folder = cache_folder / "there and back"
    made = fill(folder, 4)
    answer = export(made[:3], cache=folder.name)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip")
    assert "attachment" in answer.headers["Content-Disposition"]
    assert listed(answer.body) == made[:3]
    before = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert ask("/forget", cache=folder.name, post={"ids": made[:2]}).status == 200
    taken = take(answer.body, cache=folder.name)
    assert taken.status == 200
    assert {key: taken.json[key] for key in ("added", "present", "refused", "reasons", "evicted")} == {
        "added": 2,
        "present": 1,
        "refused": 0,
        "reasons": [],
        "evicted": 0,
    }
    assert {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")} == before
    assert ask(f"/entries/{made[0]}/preview", cache=folder.name).status == 200
    assert take(answer.body, cache=folder.name).json["present"] == 3


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, range(COUNT)),
        ({"words": "RED"}, [0, 5]),
        ({"source": True, "sort": "oldest"}, range(COUNT)),
        ({"created_after": 5, "words": "take 3"}, [3]),
    ],
)
def test_all_that_answer_a_query_are_exported(export, ids, query, numbers) -> None:
    assert sorted(listed(export(query=query).body)) == sorted(ids[number] for number in numbers)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"ids": [MISSING], "query": {}}, 400),
        ({"ids": []}, 400),
        ({"ids": ["../../etc/passwd"]}, 400),
        ({"ids": MISSING}, 400),
        ({"ids": [MISSING]}, 404),
        ({"query": []}, 400),
        ({"query": None}, 400),
        ({"query": {"word": "fox"}}, 400),
        ({"query": {"meaning": "fox"}}, 400),
        ({"query": {"sort": "up"}}, 400),
        ({"query": {"words": {"$ne": 1}, "shape": [1]}}, 400),
        ({"query": {"words": "no such thing"}}, 404),
    ],
)
def test_an_export_of_nothing_is_an_error_with_a_reason(export, body, status) -> None:
    answer = export(**body)
    assert answer.status == status and answer.json["error"]["message"]


def test_entries_that_are_not_there_are_left_out_of_an_export(export, ids) -> None:
    assert listed(export([MISSING, ids[1], ids[1], ids[4]]).body) == [ids[1], ids[4]]


def test_an_export_that_breaks_off_does_not_look_whole(export, cache_folder) -> None:
    folder = cache_folder / "breaks off"
    made = fill(folder, 3)
    with unreadable(folder, made[1]):
        with pytest.raises((HTTPException, ConnectionError)):
            export(made, cache=folder.name)
        assert export(made[1:2], cache=folder.name).code == "cache_unavailable"
        assert listed(export(made[2:], cache=folder.name).body) == made[2:]
    assert listed(export(made, cache=folder.name).body) == made


def test_an_import_makes_the_cache_it_names(export, take, ids, cache_folder) -> None:
    bundle = export(ids[:2]).body
    assert take(bundle, cache="made by an import").json["added"] == 2
    assert counted(cache_folder / "made by an import") == 2


@pytest.mark.parametrize("name", ["..", "../routes", ".hidden", "a/b", "C:\\", "x" * 65, "ends "])
def test_a_cache_with_a_name_that_is_none_is_not_made(take, export, ids, cache_folder, name) -> None:
    before = sorted(path.name for path in cache_folder.iterdir())
    assert take(export(ids[:1]).body, cache=name).status in (400, 404, 405)
    assert sorted(path.name for path in cache_folder.iterdir()) == before


def rewritten(content: bytes, change) -> bytes:
    found = members(content)
    change(found)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        for name, one in found.items():
            bundle.writestr(name, one)
    return file.getvalue()


def newer(found: dict[str, bytes]) -> None:
    found[MANIFEST] = json.dumps(json.loads(found[MANIFEST]) | {"chorus_bundle": 2}).encode()


def lost(found: dict[str, bytes]) -> None:
    del found[next(name for name in found if name != MANIFEST)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda content: b"", "not_a_bundle"),
        (lambda content: b"GIF89a" + bytes(1000), "not_a_bundle"),
        (lambda content: rewritten(content, lambda found: found.pop(MANIFEST)), "not_a_bundle"),
        (lambda content: rewritten(content, lambda found: found.update({"../../evil.py": b"x"})), "not_a_bundle"),
        (lambda content: rewritten(content, lambda found: found.update({MANIFEST: b"{}"})), "not_a_bundle"),
        (lambda content: content[: len(content) // 2], "bundle_damaged"),
        (lambda content: content[:-1], "bundle_damaged"),
        (lambda content: rewritten(content, lost), "bundle_damaged"),
        (lambda content: rewritten(content, newer), "bundle_version"),
    ],
    ids=["empty", "picture", "no manifest", "another file", "no list", "half", "a byte less", "an entry less", "newer"],
)
def test_a_file_that_is_no_sound_bundle_is_refused_whole(
    export, take, ids, cache_folder, leaves_nothing, change, code
) -> None:
    answer = take(change(export(ids).body), cache="never made")
    assert (answer.status, answer.code) == (400, code)
    assert answer.json["error"]["message"].startswith("The uploaded file is not taken: ")


def test_a_damaged_entry_is_refused_alone_and_named(export, take, ids, cache_folder) -> None:
    content = bytearray(export(ids[:3]).body)
    start = content.index(ids[1].encode())
    content[start + 200] ^= 1
    answer = take(bytes(content), cache="one damaged").json
    assert (answer["added"], answer["refused"]) == (2, 1)
    assert answer["reasons"][0]["id"] == ids[1] and "CRC" in answer["reasons"][0]["reason"]
    assert counted(cache_folder / "one damaged") == 2


def test_what_is_no_upload_of_a_bundle_is_refused(ask, export, ids, leaves_nothing) -> None:
    content = export(ids[:1]).body
    for kind in ("application/json", "multipart/form-data; boundary=x", "text/plain", "application/octet-stream"):
        answer = ask("/import", post=content, headers={"Content-Type": kind})
        assert (answer.status, answer.code) == (415, "not_zip"), kind
    assert ask("/import").status in (404, 405)
    assert ask("/import", post=content, headers={**ZIP, "Origin": "http://elsewhere.example"}).status == 403
    assert ask("/import", post=content, headers={**ZIP, "Sec-Fetch-Site": "cross-site"}).status == 403


def test_limits_hold_for_a_bundle(ask, export, take, cache_folder) -> None:
    folder = cache_folder / "large ones"
    space = replace(SPACE, shape=(1, 15, 64, 128, 128))  # 60 MB
    noise = {"final": torch.randn(space.shape, generator=torch.Generator().manual_seed(1))}
    with closing(LocalCache(folder)) as cache:
        made = [cache.put(new_entry(number, space=space, tensors=noise)).id for number in range(3)]
    bundle = export(made, cache=folder.name).body
    assert len(bundle) > 3 * 4 * 15 * 2**20
    assert ask("/limit", cache=None, post={"gigabytes": 0.15}).status == 200
    try:
        answer = take(bundle, cache=CACHE)
        assert (answer.status, answer.code) == (507, "cache_full")
        assert "raise the cache's limit" in answer.json["error"]["message"]
        assert ask("/limit", cache=None, post={"gigabytes": 0.1}).status == 200
        answer = take(bundle, cache=CACHE)
        assert (answer.status, answer.code) == (413, "bundle_too_large")
        assert "in parts" in answer.json["error"]["message"]
    finally:
        assert ask("/limit", cache=None, post={"gigabytes": 20}).status == 200
    assert ask("/stats").json["entries"] == COUNT
    assert ask("/forget", cache=folder.name, post={"ids": made}).status == 200  # 180 MB


def test_an_upload_of_unknown_length_is_taken_and_one_that_breaks_off_leaves_nothing(
    export, ids, face_server: ComfyServer, cache_folder, leaves_nothing
) -> None:
    content = export(ids[:2]).body
    place = urlsplit(face_server.url)
    head = (
        f"POST /chorus/v1/caches/{CACHE}/import HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/zip\r\n"
    )
    with socket.create_connection((place.hostname, place.port), 60) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        for start in range(0, len(content), 5000):
            piece = content[start : start + 5000]
            connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        answer = b""
        while more := connection.recv(65536):
            answer += more
        assert b'"present": 2' in answer
    with socket.create_connection((place.hostname, place.port), 60) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:-100])
        linger = struct.pack("ii", 1, 0)  # reset, as a machine that is switched off
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def test_the_server_answers_while_it_imports(export, take, ask, cache_folder) -> None:
    folder = cache_folder / "a long import"
    space = replace(SPACE, shape=(1, 16, 4, 128, 128))  # 4 MB
    noise = {"final": torch.randn(space.shape, generator=torch.Generator().manual_seed(2))}
    with closing(LocalCache(folder)) as cache:
        made = [cache.put(new_entry(number, space=space, tensors=noise)).id for number in range(30)]
    bundle = export(made, cache=folder.name).body
    answers: list[Answer] = []
    importing = threading.Thread(target=lambda: answers.append(take(bundle, cache="taken long")))
    importing.start()
    meanwhile = 0
    while importing.is_alive():
        assert ask("/status", cache=None).status == 200
        meanwhile += 1
    importing.join()
    assert answers[0].json["added"] == 30
    assert meanwhile >= 5  # one, had the server waited for the import


def test_random_bundles_bring_what_was_exported_or_nothing(export, take, ids, ask, cache_folder) -> None:
    """Whatever is uploaded, the answer is JSON and never a fault of the server's own."""
    chance = random.Random(11)
    content = export(ids[:3]).body
    files = {path.stem: path.read_bytes() for path in (cache_folder / CACHE).rglob("*.safetensors")}
    tail = len(content) - 1500  # where the zip's own lists are
    for trial in range(60):
        broken = bytearray(content)
        for _ in range(chance.randint(1, 6)):
            start = 0 if trial % 2 else tail
            broken[chance.randrange(start, len(broken))] = chance.randrange(256)
        answer = take(bytes(broken), cache="fuzzed")
        assert answer.status in (200, 400, 507), answer.body[:300]
        assert "added" in answer.json or answer.json["error"]["message"]
    with closing(LocalCache(cache_folder / "fuzzed")) as cache:
        for entry in cache.entries():
            assert cache.file(entry.id) == files[entry.id]
    assert ask("/status", cache=None).status == 200
