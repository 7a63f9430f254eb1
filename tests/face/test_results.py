"""What a run did is shown on its nodes: in both renderers and themes, in the language that is set."""

from __future__ import annotations

import pytest

FIRST = "A red circle moves up over a teal background."
SIMILAR = "A yellow circle moves up over a teal background."
UNLIKE = "A pink cross moves right over an olive background, a cyan square moves left."
FOUR_STEPS, STAGES = "wan21_t2v_4steps_chorus", "wan21_t2v_chorus"
STORE = {FOUR_STEPS: 16, STAGES: 16}

# Every look of the result while a run goes on.
WATCH = """() => {
    window.seen = []
    app.api.addEventListener("progress", () => {
        const [shown] = document.querySelectorAll(".chorus-running")
        if (shown) window.seen.push({
            stages: [...shown.children].map((step) => step.className.match(/chorus-stage-(.)/)[1]).join(""),
            done: shown.querySelectorAll(".chorus-done").length,
            overlay: document.querySelector("[data-node=ChorusCacheLookup] .chorus-switch") !== null,
        })
    })
}"""
PAST_THE_STAGES = """() => {
    const sampler = app.graph.nodes.find((node) => node.type === "KSampler")
    const loader = app.graph.nodes.find((node) => node.type === "UNETLoader")
    loader.connect(0, sampler, 0)
}"""
ASK_FOR_NO_CACHE = """async () => {
    const script = performance.getEntriesByType("resource").find(({ name }) => name.endsWith("/lib/routes.js"))
    const { stats } = await import(script.name)
    return stats("nowhere").then(() => null, ({ code, message }) => ({ code, message }))
}"""
PICTURE = """(canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
    return { width: canvas.width, height: canvas.height, colours: new Set(new Uint32Array(pixels.buffer)).size }
}"""


@pytest.mark.parametrize(("vue_nodes", "theme"), [(False, "dark"), (True, "light")])
def test_miss_then_hit_with_its_preview(open_page, vue_nodes, theme) -> None:
    cache = f"seen in {theme}"
    with open_page(vue_nodes=vue_nodes, theme=theme) as face:
        page = face.page
        face.load(FOUR_STEPS, FIRST, cache=cache)
        face.run()
        store = face.store
        assert "Miss" in store.inner_text()
        assert "The cache has nothing to compare with yet" in store.inner_text()

        face.load(FOUR_STEPS, SIMILAR, cache=cache)
        page.evaluate(WATCH)
        face.run()
        face.show(STORE[FOUR_STEPS])
        shown = face.store.filter(has_text="of the picture differs")
        shown.wait_for()
        text = shown.inner_text()
        assert "Hit" in text and "of 4 steps" in text
        assert "measured; full runs compared with: 1" in text
        assert shown.locator("del").all_inner_texts() == ["red"]
        assert shown.locator("ins").all_inner_texts() == ["yellow"]
        assert float(shown.locator("ins").get_attribute("data-weight")) == 1.0
        assert shown.locator(".chorus-step").count() == 4
        canvas = shown.locator("canvas")
        page.wait_for_function("(canvas) => canvas.width > 1", arg=canvas.element_handle())
        picture = canvas.evaluate(PICTURE)
        assert (picture["width"], picture["height"]) == (96, 96) and picture["colours"] > 100

        seen = page.evaluate("window.seen")
        assert seen and len({look["stages"] for look in seen}) == 1
        assert seen[0]["stages"] in ("3213", "3133"), "the first step is a full one, and the last"
        assert all(look["overlay"] for look in seen), "the look-up shows the mask of the look while the run goes on"
        assert [look["done"] for look in seen] == sorted(look["done"] for look in seen)
        assert seen[-1]["done"] == 4


def test_masks_lie_over_the_preview_and_can_be_taken_off(open_page) -> None:
    with open_page() as face:
        page = face.page
        for prompt in (FIRST, SIMILAR):
            face.load(STAGES, prompt, cache="masks")
            face.run()
        face.show(STORE[STAGES])
        shown = face.store.filter(has_text="of the picture differs")
        assert "cost of" in shown.inner_text()
        assert shown.locator(".chorus-step:not(.chorus-stage-3)").count() >= 1
        canvas = shown.locator("canvas")
        page.wait_for_function("(canvas) => canvas.width > 1", arg=canvas.element_handle())
        # All clocks stand still, so that only the masks can change the picture.
        page.evaluate("() => { for (let id = setInterval(() => {}); id; id--) clearInterval(id) }")
        masked = canvas.evaluate("(canvas) => canvas.toDataURL()")
        shown.get_by_label("show what was recomputed").uncheck()
        assert canvas.evaluate("(canvas) => canvas.toDataURL()") != masked
        shown.get_by_label("show what was recomputed").check()
        assert canvas.evaluate("(canvas) => canvas.toDataURL()") == masked


def test_miss_names_the_nearest_and_what_to_change(open_page) -> None:
    with open_page() as face:
        for prompt in (FIRST, UNLIKE):
            face.load(FOUR_STEPS, prompt, cache="nearest")
            face.run()
        face.show(STORE[FOUR_STEPS])
        (shown,) = face.page.locator(".chorus-near").element_handles()[-1:]
        text = shown.inner_text()
        assert "is below" in text and "lower the threshold to" in text
        # Another size: the same prompt in another space.
        face.load(FOUR_STEPS, FIRST, cache="nearest")
        face.page.evaluate(
            """() => {
                const size = app.graph.nodes.find((node) => node.type === "EmptyHunyuanLatentVideo")
                size.widgets.find((widget) => widget.name === "width").value = 128
            }"""
        )
        face.run()
        face.page.locator(".chorus-near", has_text="Set the latent to that size and length.").first.wait_for()


def test_identical_request_costs_nothing(open_page, face_server) -> None:
    with open_page() as face:
        for _ in range(2):
            face.load(FOUR_STEPS, FIRST, cache="identical")
            face.run()
            face_server.forget_outputs()  # else the host's node cache would answer
        text = face.store.filter(has_text="Identical").inner_text()
        assert "nothing had to be computed" in text and "saved" in text


@pytest.mark.parametrize(
    ("language", "miss", "node"),
    [
        ("ja", "ミス", "Chorus キャッシュ保存"),
        ("fr", "Rien trouvé", "Chorus Enregistrer dans le cache"),
    ],
)
def test_nodes_speak_the_language(open_page, language, miss, node) -> None:
    with open_page(language=language) as face:
        face.load(FOUR_STEPS, FIRST, cache=f"language {language}")
        face.run()
        assert miss in face.store.inner_text()
        titles = face.page.evaluate("() => app.graph.nodes.map((node) => node.title)")
        assert node in titles


@pytest.mark.parametrize(
    ("language", "why", "not_kept"),
    [
        ("fr", "la graine non : une autre version est demandée", "rien n’est enregistré : aucune exécution terminée"),
        ("ja", "プロンプトは同じでシードが違います", "保存なし：完了した実行がありません"),
    ],
)
def test_reasons_of_the_server_speak_the_language(open_page, face_server, language, why, not_kept) -> None:
    with open_page(language=language) as face:
        for seed in (1, 2):
            face.load(FOUR_STEPS, FIRST, cache=f"reasons {language}", seed=seed)
            face.run()
            face_server.forget_outputs()
        face.store.filter(has_text=why).wait_for()
        # The sampler takes its model from before the stages: nothing that Chorus could keep.
        face.page.evaluate(PAST_THE_STAGES)
        face.run()
        face.store.filter(has_text=not_kept).wait_for()
        refused = face.page.evaluate(ASK_FOR_NO_CACHE)
        assert refused["code"] == "no_such_cache" and "nowhere" in refused["message"]
        assert "there is no cache" not in refused["message"]


def test_result_is_in_neither_the_workflow_nor_the_prompt(open_page) -> None:
    with open_page() as face:
        face.load(FOUR_STEPS, FIRST, cache="neither")
        before = face.page.evaluate("() => app.graphToPrompt()")
        face.run()
        after = face.page.evaluate("() => app.graphToPrompt()")
        assert after["output"] == before["output"]
        assert "chorus_result" not in str(after["output"])
        values = [node.get("widgets_values") for node in after["workflow"]["nodes"]]
        assert values == [node.get("widgets_values") for node in before["workflow"]["nodes"]]


def test_nothing_is_asked_of_another_host(open_page) -> None:
    with open_page() as face:
        face.elsewhere.clear()  # the host's own default graph looks for its models
        face.load(FOUR_STEPS, FIRST, cache="offline")
        face.run()
        face.toggle_panel()
        face.page.locator(".chorus-tile").first.wait_for()
        assert face.elsewhere == []
