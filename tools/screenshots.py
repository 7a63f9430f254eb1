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
from playwright.sync_api import FloatRect, Page, sync_playwright

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

TEMPLATE, LOOKUP, STORE = "wan21_t2v_chorus", 9, 16
PROMPTS = (
    "A red circle moves up over a teal background.",
    "A pink cross moves right over an olive background, a cyan square moves left.",
    "A white square moves left over a navy background.",
    "A green triangle moves down over a maroon background.",
    "A yellow circle moves up over a teal background.",
)
FRAME_MS, LONGEST_S, MOST_BYTES = 200, 30, 5_000_000


class Studio:
    """A page with ComfyUI, and its camera."""

    def __init__(self, page: Page):
        self.page = page

    def set(self, name: str, value: object) -> None:
        self.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def load(self, prompt: str, template: str = TEMPLATE, seed: int = 3) -> None:
        self.page.evaluate("(graph) => app.loadGraphData(graph)", small_workflow(template, prompt, seed=seed))

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
    """The first run, the change of a word, the hit, and the album, as an animated WebP."""
    shots: list[Image.Image] = []

    def shoot(times: int = 1) -> None:
        for _ in range(times):
            shots.append(Image.open(io.BytesIO(studio.page.screenshot())).convert("RGB").resize((960, 600)))

    studio.panel(False)
    studio.load("A cyan circle moves up over a teal background.", seed=9)
    studio.frame(LOOKUP, 150, 120)
    shoot(4)
    studio.page.evaluate("() => void (window.chorusDone = false)")
    studio.page.evaluate(
        """() => {
            app.api.addEventListener("execution_success", () => { window.chorusDone = true }, { once: true })
            app.queuePrompt(0)
        }"""
    )
    studio.frame(STORE, 150, 120)
    while not studio.page.evaluate("() => window.chorusDone") and len(shots) < 60:
        shoot()
    studio.page.wait_for_timeout(600)
    shoot(14)
    studio.panel()
    shoot(14)
    write_animation(shots, IMAGES / "recording.webp")


def write_animation(shots: Sequence[Image.Image], file: Path) -> None:
    """Write the shots as an animation no longer and no larger than a README should carry."""
    shots = shots[: LONGEST_S * 1000 // FRAME_MS]
    for quality in (70, 55, 40, 25):
        first, *rest = shots
        first.save(
            file, "WEBP", save_all=True, append_images=rest, duration=FRAME_MS, loop=0, quality=quality, method=4
        )
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
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(url)
            page.wait_for_function(READY, timeout=120_000)
            # Not by add_style_tag, which takes what the host's security policy blocks elsewhere for its own failure.
            page.evaluate(ADD_STYLE, HIDE)
            yield Studio(page)
        finally:
            browser.close()


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
