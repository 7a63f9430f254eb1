"""ComfyUI's own video templates: the gesture adds Chorus to all of them, and takes it away without a trace.

The templates are those that this version of ComfyUI brings. They are opened in the real frontend, on one page. Those
whose networks the tests have in small are queued, as the gesture left them, on the real server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfyui_workflow_templates_json
import pytest
from playwright.sync_api import Page

from tools.templates import Api

from .stand_ins import FIRST, SIMILAR, asking, reports, small, write_models

if TYPE_CHECKING:
    from tools.inprocess import ComfyHost
    from tools.server import ComfyServer

FOLDER = Path(comfyui_workflow_templates_json.__file__).parent / "templates"

RUN = (
    "hunyuan_video_text_to_video",
    "image_to_video_wan",
    "ltxv_text_to_video",
    "text_to_video_wan",
    "video_hunyuan_video_1.5_720p_i2v",
    "video_hunyuan_video_1.5_720p_t2v",
    "video_kandinsky5_t2v",
    "video_wan2.1_fun_camera_v1.1_1.3B",
    "video_wan2_2_14B_flf2v",
    "video_wan2_2_14B_fun_camera",
    "video_wan2_2_14B_fun_control",
    "video_wan2_2_14B_i2v",
    "video_wan2_2_14B_t2v",
    "video_wan2_2_5B_fun_control",
    "video_wan2_2_5B_ti2v",
    "video_wan_vace_14B_ref2v",
    "video_wan_vace_flf2v",
    "wan2.1_flf2v_720_f16",
    "wan2.1_fun_control",
)
"""Opened and run."""

PICTURE = "it makes a picture"
SERVICE = "a paid service writes its prompt"
STREAMS = "sampled without Chorus: its latent holds picture and sound (tests/families)"
SPEECH = "no stand-in for its audio encoder; tests/families runs the network"
FINDS = "no stand-in for the model that finds things in the video"
NETWORK = "run already is the network of "
NOT_RUN = {
    "gsl_starter_1_2": NETWORK + "video_wan2_2_14B_flf2v",
    "image_chrono_edit_14B": PICTURE,
    "ltxv_image_to_video": "tried with its network in tests/families",
    "template_image_speech_to_video": SERVICE,
    "template_ltx2_3_ic_lora_ingredients": STREAMS,
    "templates-6-key-frames": NETWORK + "video_wan2_2_14B_flf2v",
    "templates_mjm_looped_restyler": SERVICE,
    "video_capybara_v0_1_image_to_video": NETWORK + "video_hunyuan_video_1.5_720p_i2v",
    "video_humo": SPEECH,
    "video_kandinsky5_i2v": NETWORK + "video_kandinsky5_t2v",
    "video_ltx2_3_flf2v": STREAMS,
    "video_ltx2_3_t2v": STREAMS,
    "video_ltx2_depth_to_video": STREAMS,
    "video_ltx2_t2v": STREAMS,
    "video_wan21_scail2_character_replacement": FINDS,
    "video_wan2_1_infinitetalk": SPEECH,
    "video_wan2_2_14B_fun_inpaint": NETWORK + "video_wan2_2_14B_i2v",
    "video_wan2_2_14B_s2v": SPEECH,
    "video_wan2_2_5B_fun_inpaint": "the network of video_wan2_2_5B_fun_control, with fewer channels",
    "video_wan_ati": NETWORK + "image_to_video_wan",
    "video_wan_dancer": SPEECH,
    "video_wan_vace_14B_v2v": NETWORK + "video_wan_vace_14B_ref2v",
    "video_wan_vace_inpainting": FINDS,
    "video_wanmove_480p": NETWORK + "image_to_video_wan",
    "wan2.1_fun_inp": NETWORK + "image_to_video_wan",
}
"""Opened, but not run, and why."""

ALIKE = {
    "03_video_wan2_2_14B_i2v_subgraphed": "video_wan2_2_14B_i2v",
    "Image_capybara_v0_1_image_edit": "video_capybara_v0_1_image_to_video",
    "Image_capybara_v0_1_text_to_image": "video_capybara_v0_1_image_to_video",
    "template_ltx2_3_style_transition": "video_ltx2_3_flf2v",
    "video_capybara_v0_1_video_edit": "video_capybara_v0_1_image_to_video",
    "video_ltx2_3_i2v": "video_ltx2_3_t2v",
    "video_ltx2_3_ia2v": "video_ltx2_3_t2v",
    "video_ltx2_3_ic_lora": "template_ltx2_3_ic_lora_ingredients",
    "video_ltx2_3_id_lora": "video_ltx2_3_t2v",
    "video_ltx2_canny_to_video": "video_ltx2_depth_to_video",
    "video_ltx2_i2v": "video_ltx2_t2v",
    "video_ltx2_i2v_distilled": "video_ltx2_t2v",
    "video_ltx2_i2v_lora": "video_ltx2_t2v",
    "video_ltx2_t2v_distilled": "video_ltx2_t2v",
    "video_wan2.1_alpha_t2v_14B": "text_to_video_wan",
    "video_wan2.1_fun_camera_v1.1_14B": "video_wan2.1_fun_camera_v1.1_1.3B",
    "video_wan21_scail2_character_replacement_int8": "video_wan21_scail2_character_replacement",
    "video_wan_vace_14B_t2v": "video_wan_vace_14B_ref2v",
    "video_wan_vace_outpainting": "video_wan_vace_14B_v2v",
}
"""Neither: nearly the same graph as another one, which is opened."""

VIDEO_NODES = ("Wan", "HunyuanVideo", "HunyuanLatentVideo", "LTXV", "Kandinsky")

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")

TOOLS = """() => {
    const offers = (node) => app.collectNodeMenuItems(node).find((item) => /Chorus/.test(item?.content))
    const inside = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? inside(node.subgraph) : [])])
    const graphs = () => new Set([app.graph, ...inside(app.graph).map((node) => node.subgraph).filter(Boolean)])
    // All graphs as they are saved, with links by their ends: only a link's number and the order may be another one.
    const told = () =>
        JSON.stringify(
            [...graphs()].map((graph) => {
                const { nodes, links, groups, inputs, outputs } = graph.serialize()
                const ends = new Map(
                    links.map((link) => {
                        const { id, ...rest } = Array.isArray(link) ? { ...link, id: link[0], 0: 0 } : link
                        return [id, JSON.stringify(rest)]
                    }),
                )
                const node = ({ order, ...node }) => ({
                    ...node,
                    inputs: node.inputs?.map((input) => ({ ...input, link: ends.get(input.link) })),
                    outputs: node.outputs?.map((output) => ({
                        ...output,
                        links: (output.links ?? []).map((id) => ends.get(id)).sort(),
                    })),
                })
                const border = (slots) => slots?.map(({ linkIds, ...slot }) => slot)
                nodes.sort((a, b) => a.id - b.id)
                return [nodes.map(node), [...ends.values()].sort(), groups, border(inputs), border(outputs)]
            }),
        )
    const queued = async () => (await app.graphToPrompt()).output
    window.tryGesture = async (template) => {
        await app.loadGraphData(template)
        const before = told()
        const plain = await queued()
        const samplers = inside(app.graph).filter((node) => offers(node) && !node.subgraph)
        for (const sampler of samplers) if (offers(sampler).content === "Add Chorus") offers(sampler).callback()
        const added = await queued()
        for (const sampler of samplers) if (offers(sampler)?.content === "Remove Chorus") offers(sampler).callback()
        const removed = told()
        for (const node of app.graph.nodes) if (offers(node)?.content === "Add Chorus") offers(node).callback()
        const fromOutside = await queued()
        for (const node of app.graph.nodes) if (offers(node)?.content === "Remove Chorus") offers(node).callback()
        return { plain, added, fromOutside, same: [removed === before, told() === before] }
    }
}"""


@pytest.fixture(scope="module")
def tried(comfy_host: ComfyHost, page: Page) -> Callable[[str], dict[str, Any]]:
    """`tried(name)`: the template opened, Chorus added at each sampler and removed, the same from the outermost graph.

    ComfyUI in this process, which writes the models, starts before the browser.
    """
    page.evaluate(TOOLS)
    known: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in known:
            known[name] = page.evaluate("(template) => tryGesture(template)", template(name))
        return known[name]

    return get


def template(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def of_type(graph: Api, *types: str) -> list[str]:
    return [key for key, node in graph.items() if node["class_type"] in types]


def guider_of(graph: Api, sampler: str) -> str:
    """The node that has the sampler's model and prompt."""
    link = graph[sampler]["inputs"].get("guider")
    return link[0] if link else sampler


def encoder_of(graph: Api, key: str) -> dict[str, Any] | None:
    """The inputs of the text encoder that a conditioning comes from."""
    inputs = graph[key]["inputs"]
    if "clip" in inputs and "text" in inputs:
        return inputs
    link = next((inputs[name] for name in ("positive", "conditioning") if name in inputs), None)
    return link and encoder_of(graph, link[0])


def without_chorus(graph: Api, plain: Api) -> Api:
    """The graph with its models wired past the Chorus nodes, without the nodes that are not in `plain`."""

    def passed(value: Any) -> Any:
        if not isinstance(value, list) or value[0] in plain:
            return value
        node = graph[value[0]]
        if node["class_type"] == "PrimitiveStringMultiline":
            return node["inputs"]["value"]
        return passed(node["inputs"][{0: "model", 2: "low_noise_model"}[value[1]]])

    return {
        key: node | {"inputs": {name: passed(value) for name, value in node["inputs"].items()}}
        for key, node in graph.items()
        if key in plain
    }


def test_every_video_template_with_a_model_of_its_own_is_named() -> None:
    found = []
    for file in sorted(FOLDER.glob("[!a]*.json")):  # those of paid services begin with "api"
        graph = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(graph, dict) or "nodes" not in graph:
            continue
        graphs = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
        types = {node["type"] for one in graphs for node in one["nodes"]}
        if types & set(SAMPLERS) and any(part in kind for kind in types for part in VIDEO_NODES):
            found.append(file.stem)
    assert sorted((*RUN, *NOT_RUN, *ALIKE)) == found
    assert set(ALIKE.values()) <= {*RUN, *NOT_RUN}


@pytest.mark.parametrize("name", (*RUN, *NOT_RUN))
def test_gesture_wires_each_run_and_leaves_no_trace(name: str, tried: Callable[[str], dict[str, Any]]) -> None:
    result = tried(name)
    plain, graph = result["plain"], result["added"]
    assert result["same"] == [True, True]
    assert without_chorus(graph, plain) == plain == without_chorus(result["fromOutside"], plain)
    assert len(of_type(graph, "Chorus")) == len(of_type(result["fromOutside"], "Chorus"))

    guiders = {guider_of(plain, sampler): sampler for sampler in of_type(plain, *SAMPLERS)}
    served = []
    for key in of_type(graph, "Chorus"):
        chorus = graph[key]["inputs"]
        (first,) = (guider for guider in guiders if graph[guider]["inputs"]["model"] == [key, 0])
        second = [guider for guider in guiders if graph[guider]["inputs"]["model"] == [key, 2]]
        served += [first, *second]
        before = plain[first]["inputs"]
        assert chorus["model"] == before["model"]
        assert chorus["latent"] == plain[guiders[first]]["inputs"]["latent_image"]
        assert chorus["positive"] == before.get("positive", before.get("conditioning"))
        assert ("low_noise_model" in chorus) == bool(second)
        for guider in second:
            assert chorus["low_noise_model"] == plain[guider]["inputs"]["model"]
            assert plain[guiders[guider]]["inputs"]["latent_image"] == [guiders[first], 0]
        encoder = encoder_of(graph, first)
        if encoder and chorus["prompt"] != "":  # empty where the encoder is outside of the sampler's subgraph
            assert chorus["clip"] == encoder["clip"] and chorus["prompt"] == encoder["text"]
        (store,) = (
            node["inputs"]
            for node in graph.values()
            if node["class_type"] == "ChorusCacheStore" and node["inputs"]["chorus"] == [key, 1]
        )
        assert store["latent"] == [guiders[(second or [first])[-1]], 0]
    assert sorted(served) == sorted(guiders)


@pytest.mark.parametrize("name", RUN)
def test_another_prompt_is_a_hit_and_the_same_one_is_known(
    name: str, comfy_server: ComfyServer, tried: Callable[[str], dict[str, Any]]
) -> None:
    added, client = tried(name)["added"], comfy_server.client()
    write_models(added, comfy_server.base / "models" / "diffusion_models")
    graph = small(added, name)

    def asked(prompt: str) -> dict[str, Any]:
        asks = asking(graph, prompt)
        item = client.wait(client.submit(asks))
        assert item["status"]["status_str"] == "success", item["status"]["messages"][-1]
        (report,) = reports(asks, item)
        return report

    cold = asked(FIRST)
    assert (cold["outcome"], cold["steps_computed"]) == ("miss", cold["steps"]), cold["reason"]
    hit = asked(SIMILAR)
    assert hit["outcome"] == "hit" and hit["source_prompt"] == FIRST, hit["reason"]
    assert 0 < hit["step_equivalents"] < hit["steps"]
    comfy_server.forget_outputs()
    assert asked(FIRST)["outcome"] == "identical"
