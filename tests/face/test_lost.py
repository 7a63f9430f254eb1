"""What could not be kept is said: a toast with what to do, and a line on the node, in the page's language."""

from __future__ import annotations

from chorus.cache import LocalCache

from .entries import fill
from .test_results import FIRST, FOUR_STEPS, SIMILAR, STORE, UNLIKE

TOAST = ".p-toast-message"


def prompts(folder) -> set[str]:
    cache = LocalCache(folder)
    try:
        return {entry.prompt for entry in cache.entries()}
    finally:
        cache.close()


def test_a_full_disk_is_told_and_marked_and_passes(open_page, small_disk) -> None:
    disk = small_disk("full disk", 8)
    with open_page(language="fr") as face:
        face.load(FOUR_STEPS, FIRST, cache="full disk")
        face.run()
        face.page.wait_for_function(
            "async (folder) => (await (await app.api.fetchApi(folder)).json()).entries === 1",
            arg="/chorus/v1/caches/full%20disk/stats",
        )
        disk.fill()
        face.load(FOUR_STEPS, UNLIKE, cache="full disk")
        face.run()
        toast = face.page.locator(TOAST, has_text="Chorus n’a pas pu conserver un résultat")
        toast.wait_for()
        assert "le disque est plein" in toast.inner_text() and "Libérez de la place" in toast.inner_text()
        assert "full disk" in toast.inner_text()
        face.show(STORE[FOUR_STEPS])
        line = face.page.locator(".chorus-lost")
        line.wait_for()
        assert line.inner_text().startswith("non conservé : le disque est plein")
        assert "Libérez de la place" in line.get_attribute("title")

        disk.empty()
        assert prompts(disk.folder) == {FIRST}
        face.load(FOUR_STEPS, SIMILAR, cache="full disk")
        face.run()
        face.store.filter(has_text="diffère").wait_for()
        assert face.page.locator(".chorus-lost").count() == 0
    assert prompts(disk.folder) == {FIRST, SIMILAR}


def test_a_disk_that_became_read_only_is_told(open_page, small_disk) -> None:
    disk = small_disk("read only disk", 8)
    fill(disk.folder, 2)
    disk.remount("ro")
    with open_page() as face:
        face.load(FOUR_STEPS, FIRST, cache="read only disk")
        face.run()
        toast = face.page.locator(TOAST, has_text="Chorus could not keep a result")
        toast.wait_for()
        assert "it may not be written to" in toast.inner_text() and "Check the permissions" in toast.inner_text()
        face.page.locator(".chorus-lost", has_text="not kept: it may not be written to").wait_for()
    assert len(prompts(disk.folder)) == 2
