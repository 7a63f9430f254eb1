"""The cache panel: everything a person can do in it does what it says, on screen and in the cache."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from chorus.cache import LocalCache, Query
from chorus.cache.bundle import read_bundle, write_bundle

from .entries import fill, fill_catalog, new_entry, pack_graph
from .test_results import FIRST, FOUR_STEPS, SIMILAR, STORE

if TYPE_CHECKING:
    from pathlib import Path

COUNT = 12


def count(folder: Path, **query: Any) -> int:
    """How many entries of the cache in `folder` answer."""
    with closing(LocalCache(folder)) as cache:
        return cache.count(Query(**query))


class Panel:
    """The panel of an open page, showing one cache."""

    def __init__(self, face: Any, folder: Path):
        self.face, self.page, self.folder = face, face.page, folder
        face.toggle_panel()
        self.page.locator(".chorus-space").wait_for()
        choose = self.page.get_by_label("Cache", exact=True)
        if choose.is_visible():
            choose.select_option(folder.name)
        self.expect()

    def count(self, **query: Any) -> int:
        return count(self.folder, **query)

    def ids(self, **query: Any) -> list[str]:
        with closing(LocalCache(self.folder)) as cache:
            return [entry.id for entry in cache.entries(query=Query(**query))]

    def expect(self, tiles: int | None = None) -> None:
        """Wait until the grid lists so many entries; as many as the cache has unless told."""
        wanted = self.count() if tiles is None else tiles
        self.page.wait_for_function(
            """(wanted) => {
                const tiles = [...document.querySelectorAll(".chorus-tile:not(.chorus-loading)")]
                if (wanted === 0) return !tiles.length
                return tiles.some((tile) => tile.getAttribute("aria-setsize") === String(wanted))
            }""",
            arg=wanted,
        )

    def prompts(self) -> list[str]:
        """The prompts on screen, in order."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll(".chorus-tile[aria-posinset]:not(.chorus-going)")]
                .sort((a, b) => a.getAttribute("aria-posinset") - b.getAttribute("aria-posinset"))
                .map((tile) => tile.title)"""
        )

    def tile(self, number: int) -> Any:
        return self.page.locator(f'.chorus-tile[title$="take {number}"]')


@pytest.fixture
def panel_of(open_page, cache_folder):
    """`with panel_of("name", **settings) as panel` over a cache of COUNT entries."""
    from contextlib import contextmanager

    @contextmanager
    def opened(name: str, count: int = COUNT, **settings: Any):
        folder = cache_folder / name
        fill(folder, count)
        with open_page(**settings) as face:
            yield Panel(face, folder)

    return opened


def test_search_by_meaning_puts_the_nearest_first(panel_of) -> None:
    with panel_of("meaning") as panel:
        page = panel.page
        page.get_by_label("by meaning").check()
        page.get_by_label("Search prompts").fill("crimson")
        page.wait_for_function(
            "() => document.querySelector('.chorus-tile[aria-posinset=\"1\"]')?.title.includes('red')"
        )
        panel.expect()  # the others follow
        assert all("red" in prompt for prompt in panel.prompts()[: panel.count(words="red")])


def test_search_filters_and_order(panel_of) -> None:
    with panel_of("search") as panel:
        page = panel.page
        first = "(end) => document.querySelector('.chorus-tile[aria-posinset=\"1\"]')?.title.endsWith(end)"
        page.wait_for_function(first, arg=f"take {COUNT - 1}")
        page.get_by_label("Search prompts").fill("YELLOW")
        panel.expect(tiles=3)
        assert all("yellow" in prompt for prompt in panel.prompts())
        page.get_by_label("Search prompts").fill("no such thing")
        page.get_by_text("No entry answers this search.").wait_for()
        page.get_by_role("button", name="Show all entries").click()
        panel.expect()
        page.get_by_label("Order", exact=True).select_option("oldest")
        page.wait_for_function(first, arg="take 0")
        page.get_by_label("Kind", exact=True).select_option("reused")
        page.get_by_text("No entry answers this search.").wait_for()
        page.get_by_label("Kind", exact=True).select_option("full")
        panel.expect()
        page.get_by_label("Size", exact=True).select_option("1x16x4x12x12")
        page.get_by_label("Model", exact=True).select_option("weights-a")
        page.get_by_label("Made when").select_option("day")
        panel.expect()
        page.get_by_label("Made when").select_option("older")
        page.get_by_text("No entry answers this search.").wait_for()


def test_pin_forget_and_undo(panel_of) -> None:
    with panel_of("forget") as panel:
        page = panel.page
        panel.tile(3).click()
        page.get_by_role("button", name="Pin", exact=True).click()
        page.get_by_role("button", name="Unpin").wait_for()
        assert panel.count(pinned=True) == 1
        page.get_by_role("button", name="All entries").click()
        panel.tile(3).locator(".pi-thumbtack").wait_for()

        panel.tile(4).click()
        page.get_by_role("button", name="Forget").click()
        page.get_by_role("button", name="Undo").click()
        panel.tile(4).wait_for()
        assert panel.count() == COUNT

        panel.tile(4).click()
        page.get_by_role("button", name="Forget").click()
        panel.expect(tiles=COUNT - 1)  # after the time to undo
        assert panel.count() == COUNT - 1 and panel.count(words="take 4") == 0


def test_keyboard_alone_is_enough(panel_of) -> None:
    with panel_of("keyboard") as panel:
        page = panel.page
        page.locator('.chorus-tile[aria-posinset="1"]').focus()
        page.keyboard.press("ArrowRight")
        focused = "() => document.activeElement.getAttribute('aria-posinset')"
        assert page.evaluate(focused) == "2"
        page.keyboard.press("End")
        assert page.evaluate(focused) == str(COUNT)
        page.keyboard.press("Home")
        page.keyboard.press("Space")
        page.get_by_text("1 selected").wait_for()
        page.keyboard.press("Control+a")
        page.get_by_text(f"{COUNT} selected").wait_for()
        page.keyboard.press("p")
        page.wait_for_function(f"() => document.querySelectorAll('.chorus-tile .pi-thumbtack').length === {COUNT}")
        assert panel.count(pinned=True) == COUNT
        page.keyboard.press("Escape")
        assert page.locator(".chorus-selection").is_hidden()
        page.locator('.chorus-tile[aria-posinset="1"]').focus()
        page.keyboard.press("Enter")
        page.locator(".chorus-detail .chorus-prompt").wait_for()
        page.keyboard.press("Escape")
        page.locator('.chorus-tile[aria-posinset="1"]').wait_for()
        page.keyboard.press("Control+a")
        page.keyboard.press("Delete")
        page.get_by_text("The cache is empty.").wait_for()
        assert panel.count() == 0


def test_entry_shows_its_family_and_opens_its_workflow(open_page, cache_folder) -> None:
    folder = cache_folder / "family"
    cache = LocalCache(folder)
    try:
        graph = {"nodes": [], "links": [], "version": 0.4, "extra": {"from": "the cache"}}
        parent = cache.put(new_entry(1, tensors={**new_entry(1).tensors, "workflow": pack_graph(graph)}))
        for number in (2, 3):
            cache.put(new_entry(number, parent=parent.id))
    finally:
        cache.close()
    with open_page() as face:
        panel = Panel(face, folder)
        page = face.page
        panel.tile(2).click()
        page.locator(".chorus-relative").click()
        page.locator(".chorus-prompt", has_text="take 1").wait_for()
        assert page.locator(".chorus-relative").count() == 2
        page.get_by_role("button", name="Open its workflow").click()
        page.wait_for_function("() => app.graph.extra?.from === 'the cache'")


def test_next_run_starts_from_the_chosen_entry_and_the_one_after_does_not(open_page, cache_folder) -> None:
    with open_page() as face:
        page = face.page
        for prompt in (FIRST, "A pink cross moves right over an olive background."):
            face.load(FOUR_STEPS, prompt, cache="chosen")
            face.run()
        face.load(FOUR_STEPS, SIMILAR, cache="chosen")
        Panel(face, cache_folder / "chosen")
        page.locator(".chorus-tile", has_text="pink cross").click()
        page.get_by_role("button", name="Start the next run from it").click()
        source = """() => app.graph.nodes.find((node) => node.type === "ChorusCacheLookup")
            .widgets.find((widget) => widget.name === "source").value"""
        assert len(page.evaluate(source)) == 32
        face.run()
        assert page.evaluate(source) == ""
        made = face.store.filter(has_text="of the picture differs")
        assert "cross" in made.locator("del").all_inner_texts()


def test_server_restart_under_an_open_page(panel_of, face_server) -> None:
    with panel_of("restart", count=3) as panel:
        page = panel.page
        address = face_server.url
        face_server.stop()
        page.get_by_label("Search prompts").fill("red")
        page.get_by_text("ComfyUI does not answer").wait_for()
        panel.face.errors.clear()  # the lost connection
        face_server.start(port=int(address.rsplit(":", 1)[1]))
        page.get_by_role("button", name="Try again").click()
        panel.expect(tiles=1)
        panel.face.errors.clear()


def test_ten_thousand_entries_scroll(open_page, cache_folder) -> None:
    folder = cache_folder / "many"
    fill_catalog(folder, 10_000)
    with open_page() as face:
        Panel(face, folder)
        page = face.page
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.locator('.chorus-tile[aria-posinset="1"]').focus()
        page.keyboard.press("End")
        page.locator('.chorus-tile[aria-posinset="10000"][title$="take 0"]').wait_for()
        assert page.locator(".chorus-tile").count() < 80
        assert sum("/entries?" in address for address in asked) <= 4


def test_settings_dialog_sets_limit_and_defaults(open_page, cache_folder) -> None:
    fill(cache_folder / "default", 1)
    with open_page() as face:
        page = face.page
        page.evaluate("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
        page.get_by_text("Chorus", exact=True).first.click()
        field = page.get_by_label("Size limit of each cache in GB")
        field.fill("33")
        field.press("Tab")
        page.get_by_text("Each cache may now grow to 33 GB.").wait_for()
        assert json.loads((cache_folder / "chorus-limit.json").read_text(encoding="utf-8")) == {"limit_gb": 33}
        field.fill("20")
        field.press("Tab")
        page.get_by_text("Each cache may now grow to 20 GB.").wait_for()
        face.set("Chorus.Default.Mode", "read only")
        face.set("Chorus.Default.Threshold", 0.7)
        values = page.evaluate(
            """() => {
                const node = LiteGraph.createNode("ChorusCacheLookup")
                return Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]))
            }"""
        )
        assert (values["mode"], values["threshold"]) == ("read only", 0.7)
        face.set("Chorus.Default.Mode", "read and write")
        face.set("Chorus.Default.Threshold", 0)


# -- one state


def made_from_a_node(face: Any, cache: str) -> None:
    """Run twice, so that the store node shows an entry of this cache."""
    for prompt in (FIRST, SIMILAR):
        face.load(FOUR_STEPS, prompt, cache=cache)
        face.run()
    face.show(STORE[FOUR_STEPS], x=900)  # beside the panel


def open_from_the_node(face: Any) -> None:
    face.store.locator(".chorus-thumb").click()
    face.page.locator(".chorus-detail .chorus-prompt", has_text=FIRST).wait_for()


def test_an_entry_opened_from_a_node_brings_its_cache_and_delete_goes_there(open_page, cache_folder) -> None:
    here, there = cache_folder / "shown before", cache_folder / "of the node"
    fill(here, 3)
    with open_page() as face:
        made_from_a_node(face, there.name)
        page = face.page
        panel = Panel(face, here)
        open_from_the_node(face)
        page.get_by_role("button", name="All entries").click()
        assert page.get_by_label("Cache", exact=True).input_value() == there.name
        panel.expect(tiles=2)
        assert sorted(panel.prompts()) == sorted([FIRST, SIMILAR])
        assert page.locator(".chorus-totals dd").first.inner_text() == "2"
        page.locator(".chorus-tile", has_text=FIRST).focus()
        page.keyboard.press("Delete")
        panel.expect(tiles=1)  # after the time to undo
        assert [count(here), count(there)] == [3, 1]


def test_what_is_not_shown_any_more_is_not_acted_on(open_page, cache_folder) -> None:
    here, there = cache_folder / "left", cache_folder / "come to"
    fill(here, 3)
    with open_page() as face:
        made_from_a_node(face, there.name)
        page = face.page
        panel = Panel(face, here)
        panel.tile(1).locator(".chorus-check").dispatch_event("click")
        actions = ["Pin", "Export", "Forget"]
        toolbar = page.locator(".chorus-selection")
        left = [toolbar.get_by_role("button", name=name, exact=True).element_handle() for name in actions]
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
        open_from_the_node(face)
        for button in left:
            button.evaluate("(button) => button.click()")
        page.locator(".p-toast-message", has_text="which is not shown").nth(2).wait_for()
        assert [address for address in asked if "/chorus/" in address] == []
        assert page.locator(".chorus-undo").inner_text() == ""
        assert [count(here), count(there)] == [3, 2]
        page.get_by_role("button", name="All entries").click()
        panel.expect(tiles=2)
        assert page.locator(".chorus-selection").is_hidden()


def test_an_entry_forgotten_in_one_cache_stays_in_sight_in_another(open_page, cache_folder, tmp_path) -> None:
    one, other = cache_folder / "one of two", cache_folder / "other of two"
    ids = fill(one, 2)
    with closing(LocalCache(one)) as source, closing(LocalCache(other)) as copy:
        write_bundle(source, ids, tmp_path / "both.chorus", lambda done: None)
        read_bundle(copy, tmp_path / "both.chorus", lambda done, of: None)
    with open_page() as face:
        panel = Panel(face, one)
        panel.tile(1).focus()
        face.page.keyboard.press("Delete")
        face.page.get_by_text("Entries forgotten: 1").wait_for()
        face.page.get_by_label("Cache", exact=True).select_option(other.name)
        face.page.locator(f'.chorus-tile img[src*="{quote(other.name)}"]').first.wait_for()
        assert panel.tile(1).is_visible() and face.page.get_by_text("Entries forgotten: 1").is_visible()
        face.page.get_by_text("Entries forgotten: 1").wait_for(state="detached")
        face.page.wait_for_function(
            "async (path) => (await (await app.api.fetchApi(path)).json()).entries === 1",
            arg=f"/chorus/v1/caches/{quote(one.name)}/stats",
        )
        assert [count(one), count(other)] == [1, 2]


# -- events


def test_events_change_an_open_entry_in_place_and_leave_the_keyboard_alone(panel_of, ask_cache) -> None:
    with panel_of("typing") as panel:
        page, face = panel.page, panel.face
        face.load(FOUR_STEPS, FIRST, cache="elsewhere")
        face.show(page.evaluate("() => app.graph.nodes.find(({ type }) => type === 'PrimitiveStringMultiline').id"))
        panel.tile(3).click()
        detail = page.locator(".chorus-detail")
        entry = detail.locator("canvas, .chorus-facts, details").element_handles()
        (entry_id,) = panel.ids(words="take 3")
        detail.locator("summary").click()
        detail.evaluate("(element) => { element.scrollTop = 150 }")
        page.evaluate("() => { window.stolen = 0 }")
        prompt = page.locator("textarea").first
        prompt.fill("")
        prompt.focus()
        page.evaluate("() => document.addEventListener('focusout', () => window.stolen++)")
        for index, word in enumerate(("A ", "fox ", "runs")):
            page.keyboard.type(word[:1])
            pinned = index % 2 == 0
            ask_cache("/pin", cache="typing", post={"ids": [entry_id], "pinned": pinned})
            detail.get_by_role("button", name="Unpin" if pinned else "Pin", exact=True).wait_for()
            page.keyboard.type(word[1:])
        assert prompt.input_value() == "A fox runs"
        assert page.evaluate("() => window.stolen") == 0
        assert detail.evaluate("(element) => element.scrollTop") == 150
        assert all(part.evaluate("(part) => part.isConnected") for part in entry)
        assert detail.locator("details").evaluate("(details) => details.open")


def test_the_keyboards_place_in_the_grid_stays_at_its_entry(panel_of, ask_cache) -> None:
    with panel_of("place") as panel:
        page = panel.page
        panel.tile(COUNT - 3).focus()
        page.locator('.chorus-tile[aria-posinset="1"]').focus()
        page.keyboard.press("ArrowRight")
        focused = "() => document.activeElement.title"
        assert page.evaluate(focused).endswith(f"take {COUNT - 2}")
        with closing(LocalCache(panel.folder)) as cache:  # from elsewhere, in front of all others
            entry = cache.put(new_entry(COUNT))
        ask_cache("/pin", cache="place", post={"ids": [entry.id], "pinned": True})
        panel.tile(COUNT).wait_for()
        assert page.evaluate(focused).endswith(f"take {COUNT - 2}")
        page.keyboard.press("Delete")
        panel.expect(tiles=COUNT)
        assert panel.count(words=f"take {COUNT - 2}") == 0 and panel.count() == COUNT


def test_a_list_that_is_open_in_the_panel_stays_open(panel_of, ask_cache, cache_folder) -> None:
    fill(cache_folder / "a second one", 1)
    with panel_of("open list") as panel:
        page = panel.page
        (entry_id,) = panel.ids(words="take 3")
        for label in ("Cache", "Model", "Size"):
            page.get_by_label(label, exact=True).focus()
            option = page.get_by_label(label, exact=True).locator("option").first.element_handle()
            for pinned in (True, False):
                ask_cache("/pin", cache="open list", post={"ids": [entry_id], "pinned": pinned})
                panel.tile(3).locator(".pi-thumbtack").wait_for(state="attached" if pinned else "detached")
            assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == label
            assert option.evaluate("(option) => option.isConnected")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_can_be_read(panel_of, theme) -> None:
    """Every text of the panel has a contrast of 4.5 : 1 or more (WCAG 2.2, AA)."""
    with panel_of(f"contrast {theme}", theme=theme) as panel:
        panel.tile(3).locator(".chorus-check").dispatch_event("click")
        poor = panel.page.evaluate(CONTRAST)
        assert poor == []
        panel.tile(2).click()
        panel.page.locator(".chorus-facts").wait_for()
        assert panel.page.evaluate(CONTRAST) == []


CONTRAST = """() => {
    const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
    const rgba = (colour) => {
        pen.clearRect(0, 0, 1, 1)
        pen.fillStyle = colour
        pen.fillRect(0, 0, 1, 1)
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
        return [r, g, b, a / 255]
    }
    const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a))
    const behind = (element) => {
        const layers = []
        for (let at = element; at; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor))
        return layers.reduce((below, layer) => over(layer, below), [255, 255, 255])
    }
    const light = (colour) => {
        const [r, g, b] = colour.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const poor = []
    for (const element of document.querySelectorAll(".chorus-panel *")) {
        const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
        if (!words || !element.checkVisibility({ checkVisibilityCSS: true })) continue
        const back = behind(element)
        const [a, b] = [light(over(rgba(getComputedStyle(element).color), back)), light(back)]
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
        if (contrast < 4.5) poor.push(`${element.className} ${element.textContent.slice(0, 30)}: ${contrast}`)
    }
    return poor
}"""
