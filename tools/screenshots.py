"""`make screenshots`: the pictures of docs/tour.md and the recording in the README, taken from the real page.

A real ComfyUI with the small Wan samples a few videos; Chromium shows what a person would see. `--only NAME` takes one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

from .server import ComfyServer
from .small_workflow import small_workflow

CHECKOUT = Path(__file__).resolve().parent.parent
IMAGES = CHECKOUT / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
READY = "() => window.app?.vueAppReady && app.isGraphReady && app.extensionManager.spinner === false"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.47.12", "Comfy.Minimap.Visible": False}
RUN = """() => new Promise((resolve) => {
    const ended = () => { app.api.removeEventListener("execution_success", ended); resolve() }
    app.api.addEventListener("execution_success", ended)
    app.queuePrompt(0)
})"""
ADD_STYLE = """(css) => {
    const style = document.createElement("style")
    style.textContent = css
    document.head.append(style)
}"""
HIDE = "* { caret-color: transparent !important } .p-toast, [data-testid='queue-overlay'] { display: none !important }"

TEMPLATE, PROMPT, STORE = "wan21_t2v_chorus", 4, 16
PROMPTS = (
    "A red circle moves up over a teal background.",
    "A pink cross moves right over an olive background, a cyan square moves left.",
    "A white square moves left over a navy background.",
    "A green triangle moves down over a maroon background.",
    "A yellow circle moves up over a teal background.",
)
CORNER = (150, 120)  # a place that ComfyUI's bars do not cover
FRAME_MS, MOST_SHOTS, LONGEST_S, MOST_BYTES = 200, 300, 36, 5_000_000


class Studio:
    """A page with ComfyUI, and its camera."""

    def __init__(self, page: Page):
        self.page = page

    def set(self, name: str, value: object) -> None:
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def load(self, prompt: str, template: str = TEMPLATE, seed: int = 3) -> None:
        self.page.evaluate("(graph) => app.loadGraphData(graph)", small_workflow(template, prompt, seed=seed))

    def write(self, prompt: str) -> None:
        """Put a text in the node that holds the prompt."""
        self.page.evaluate(
            "([id, text]) => { app.graph.getNodeById(id).widgets[0].value = text; app.canvas.setDirty(true, true) }",
            [PROMPT, prompt],
        )

    def run(self) -> None:
        self.page.evaluate(RUN)
        self.page.wait_for_timeout(800)

    def frame(self, node: int, left: int = 60, top: int = 90) -> None:
        """Put a node at a place of the page, at its natural size."""
        self.page.evaluate(
            """([id, left, top]) => {
                const [x, y] = app.graph.getNodeById(id).pos
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [left - x, top - y]
                app.canvas.setDirty(true, true)
            }""",
            [node, left, top],
        )
        self.page.wait_for_timeout(700)

    def node(self, node: int, name: str, height: int | None = None) -> None:
        """A picture of one node."""
        self.frame(node, 120, 130)
        width, tall = self.page.evaluate("(id) => [...app.graph.getNodeById(id).size]", node)
        clip: FloatRect = {"x": 106, "y": 84, "width": width + 28, "height": min(height or 10_000, tall + 62)}
        self.page.screenshot(path=IMAGES / f"{name}.png", clip=clip)

    def panel(self, open_it: bool = True) -> None:
        if bool(self.page.locator(".chorus-panel").count()) != open_it:
            self.page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('chorus')")
        if open_it:
            self.page.locator(".chorus-tile").first.wait_for()
        self.page.wait_for_timeout(900)

    def sidebar(self, name: str) -> None:
        """A picture of the panel."""
        box = self.page.locator(".chorus-panel").bounding_box()
        assert box is not None
        self.page.screenshot(path=IMAGES / f"{name}.png", clip={**box, "height": min(box["height"], 820)})


def fill(studio: Studio) -> None:
    for prompt in PROMPTS:
        studio.load(prompt)
        studio.run()


def tour_hit(studio: Studio) -> None:
    studio.load(PROMPTS[-1])
    studio.load("A blue circle moves up over a teal background.")
    studio.run()
    studio.node(STORE, "tour_hit")


def tour_miss(studio: Studio) -> None:
    studio.load("A purple star moves down over a grey background.")
    studio.run()
    studio.node(STORE, "tour_miss")


def tour_panel(studio: Studio) -> None:
    studio.panel()
    studio.sidebar("tour_panel")


def tour_entry(studio: Studio) -> None:
    studio.panel()
    studio.page.locator(".chorus-tile", has_text="A red circle").first.click()
    studio.page.locator(".chorus-facts").wait_for()
    studio.page.wait_for_timeout(900)
    studio.sidebar("tour_entry")
    studio.page.keyboard.press("Escape")


def tour_vue_light(studio: Studio) -> None:
    studio.panel(False)
    studio.set("Comfy.VueNodes.Enabled", True)
    studio.set("Comfy.ColorPalette", "light")
    studio.load("A purple circle moves up over a teal background.")
    studio.run()
    studio.node(STORE, "tour_nodes2_light")
    studio.set("Comfy.VueNodes.Enabled", False)
    studio.set("Comfy.ColorPalette", "dark")


def recording(studio: Studio) -> None:
    """A run in full, a word changed, the hit, and the album, as an animated WebP of half a minute."""
    with opened(studio.page.context.browser, studio.page.url) as fresh:  # a page with one workflow open
        film = Film(fresh)
        fresh.load("a green cross moves left over a gray background", seed=9)
        fresh.frame(PROMPT, *CORNER)
        film.hold(3.0)
        film.queue(STORE)
        film.hold(3.0)
        fresh.frame(PROMPT, *CORNER)
        for colour in ("gre", "", "bl", "blue"):
            fresh.write(f"a {colour} cross moves left over a gray background")
            film.shoot(350)
        film.hold(1.0)
        film.queue(PROMPT)
        film.hold(2.5)
        fresh.frame(STORE, *CORNER)
        film.roll(7.0)
        fresh.panel()
        film.roll(2.0)
        fresh.page.get_by_label("by meaning").check()
        search = fresh.page.get_by_label("Search prompts")
        for text in ("a", "an az", "an azure", "an azure plus"):
            search.fill(text)
            film.shoot(350)
        fresh.page.wait_for_timeout(900)
        film.hold(2.0)
        fresh.page.locator(".chorus-tile").first.click()
        fresh.page.locator(".chorus-facts").wait_for()
        fresh.page.wait_for_timeout(600)
        film.roll(4.5)
        film.write(IMAGES / "recording.webp")


class Film:
    """Shots of a page, each for some milliseconds."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.shots: list[Image.Image] = []
        self.lengths: list[int] = []

    def shoot(self, length: int = FRAME_MS) -> None:
        shot = Image.open(io.BytesIO(self.studio.page.screenshot())).convert("RGB").resize((960, 600))
        self.shots.append(shot)
        self.lengths.append(length)

    def hold(self, seconds: float) -> None:
        """One shot of a still picture, shown for some time."""
        self.shoot(round(1000 * seconds))

    def roll(self, seconds: float) -> None:
        """Shots of a moving picture, one every FRAME_MS."""
        for _ in range(round(1000 * seconds / FRAME_MS)):
            self.shoot()
            self.studio.page.wait_for_timeout(FRAME_MS / 2)

    def queue(self, node: int) -> None:
        """Queue the graph, and shoot a node until it has run."""
        self.studio.frame(node, *CORNER)
        self.studio.page.evaluate(
            """() => {
                window.chorusDone = false
                app.api.addEventListener("execution_success", () => { window.chorusDone = true }, { once: true })
                app.queuePrompt(0)
            }"""
        )
        while not self.studio.page.evaluate("() => window.chorusDone"):
            self.shoot()
            if len(self.shots) > MOST_SHOTS:
                raise SystemExit("a run for the recording does not end")
        self.studio.page.wait_for_timeout(800)

    def write(self, file: Path) -> None:
        """Write the shots as an animation no longer and no larger than a README should carry."""
        seconds = sum(self.lengths) / 1000
        if seconds > LONGEST_S:
            raise SystemExit(f"the recording takes {seconds:.0f} s, {LONGEST_S} are allowed: hold its shots for less")
        first, *rest = self.shots
        for quality in (70, 55, 40, 25):
            options = {"duration": self.lengths, "loop": 0, "quality": quality, "method": 4}
            first.save(file, "WEBP", save_all=True, append_images=rest, **options)
            if file.stat().st_size <= MOST_BYTES:
                return
        raise SystemExit(f"{file} has {file.stat().st_size:,} bytes, {MOST_BYTES:,} are allowed: take fewer shots")


SCENES: tuple[Callable[[Studio], None], ...] = (
    tour_hit,
    tour_miss,
    tour_panel,
    tour_entry,
    tour_vue_light,
    recording,
)


@contextmanager
def studio_on(url: str) -> Iterator[Studio]:
    path = os.environ.get("CHORUS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit("no browser: install chromium (apt-get install chromium), or name one in CHORUS_BROWSER")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            with opened(browser, url) as studio:
                yield studio
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser | None, url: str) -> Iterator[Studio]:
    """ComfyUI in a page that knows of no other."""
    assert browser is not None
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(url)
    page.wait_for_function(READY, timeout=120_000)
    # Not by add_style_tag, which takes what the host's security policy blocks elsewhere for its own failure.
    page.evaluate(ADD_STYLE, HIDE)
    yield Studio(page)
    page.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__)
    parser.add_argument("--only", choices=[scene.__name__ for scene in SCENES], help="take one picture")
    only = parser.parse_args(arguments).only
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chorus-screenshots-", ignore_cleanup_errors=True) as folder:
        settings = Path(folder) / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
        with ComfyServer(Path(folder), arguments=["--cache-classic"]) as server, studio_on(server.url) as studio:
            fill(studio)
            for scene in SCENES:
                if only in (None, scene.__name__):
                    scene(studio)
                    print(f"took {scene.__name__}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
