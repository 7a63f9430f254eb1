"""Where the caches are, chosen in ComfyUI's settings: tried first, kept, and not for everybody to choose."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chorus.cache import LocalCache
from tools import demo_graph
from tools.demo_requests import SEED, SOURCE
from tools.server import ComfyServer

from .test_results import FIRST, FOUR_STEPS

if TYPE_CHECKING:
    from tools.postgres import Postgres

PASSWORD = "sesame/öffne%dich"
QUOTED = "sesame%2F%C3%B6ffne%25dich"
DIALOG = "() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')"


def ask(server: ComfyServer, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> tuple[int, Any]:
    """(status, answer) of a route below /chorus/v1; a POST where there is a body."""
    import urllib.error
    import urllib.request

    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{server.url}/chorus/v1{path}",
        data,
        {"Content-Type": "application/json", **headers} if data else dict(headers),
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def render(server: ComfyServer) -> dict[str, Any]:
    graph = demo_graph.build(demo_graph.load_template(), SOURCE.text, SEED)
    client = server.client()
    return client.wait(client.submit(graph.nodes))["outputs"][graph.store]["chorus"][0]


def prompts(folder: Path) -> list[str]:
    cache = LocalCache(folder)
    try:
        return [entry.prompt for entry in cache.entries()]
    finally:
        cache.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyServer]:
    with ComfyServer(arguments=["--cache-none"]) as server:
        yield server


@pytest.fixture
def usual(server: ComfyServer) -> Iterator[None]:
    """The usual place again afterwards."""
    yield
    assert ask(server, "/place", {"folder": "", "url": "", "blobs": ""})[0] == 200


def test_a_folder_chosen_in_the_dialog_takes_the_next_run(open_page, cache_folder, tmp_path) -> None:
    chosen = tmp_path / "a folder" / "of its own"
    with open_page() as face:
        page = face.page
        face.toggle_panel()
        page.evaluate(DIALOG)
        page.get_by_text("Chorus", exact=True).first.click()
        place = page.locator(".chorus-place").filter(has=page.get_by_label("Folder of the caches"))
        field = place.get_by_label("Folder of the caches")
        assert field.input_value() == str(cache_folder)
        try:
            field.fill("not/absolute")
            place.get_by_text("Apply").click()
            place.get_by_text("'not/absolute' is no absolute path").wait_for()
            assert all("400 (Bad Request)" in error for error in face.errors)  # the browser's own line of it
            face.errors.clear()
            field.fill(str(chosen))
            place.get_by_text("Apply").click()
            place.get_by_text("Caches opened from now on are there").wait_for()
            page.keyboard.press("Escape")
            page.locator(".chorus-state", has_text="The cache is empty.").wait_for()
            face.load(FOUR_STEPS, FIRST, cache="moved")
            face.run()
            page.locator(f'.chorus-tile[title="{FIRST}"]').wait_for()  # the panel shows the new place
            assert prompts(chosen / "moved") == [FIRST]
            assert not (cache_folder / "moved").exists()
        finally:
            page.evaluate(
                """() => app.api.fetchApi("/chorus/v1/place", { method: "POST",
                    headers: { "Content-Type": "application/json" }, body: JSON.stringify({ folder: "" }) })"""
            )


def test_who_may_not_choose_sees_the_place_and_why(open_page, cache_folder) -> None:
    with open_page(language="es", extra_http_headers={"X-Forwarded-For": "203.0.113.9"}) as face:
        page = face.page
        page.evaluate(DIALOG)
        page.get_by_text("Chorus", exact=True).first.click()
        place = page.locator(".chorus-place", has_text="CHORUS_CACHE_DIR")
        place.get_by_text("otros podrían elegir dónde escribe").wait_for()
        field = place.get_by_label("Carpeta de las cachés")
        assert field.is_disabled() and field.input_value() == str(cache_folder)
        assert place.get_by_role("button").count() == 0


def test_a_chosen_folder_survives_a_restart(server: ComfyServer, usual, tmp_path) -> None:
    status, answer = ask(server, "/place", {"folder": f" {tmp_path / 'kept'} "})
    assert status == 200 and answer["folder"] == str(tmp_path / "kept") and answer["caches"] == []
    server.restart()
    answer = ask(server, "/status")[1]
    assert answer["place"]["folder"] == {"value": str(tmp_path / "kept"), "fixed": None}
    assert render(server)["outcome"] == "miss"
    assert ask(server, "/caches/default/stats")[1]["entries"] == 1  # waits for what is written
    assert prompts(tmp_path / "kept" / "default") == [SOURCE.text]
    assert not (server.base / "user" / "__chorus" / "default").exists()


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"folder": "below/here"}, 400, "place.relative", "'below/here'"),
        ({"folder": "/a\0b"}, 400, "place.relative", "no absolute path"),
        ({"folder": __file__}, 400, "place.no_folder", "a file"),
        ({"folder": "/sys/chorus"}, 503, "fault.unavailable", "Check the permissions"),
        ({"url": "mysql://u:hush-hush@db/x", "blobs": "file:///tmp"}, 503, "fault.unavailable", "not a postgresql://"),
        ({"url": "postgresql://127.0.0.1:1/x"}, 503, "fault.unavailable", "CHORUS_CACHE_BLOBS is not set"),
        ({"url": "postgresql://127.0.0.1:1/x", "blobs": "/tmp"}, 503, "fault.unavailable", "without a scheme"),
        ({"url": "postgresql://127.0.0.1:1/x", "blobs": "file:///tmp"}, 503, "fault.unavailable", "refused"),
        (
            {"url": f"postgresql://u:{QUOTED}@127.0.0.1:1/x", "blobs": "file:///tmp"},
            400,
            "place.password",
            "set CHORUS_CACHE_URL",
        ),
        ({"url": "postgresql://127.0.0.1:1/x", "blobs": "s3://b/x"}, 503, "fault.unavailable", "a bucket needs"),
        (
            {"url": "postgresql://127.0.0.1:1/x?passfile=/root/.pgpass", "blobs": "file:///tmp"},
            503,
            "fault.unavailable",
            "(passfile)",
        ),
        ({"url": "postgresql://u:sesame/x@127.0.0.1:1/x", "blobs": "file:///tmp"}, 503, "fault.unavailable", "encode"),
        ({"url": "postgresql://u:x@sesame@127.0.0.1/x", "blobs": "file:///tmp"}, 503, "fault.unavailable", "encode"),
        ({"folder": "~nobody-here/x"}, 400, "place.relative", "~nobody-here"),
        ({"folder": "/a" * 3000}, 503, "fault.unavailable", "too long"),
        ({"url": f"postgresql:///x?password={QUOTED}", "blobs": "file:///tmp"}, 400, "place.password", "password"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="/sys")
def test_a_place_that_cannot_be_is_refused_and_nothing_changes(server: ComfyServer, body, status, code, said) -> None:
    before = ask(server, "/status")[1]
    answered, answer = ask(server, "/place", body)
    assert (answered, answer["error"]["said"]["code"]) == (status, code), answer
    assert said in answer["error"]["message"]
    assert ask(server, "/status")[1] == before
    assert_no_secret(server, json.dumps(answer, ensure_ascii=False))


@pytest.mark.parametrize("body", [{}, {"folder": 5}, {"folder": None}, {"tenant": "x"}, {"folder": "/x", "more": ""}])
def test_a_place_that_is_none_is_a_bad_request(server: ComfyServer, body) -> None:
    status, answer = ask(server, "/place", body)
    assert (status, answer["error"]["code"]) == (400, "bad_request") and "folder, url, blobs" in answer["error"][
        "message"
    ]


def assert_no_secret(server: ComfyServer, *texts: str) -> None:
    kept = [file.read_text(encoding="utf-8") for file in (server.base / "user").rglob("*.json")]
    for text in (*texts, *kept, server.log()):
        for secret in (PASSWORD, QUOTED, "sesame", "ffne", "hush"):
            assert secret not in text


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Callable[[str], str]]:
    """`database("role:password")`: the URL of a database of its own, for a role that needs the password."""
    quoted = PASSWORD.replace("'", "''")
    postgres.execute(f"CREATE ROLE chosen LOGIN PASSWORD '{quoted}'", "CREATE DATABASE chosen OWNER chosen")
    postgres.execute("CREATE EXTENSION vector", database="chosen")
    yield lambda user: f"postgresql://{user}@127.0.0.1:{postgres.port}/chosen"
    postgres.execute("DROP DATABASE chosen WITH (FORCE)", "DROP ROLE chosen")


def test_a_shared_cache_can_be_chosen(server: ComfyServer, usual, database, tmp_path) -> None:
    (tmp_path / "share").mkdir()
    body = {"url": database("postgres"), "blobs": (tmp_path / "share").as_uri()}
    status, answer = ask(server, "/place", body)
    assert status == 200, answer
    assert (answer["shared"], answer["caches"], answer["fault"]) == (True, [], None)  # trying it made no cache
    assert render(server)["outcome"] == "miss"
    assert ask(server, "/caches/default/stats")[1]["entries"] == 1
    assert ask(server, "/status")[1]["caches"] == ["default"]
    assert any((tmp_path / "share").rglob("*.safetensors"))
    # Its limit is not this server's to choose.
    status, answer = ask(server, "/limit", {"gigabytes": 5})
    assert (status, answer["error"]["said"]["code"]) == (400, "route.limit_shared")
    assert ask(server, "/status")[1]["limit_fixed"]["code"] == "route.limit_shared"
    # The files of another database are not taken.
    (tmp_path / "other" / "default").mkdir(parents=True)
    (tmp_path / "other" / "default" / "store").write_text("0" * 32)
    status, answer = ask(server, "/place", {**body, "blobs": (tmp_path / "other").as_uri()})
    assert status == 503 and "is not where the files" in answer["error"]["message"]


def test_a_shared_cache_that_is_away_is_said_and_can_be_left(server: ComfyServer, usual, database, tmp_path) -> None:
    (tmp_path / "share").mkdir()
    body = {"url": database("postgres"), "blobs": (tmp_path / "share").as_uri()}
    assert ask(server, "/place", body)[0] == 200
    kept = server.base / "user" / "__chorus" / "place.json"
    kept.write_text(kept.read_text().replace(database("postgres"), "postgresql://127.0.0.1:1/x"))
    status, answer = ask(server, "/status")
    assert status == 200 and answer["caches"] == []
    assert "refused" in answer["fault"]["text"]
    assert ask(server, "/place", {"url": "", "blobs": ""})[1]["fault"] is None


def test_over_the_network_nothing_is_chosen(tmp_path) -> None:
    with ComfyServer(arguments=["--listen", "0.0.0.0"]) as exposed:
        for part in ("folder", "url", "blobs"):
            status, answer = ask(exposed, "/place", {part: str(tmp_path / "theirs")})
            assert (status, answer["error"]["code"]) == (403, "not_allowed")
            assert "listens on 0.0.0.0" in answer["error"]["message"]
            assert ask(exposed, "/status")[1]["place"][part]["fixed"]["code"] == "place.exposed"
        # ComfyUI lets anybody write its own settings: nothing is read from there.
        exposed.client().post("/settings/Chorus.Cache.Folder", str(tmp_path / "theirs"))
        assert ask(exposed, "/status")[1]["folder"] == str(exposed.base / "user" / "__chorus")
        exposed.restart()
        assert ask(exposed, "/status")[1]["folder"] == str(exposed.base / "user" / "__chorus")
    assert not (tmp_path / "theirs").exists()


def test_the_environment_is_stronger_and_says_so(database, tmp_path) -> None:
    (tmp_path / "share").mkdir()
    environment = {
        "CHORUS_CACHE_DIR": str(tmp_path / "fixed"),
        "CHORUS_CACHE_URL": database(f"chosen:{QUOTED}"),
        "CHORUS_CACHE_BLOBS": (tmp_path / "share").as_uri(),
    }
    with ComfyServer(environment=environment) as server:
        status = ask(server, "/status")[1]
        assert status["folder"] == str(tmp_path / "fixed") and status["fault"] is None
        assert status["place"]["url"]["value"].startswith("postgresql://127.0.0.1:")
        for part, variable in (("folder", "DIR"), ("url", "URL"), ("blobs", "BLOBS")):
            fixed = status["place"][part]["fixed"]
            assert (fixed["code"], fixed["values"]) == ("route.fixed", {"variable": f"CHORUS_CACHE_{variable}"})
            answered, answer = ask(server, "/place", {part: str(tmp_path / "other")})
            assert answered == 400 and f"CHORUS_CACHE_{variable}" in answer["error"]["message"]
        assert_no_secret(server, json.dumps(status, ensure_ascii=False))


def test_the_password_of_the_environment_is_for_the_url_of_the_environment_alone(database, tmp_path) -> None:
    (tmp_path / "share").mkdir()
    url, blobs = database("chosen"), (tmp_path / "share").as_uri()
    with ComfyServer(environment={"PGPASSWORD": PASSWORD}) as server:
        status, answer = ask(server, "/place", {"url": url, "blobs": blobs})
        assert (status, answer["error"]["said"]["code"]) == (400, "place.needs_password")
        assert ask(server, "/status")[1]["shared"] is False
        # A place that was chosen before Chorus kept its passwords to itself: a miss that says so, not a lost render.
        kept = server.base / "user" / "__chorus" / "place.json"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps({"url": url, "blobs": blobs}))
        assert "requirement" in ask(server, "/status")[1]["fault"]["text"]
        assert render(server)["outcome"] == "miss"
        assert_no_secret(server)
    environment = {"PGPASSWORD": PASSWORD, "CHORUS_CACHE_URL": url, "CHORUS_CACHE_BLOBS": blobs}
    with ComfyServer(environment=environment) as server:
        assert ask(server, "/status")[1]["fault"] is None
        assert_no_secret(server)


def test_no_answer_or_log_line_has_a_secret_of_the_environment(tmp_path) -> None:
    environment = {
        "CHORUS_CACHE_URL": "postgresql://chorus:sesame/hush@127.0.0.1:1/x",
        "CHORUS_CACHE_BLOBS": "s3://key:sesame/hush@bucket",
        "AWS_ENDPOINT_URL": "http://key:sesame/hush@127.0.0.1:1",
    }
    with ComfyServer(environment=environment) as server:
        answers = [
            ask(server, "/status"),
            ask(server, "/caches/default/stats"),
            ask(server, "/limit", {"gigabytes": 5}),
        ]
        assert [status for status, _ in answers] == [200, 503, 400]
        assert answers[0][1]["place"]["url"]["value"] == "postgresql://…"
        assert render(server)["outcome"] == "miss"
        assert_no_secret(server, json.dumps(answers, ensure_ascii=False))


def test_behind_a_proxy_nothing_is_chosen(server: ComfyServer, tmp_path) -> None:
    proxied = {"X-Forwarded-For": "203.0.113.9"}
    status, answer = ask(server, "/place", {"folder": str(tmp_path / "theirs")}, proxied)
    assert (status, answer["error"]["said"]["code"]) == (403, "place.exposed")
    assert ask(server, "/status", headers=proxied)[1]["place"]["folder"]["fixed"]["code"] == "place.exposed"


def test_the_operator_may_allow_it_over_the_network(tmp_path) -> None:
    environment = {"CHORUS_ALLOW_REMOTE_SETTINGS": "1"}
    with ComfyServer(arguments=["--listen", "0.0.0.0"], environment=environment) as server:
        assert ask(server, "/place", {"folder": str(tmp_path / "allowed")})[1]["folder"] == str(tmp_path / "allowed")
