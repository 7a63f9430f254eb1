"""A page with ComfyUI's real frontend in Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, sync_playwright

if TYPE_CHECKING:
    from tools.server import ComfyServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
READY = "() => window.app?.vueAppReady && app.isGraphReady && app.extensionManager.spinner === false"


def browser_path() -> str:
    path = os.environ.get("CHORUS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail("no browser: install chromium (apt-get install chromium), or name one in CHORUS_BROWSER")
    return path


@pytest.fixture(scope="module")  # while it is open, nothing else in this process can run an event loop
def page(comfy_server: ComfyServer) -> Iterator[Page]:
    with sync_playwright() as playwright:
        # Without a sandbox, since CI runs as root; the only page it opens is our own server's.
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            page.goto(comfy_server.url)
            page.wait_for_function(READY, timeout=120_000)
            yield page
        finally:
            browser.close()
