"""Bundles in the panel: entries go out as a file and come back, and what cannot come in is explained."""

from __future__ import annotations

import io
import json
import re
import zipfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from chorus.cache import LocalCache
from chorus.cache.bundle import MANIFEST, write_bundle

from .conftest import SETTINGS, Face
from .entries import fill, unreadable
from .test_panel import CONTRAST, Panel

COUNT = 5
REFUSED = "the server responded with a status of"  # Chromium's own line for an answer that is an error


@pytest.fixture
def panel_of(open_page, cache_folder):
    """`with panel_of("name", **settings) as panel` over a cache of COUNT entries, all with previews."""

    @contextmanager
    def opened(name: str, **settings: Any):
        folder = cache_folder / name
        ids = fill(folder, COUNT)
        with open_page(**settings) as face:
            face.page.on("filechooser", lambda chooser: None)  # from the start: a key opens it faster than one waits
            panel = Panel(face, folder)
            face.page.locator(f'[data-id="{ids[-1]}"]').wait_for()  # and not those of another cache, as many as here
            yield panel

    return opened


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle of three entries that no cache of these tests has."""
    path = tmp_path / "from a friend.chorus"
    ids = fill(tmp_path / "friend", 3, prompt="A pink cube spins, from a friend")
    with closing(LocalCache(tmp_path / "friend")) as cache:
        write_bundle(cache, ids, path, lambda done: None)
    return path


def select(panel: Panel, *numbers: int) -> None:
    for number in numbers:
        panel.tile(number).locator(".chorus-check").dispatch_event("click")
    panel.page.get_by_text(f"{len(numbers)} selected").wait_for()


def import_file(panel: Panel, file: Any) -> None:
    with panel.page.expect_file_chooser() as chooser:
        panel.page.get_by_role("button", name="Import…").click()
    chooser.value.set_files(file)


def said(panel: Panel, text: str) -> str:
    """What the panel's live region says, once `text` is part of it."""
    region = panel.page.locator('.chorus-transfer [role="status"]', has_text=text)
    region.wait_for()
    return region.inner_text()


def expect_refusals(panel: Panel, count: int) -> None:
    """Drop the browser's own lines about so many answers that were errors, and only those."""
    assert [REFUSED in error for error in panel.face.errors] == [True] * count
    panel.face.errors.clear()


def prompts_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as file:
        return sorted(entry["prompt"] for entry in json.loads(file.read(MANIFEST))["entries"])


def upload(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def test_entries_that_were_exported_and_forgotten_come_back(panel_of, tmp_path) -> None:
    with panel_of("out and in") as panel:
        page = panel.page
        select(panel, 1, 3)
        with page.expect_download() as download:
            page.get_by_role("toolbar").get_by_role("button", name="Export").click()
        assert download.value.suggested_filename == "chorus-out and in-2.chorus"
        path = tmp_path / "two.chorus"
        download.value.save_as(path)
        assert [prompt[-1] for prompt in prompts_in(path)] == ["3", "1"]  # blue, yellow
        assert re.search(r"Entries exported: 2 \(\d+ kB\)", said(panel, "exported"))

        page.get_by_role("toolbar").get_by_role("button", name="Forget").click()
        page.get_by_text("Entries forgotten: 2").wait_for()
        import_file(panel, path)  # before the time to undo is over
        assert "two.chorus: new entries 2, already there 0, refused 0." in said(panel, "new entries")
        panel.expect(tiles=COUNT)
        panel.tile(3).wait_for()
        assert panel.count() == COUNT
        import_file(panel, path)
        said(panel, "new entries 0, already there 2, refused 0.")
        page.locator(".chorus-transfer").get_by_role("button", name="Close").click()
        assert page.locator(".chorus-said").inner_text() == ""
        assert page.evaluate("() => document.activeElement.textContent") == "Import…"


def test_one_entry_is_exported_from_its_own_page(panel_of, tmp_path) -> None:
    with panel_of("one out") as panel:
        page = panel.page
        panel.tile(2).click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        download.value.save_as(tmp_path / "one.chorus")
        assert [prompt[-1] for prompt in prompts_in(tmp_path / "one.chorus")] == ["2"]
        said(panel, "Entries exported: 1")


def test_an_entry_that_went_meanwhile_is_told(panel_of, tmp_path) -> None:
    with panel_of("meanwhile") as panel:
        select(panel, 0, 4)
        with closing(LocalCache(panel.folder)) as cache:
            (gone,) = (entry.id for entry in cache.entries() if entry.prompt.endswith("take 0"))
            cache.forget(gone)
        with panel.page.expect_download():
            panel.page.get_by_role("toolbar").get_by_role("button", name="Export").click()
        assert "not in the file: 1" in said(panel, "Entries exported: 1")


def test_keys_alone_export_and_import(panel_of, bundle) -> None:
    with panel_of("keys") as panel:
        page = panel.page
        page.get_by_role("button", name="Import…").focus()
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(bundle)
        said(panel, "from a friend.chorus: new entries 3")
        panel.expect(tiles=COUNT + 3)
        page.locator('.chorus-tile[aria-posinset="1"]').focus()
        page.keyboard.press("Control+a")
        page.get_by_text(f"{COUNT + 3} selected").wait_for()
        page.get_by_role("toolbar").get_by_role("button", name="Export").focus()
        with page.expect_download():
            page.keyboard.press("Enter")
        said(panel, f"Entries exported: {COUNT + 3}")


def test_a_bundle_dropped_on_the_panel_is_imported_and_opens_no_graph(panel_of, bundle) -> None:
    with panel_of("dropped") as panel:
        page = panel.page
        page.evaluate("() => { window.dropped = 0; document.addEventListener('drop', () => window.dropped++) }")
        drop = """([bytes, names, kind]) => {
            const files = new DataTransfer()
            for (const name of names) files.items.add(new File([new Uint8Array(bytes)], name))
            const event = new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true })
            document.querySelector(".chorus-grid").dispatchEvent(event)
        }"""
        content = list(bundle.read_bytes())
        page.evaluate(drop, [content, ["a.chorus"], "dragover"])
        assert "chorus-dropping" in page.locator(".chorus-panel").get_attribute("class")
        page.evaluate(drop, [content, ["a.chorus", "b.chorus"], "drop"])
        said(panel, "one file at a time")
        assert panel.count() == COUNT
        page.evaluate(drop, [content, ["a.chorus"], "drop"])
        said(panel, "a.chorus: new entries 3")
        assert page.evaluate("() => window.dropped") == 0
        assert "chorus-dropping" not in page.locator(".chorus-panel").get_attribute("class")


def test_open_pages_are_told_how_far_an_import_is(panel_of, bundle) -> None:
    with panel_of("told") as panel:
        panel.page.evaluate(
            """() => {
                window.told = []
                app.api.addEventListener("chorus.import", ({ detail }) => window.told.push(detail))
            }"""
        )
        import_file(panel, bundle)
        said(panel, "new entries 3")
        told = panel.page.evaluate("() => window.told")
        assert told[0] == {"cache": "told", "done": 1, "of": 3}
        assert [one["done"] for one in told] == sorted({one["done"] for one in told})


def test_the_first_cache_of_all_can_come_from_a_bundle(browser, fresh_comfy_server, bundle) -> None:
    settings = fresh_comfy_server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        face = Face(context.new_page(), fresh_comfy_server.url)
        face.page.on("filechooser", lambda chooser: None)
        face.open()
        face.toggle_panel()
        face.page.get_by_text("The cache is empty.").wait_for()
        with face.page.expect_file_chooser() as chooser:
            face.page.get_by_role("button", name="Import…").click()
        chooser.value.set_files(bundle)
        face.page.get_by_text("new entries 3").wait_for()
        face.page.locator(".chorus-tile", has_text="A pink cube").nth(2).wait_for()
        face.assert_clean()
    finally:
        context.close()
    with closing(LocalCache(fresh_comfy_server.base / "user" / "__chorus" / "default")) as cache:
        assert cache.count() == 3


def newer(content: bytes) -> bytes:
    """The bundle as a later version might write it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            new.writestr(name, text.replace(b'"chorus_bundle": 1', b'"chorus_bundle": 9') if name == MANIFEST else text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "advice", "more"),
    [
        (lambda content: b"GIF89a" + content, "Choose a file that was exported from a Chorus cache.", "is no bundle"),
        (lambda content: content[:-30], "download it again", "cannot be read as a zip file"),
        (newer, "Update Chorus", "version 9"),
    ],
    ids=["picture", "cut", "newer"],
)
def test_a_broken_file_is_explained_and_changes_nothing(panel_of, bundle, change, advice, more) -> None:
    with panel_of(f"broken {more}") as panel:
        import_file(panel, upload("broken.chorus", change(bundle.read_bytes())))
        text = said(panel, advice)
        assert more in text
        assert panel.page.get_by_role("alert").count() == 1
        expect_refusals(panel, 1)
        assert panel.count() == COUNT
        import_file(panel, bundle)  # and the panel goes on
        said(panel, "new entries 3")


def test_a_damaged_entry_is_refused_with_its_reason(panel_of, bundle) -> None:
    with panel_of("one damaged in it") as panel:
        content = bytearray(bundle.read_bytes())
        content[2000] ^= 1
        import_file(panel, upload("flipped.chorus", bytes(content)))
        said(panel, "new entries 2, already there 0, refused 1.")
        panel.page.get_by_text("Why entries were refused").click()
        assert "CRC" in panel.page.locator(".chorus-said li").inner_text()


def test_an_upload_can_be_cancelled(panel_of, bundle) -> None:
    with panel_of("cancelled") as panel:
        page = panel.page
        slow = page.context.new_cdp_session(page)
        rates = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
        slow.send("Network.enable")
        slow.send("Network.emulateNetworkConditions", rates)
        large = bundle.read_bytes() + bytes(5_000_000)
        import_file(panel, upload("large.chorus", large))
        said(panel, "Uploading large.chorus")
        page.locator(".chorus-work", has_text=re.compile(r"of 4\.\d MB")).wait_for()
        select(panel, 1)
        page.get_by_role("toolbar").get_by_role("button", name="Export").click()
        said(panel, "Wait for it, or cancel it.")
        page.get_by_role("button", name="Cancel", exact=True).click()
        said(panel, "Cancelled. Nothing has changed.")
        assert page.locator(".chorus-work").is_hidden()
        assert panel.count() == COUNT


def test_an_export_that_breaks_off_is_told(panel_of) -> None:
    with panel_of("breaks off in the panel") as panel:
        select(panel, 4, 2)
        with closing(LocalCache(panel.folder)) as cache:
            (second,) = (entry.id for entry in cache.entries() if entry.prompt.endswith("take 2"))
        with unreadable(panel.folder, second):
            panel.page.get_by_role("toolbar").get_by_role("button", name="Export").click()
            said(panel, "broke off before its end")
        panel.face.errors.clear()  # the browser's own line about the connection


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_what_transfers_say_can_be_read(panel_of, bundle, theme) -> None:
    """Contrast of 4.5 : 1 or more (WCAG 2.2, AA), of results, errors and while it runs."""
    with panel_of(f"contrast of bundles {theme}", theme=theme) as panel:
        import_file(panel, bundle)
        said(panel, "new entries")
        assert panel.page.evaluate(CONTRAST) == []
        import_file(panel, upload("no.chorus", b"no"))
        said(panel, "This is no bundle")
        assert panel.page.evaluate(CONTRAST) == []
        expect_refusals(panel, 1)
        panel.page.evaluate("() => document.querySelector('.chorus-work').hidden = false")
        assert panel.page.evaluate(CONTRAST) == []
