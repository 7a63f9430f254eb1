"""A sampler's menu adds Chorus to the graph, wired as the templates are, and takes it away without a trace."""

from __future__ import annotations

from typing import Any

import pytest

from tools.demo_graph import LENGTH, MODEL, SIDE

FIRST = "A red circle moves up over a teal background."
SIMILAR = "A yellow circle moves up over a teal background."

# Builds graphs as people do, node by node, and tells them apart by what matters.
TOOLS = """([model, side, length, prompt]) => {
    const add = (type, values = {}, links = {}) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        node.pos = [260 * app.graph.nodes.length, 100]
        for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value
        for (const [name, [from, slot]] of Object.entries(links)) from.connect(slot, node, name)
        return node
    }
    const base = (prompt) => {
        const clip = add("SmallWanTextEncoderLoader")
        return {
            vae: add("SmallWanVAELoader"),
            model: add("UNETLoader", { unet_name: model }),
            positive: add("CLIPTextEncode", { text: prompt }, { clip: [clip, 0] }),
            negative: add("CLIPTextEncode", { text: "" }, { clip: [clip, 0] }),
            latent: add("EmptyHunyuanLatentVideo", { width: side, height: side, length }),
        }
    }
    const shown = ({ vae }, sampler) => {
        const decoded = add("VAEDecode", {}, { samples: [sampler, 0], vae: [vae, 0] })
        add("PreviewImage", {}, { images: [decoded, 0] })
        return sampler
    }
    const conds = ({ positive, negative }) => ({ positive: [positive, 0], negative: [negative, 0] })
    const few = { steps: 4, cfg: 1, sampler_name: "euler", scheduler: "simple" }
    window.made = {
        KSampler() {
            const b = base(prompt)
            const links = { model: [b.model, 0], latent_image: [b.latent, 0], ...conds(b) }
            return shown(b, add("KSampler", { ...few, seed: 7 }, links))
        },
        KSamplerAdvanced() {
            const b = base(prompt)
            const second = add("UNETLoader", { unet_name: model })
            const half = (from, values, latent) =>
                add(
                    "KSamplerAdvanced",
                    { ...few, noise_seed: 7, ...values },
                    { model: [from, 0], latent_image: [latent, 0], ...conds(b) },
                )
            const first = half(b.model, { end_at_step: 2, return_with_leftover_noise: "enable" }, b.latent)
            shown(b, half(second, { add_noise: "disable", start_at_step: 2 }, first))
            return first
        },
        SamplerCustomAdvanced() {
            const b = base(prompt)
            const links = {
                noise: [add("RandomNoise", { noise_seed: 7 }), 0],
                guider: [add("CFGGuider", { cfg: 1 }, { model: [b.model, 0], ...conds(b) }), 0],
                sampler: [add("KSamplerSelect", { sampler_name: "euler" }), 0],
                sigmas: [add("BasicScheduler", { scheduler: "simple", steps: 4 }, { model: [b.model, 0] }), 0],
                latent_image: [b.latent, 0],
            }
            return shown(b, add("SamplerCustomAdvanced", {}, links))
        },
        twice() { // a second run, from noise again, over the first one's result
            const b = base(prompt)
            const links = (latent) => ({ model: [b.model, 0], latent_image: [latent, 0], ...conds(b) })
            const first = add("KSamplerAdvanced", { ...few, noise_seed: 7 }, links(b.latent))
            shown(b, add("KSamplerAdvanced", { ...few, noise_seed: 8, start_at_step: 2 }, links(first)))
            return first
        },
    }
    window.told = (graph = app.graph) => {
        const { nodes, links } = graph.serialize()
        const ends = (l) => {
            const named = ["origin_id", "origin_slot", "target_id", "target_slot", "type"]
            return (Array.isArray(l) ? l.slice(1) : named.map((name) => l[name])).join()
        }
        const slots = (all) => (all ?? []).map(({ name, type }) => [name, type])
        const node = (n) => [n.id, n.type, n.title, n.pos, n.size, n.widgets_values, slots(n.inputs), slots(n.outputs)]
        const by = (a, b) => a[0] - b[0]
        return JSON.stringify([nodes.map(node).sort(by), links.map(ends).sort()])
    }
    window.choose = (node, text) => {
        const [item] = app.collectNodeMenuItems(node).filter((item) => item?.content === text)
        if (!item) return false
        item.callback()
        return true
    }
}"""
MAKE = "(kind) => { app.graph.clear(); window.sampler = made[kind]() }"
CHOOSE = "(text) => choose(sampler, text)"
QUEUED = """async () => {
    const { output } = await app.graphToPrompt()
    const kinds = Object.fromEntries(Object.entries(output).map(([id, node]) => [id, node.class_type]))
    const named = (value) => (Array.isArray(value) && value.length === 2 ? [kinds[value[0]], value[1]] : value)
    return Object.values(output).map(({ class_type, inputs }) => ({
        type: class_type,
        inputs: Object.fromEntries(Object.entries(inputs).map(([name, value]) => [name, named(value)])),
    }))
}"""
TYPE = """(text) => {
    const node = app.graph.nodes.find((node) => node.type === "PrimitiveStringMultiline")
    node.widgets[0].value = text
}"""
CACHE = """(name) => {
    const of = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? of(node.subgraph) : [])])
    const chorus = of(app.graph).find((node) => node.type === "Chorus")
    for (const [key, value] of [["cache_name", name], ["embedding", "conditioning"]])
        chorus.widgets.find((widget) => widget.name === key).value = value
}"""
KINDS = ("KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced")


def prepare(page: Any, kind: str) -> None:
    page.evaluate(TOOLS, [MODEL, SIDE, LENGTH, FIRST])
    page.evaluate(MAKE, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_adding_and_removing_leaves_the_graph_as_it_was(open_page, kind) -> None:
    with open_page() as face:
        page = face.page
        prepare(page, kind)
        before = page.evaluate("told()")
        assert page.evaluate(CHOOSE, "Add Chorus")
        assert page.evaluate("told()") != before
        assert not page.evaluate(CHOOSE, "Add Chorus"), "it is there already"
        assert page.evaluate(CHOOSE, "Remove Chorus")
        assert page.evaluate("told()") == before


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_is_wired_and_works(open_page, kind) -> None:
    with open_page() as face:
        page = face.page
        prepare(page, kind)
        page.evaluate(CHOOSE, "Add Chorus")
        page.evaluate(CACHE, f"gesture {kind}")
        queued = page.evaluate(QUEUED)
        (chorus,) = (node["inputs"] for node in queued if node["type"] == "Chorus")
        wanted = {
            "model": ["UNETLoader", 0],
            "latent": ["EmptyHunyuanLatentVideo", 0],
            "positive": ["CLIPTextEncode", 0],
            "clip": ["SmallWanTextEncoderLoader", 0],
            "prompt": ["PrimitiveStringMultiline", 0],
        }
        assert {name: chorus.get(name) for name in wanted} == wanted
        assert ("low_noise_model" in chorus) == (kind == "KSamplerAdvanced")
        (store,) = (node["inputs"] for node in queued if node["type"] == "ChorusCacheStore")
        assert store["latent"] == [kind, 0] and store["chorus"] == ["Chorus", 1] and store["frames"] == ["VAEDecode", 0]
        models = [
            node["inputs"]["model"] for node in queued if node["type"] in ("KSampler", "KSamplerAdvanced", "CFGGuider")
        ]
        assert models == ([["Chorus", 0], ["Chorus", 2]] if kind == "KSamplerAdvanced" else [["Chorus", 0]])
        face.run()
        assert "Miss" in face.result("ChorusCacheStore")
        page.evaluate(TYPE, SIMILAR)
        face.run()
        assert "Hit" in face.result("ChorusCacheStore")


def test_a_sampler_that_adds_noise_to_the_result_of_another_one_is_a_run_of_its_own(open_page) -> None:
    with open_page() as face:
        page = face.page
        prepare(page, "twice")
        page.evaluate(CHOOSE, "Add Chorus")
        queued = page.evaluate(QUEUED)
        (chorus,) = (node["inputs"] for node in queued if node["type"] == "Chorus")
        assert "low_noise_model" not in chorus
        models = [node["inputs"]["model"] for node in queued if node["type"] == "KSamplerAdvanced"]
        assert models == [["Chorus", 0], ["UNETLoader", 0]]


def test_a_prompt_that_two_runs_share_stays_until_the_last_one_is_removed(open_page) -> None:
    with open_page() as face:
        page = face.page
        prepare(page, "twice")
        before = page.evaluate("told()")
        page.evaluate("() => { window.second = app.graph.nodes.findLast((node) => node.type === 'KSamplerAdvanced') }")
        page.evaluate(CHOOSE, "Add Chorus")
        page.evaluate("choose(second, 'Add Chorus')")
        page.evaluate(CHOOSE, "Remove Chorus")
        (chorus,) = (node["inputs"] for node in page.evaluate(QUEUED) if node["type"] == "Chorus")
        assert chorus["prompt"] == ["PrimitiveStringMultiline", 0]
        page.evaluate("choose(second, 'Remove Chorus')")
        assert page.evaluate("told()") == before


def test_a_bypassed_sampler_gets_bypassed_nodes(open_page) -> None:
    with open_page() as face:
        page = face.page
        prepare(page, "KSampler")
        page.evaluate("() => { for (const node of app.graph.nodes) node.mode = 4 }")
        page.evaluate(CHOOSE, "Add Chorus")
        assert page.evaluate(QUEUED) == []


def test_a_node_that_does_not_sample_offers_nothing(open_page) -> None:
    with open_page() as face:
        prepare(face.page, "KSampler")
        offered = face.page.evaluate(
            "() => app.graph.nodes.filter((n) => app.collectNodeMenuItems(n).some((i) => /Chorus/.test(i?.content)))"
            ".map((n) => n.type)"
        )
        assert offered == ["KSampler"]


def test_inside_a_subgraph_links_over_its_border_are_kept(open_page) -> None:
    with open_page() as face:
        page = face.page
        prepare(page, "KSampler")
        page.evaluate(
            """() => {
                const inside = app.graph.nodes.filter((node) => ["KSampler", "CLIPTextEncode"].includes(node.type))
                const { node } = app.graph.convertToSubgraph(new Set(inside))
                window.sampler = node.subgraph.nodes.find((node) => node.type === "KSampler")
            }"""
        )
        before = page.evaluate("told(sampler.graph)")
        assert page.evaluate(CHOOSE, "Add Chorus")
        page.evaluate(CACHE, "gesture in a subgraph")
        (chorus,) = (node["inputs"] for node in page.evaluate(QUEUED) if node["type"] == "Chorus")
        assert chorus["model"] == ["UNETLoader", 0] and chorus["latent"] == ["EmptyHunyuanLatentVideo", 0]
        assert chorus["clip"] == ["SmallWanTextEncoderLoader", 0]
        face.run()
        assert page.evaluate(CHOOSE, "Remove Chorus")
        assert page.evaluate("told(sampler.graph)") == before
        page.evaluate("() => { window.outside = app.graph.nodes.find((node) => node.subgraph) }")
        assert page.evaluate("choose(outside, 'Add Chorus')")
        assert not page.evaluate(CHOOSE, "Add Chorus"), "it is there already"
        assert page.evaluate("choose(outside, 'Remove Chorus')")
        assert page.evaluate("told(sampler.graph)") == before
