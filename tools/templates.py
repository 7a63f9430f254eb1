"""Make the templates people open in the frontend from the same graphs in API form.

    python tools/run.py python -P tools/launch.py tools.templates

`workflows/api/NAME.json` is the graph, `workflows/notes/NAME.md` its note, `LAYOUTS` below says where
things lie; `workflows/NAME.json` and its thumbnail follow from them and are never edited by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

Api = dict[str, dict[str, Any]]
ObjectInfo = Mapping[str, Mapping[str, Any]]

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
"""Input types that the frontend shows as widgets; every other one is a socket."""

_HF = "https://huggingface.co"
_WAN21 = f"{_HF}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
_WAN22 = f"{_HF}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
_HUNYUAN15 = f"{_HF}/Comfy-Org/HunyuanVideo_1.5_repackaged/resolve/main/split_files"
MODELS = {
    "wan2.1_t2v_1.3B_fp16.safetensors": ("diffusion_models", f"{_WAN21}/diffusion_models"),
    "wan2.1_t2v_14B_fp8_scaled.safetensors": ("diffusion_models", f"{_WAN21}/diffusion_models"),
    "wan2.1_i2v_480p_14B_fp16.safetensors": ("diffusion_models", f"{_WAN21}/diffusion_models"),
    "wan2.1_vace_14B_fp16.safetensors": ("diffusion_models", f"{_WAN21}/diffusion_models"),
    **{
        f"wan2.2_{task}_{kind}_noise_14B_fp8_scaled.safetensors": ("diffusion_models", f"{_WAN22}/diffusion_models")
        for task in ("t2v", "i2v", "fun_control")
        for kind in ("high", "low")
    },
    "wan2.2_ti2v_5B_fp16.safetensors": ("diffusion_models", f"{_WAN22}/diffusion_models"),
    **{
        f"hunyuanvideo1.5_720p_{task}_fp16.safetensors": ("diffusion_models", f"{_HUNYUAN15}/diffusion_models")
        for task in ("t2v", "i2v")
    },
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", f"{_WAN21}/text_encoders"),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": ("text_encoders", f"{_HUNYUAN15}/text_encoders"),
    "byt5_small_glyphxl_fp16.safetensors": ("text_encoders", f"{_HUNYUAN15}/text_encoders"),
    "clip_vision_h.safetensors": ("clip_vision", f"{_WAN21}/clip_vision"),
    "sigclip_vision_patch14_384.safetensors": (
        "clip_vision",
        f"{_HF}/Comfy-Org/sigclip_vision_384/resolve/main",
    ),
    "wan_2.1_vae.safetensors": ("vae", f"{_WAN21}/vae"),
    "wan2.2_vae.safetensors": ("vae", f"{_WAN22}/vae"),
    "hunyuanvideo15_vae_fp16.safetensors": ("vae", f"{_HUNYUAN15}/vae"),
    "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors": (
        "loras",
        f"{_HF}/Kijai/WanVideo_comfy/resolve/main/Lightx2v",
    ),
    **{
        f"wan2.2_{kind}_noise.safetensors": ("loras", f"{_WAN22}/loras")
        for version in ("i2v_lightx2v_4steps_lora_v1", "t2v_lightx2v_4steps_lora_v1.1")
        for kind in (f"{version}_high", f"{version}_low")
    },
}
"""File name to its folder below `models` and to where it can be downloaded."""

LINE, TITLE, GAP = 24, 30, 26  # heights in pixels: a row of a node, its title bar, the room between two
HEIGHTS = {
    "PrimitiveStringMultiline": 170,
    "CLIPTextEncode": 170,
    "PreviewAny": 170,
    "PreviewImage": 300,
    "LoadImage": 340,
    "LoadVideo": 340,
    "SaveVideo": 340,
}
"""Nodes that show text or pictures, in pixels; the others are as high as their rows."""

RESULTS = {"ChorusCacheStore": 300, "ChorusCacheLookup": 140, "Chorus": 140}
"""Room in pixels below a node's rows for what it shows of a run."""

_SHOWS_ALWAYS = {"SaveVideo", "PreviewImage", "PreviewAny"}

_CHORUS_COLOURS = {"color": "#233", "bgcolor": "#355"}
_PROMPT_COLOURS = {"color": "#232", "bgcolor": "#353"}
_NOTE_COLOURS = {"color": "#222", "bgcolor": "#000"}


@dataclass(frozen=True)
class Group:
    """A framed group: columns of node ids, each column's nodes from top to bottom."""

    title: str
    columns: tuple[tuple[str, ...], ...]
    width: int = 330
    colour: str = "#3f789e"


@dataclass(frozen=True)
class Layout:
    """Columns of groups from left to right, each column's groups from top to bottom."""

    note_height: int
    columns: tuple[tuple[Group, ...], ...]


_PROMPT = ("4", "5", "6", "7")
_ONE = ("1", "2", "3", "8")
_EXPERTS = ("1", "8", "21", "22", "2", "3")
_EXPERTS_WITH_LORAS = ("1", "23", "8", "21", "25", "22", "2", "3")


def _inputs(models: Sequence[str]) -> tuple[tuple[Group, ...], ...]:
    return (
        (Group("1 · Models", (tuple(models),)),),
        (Group("2 · Prompt and size", (_PROMPT,), 400, "#4a7a4a"),),
    )


def _one_node(
    models: Sequence[str], *inputs: Sequence[str], samplers: Sequence[str] = ("10",), decoded: Sequence[str] = ("11",)
) -> Layout:
    """Chorus in one node. inputs: columns of the prompt, what else the model is given, and the size."""
    return Layout(
        560,
        (
            (Group("1 · Models", (tuple(models),)),),
            (Group("2 · Prompt and size", tuple(map(tuple, inputs)), 400, "#4a7a4a"),),
            (Group("3 · Chorus", (("9",),), colour="#3b8f8f"), Group("4 · Sample", (tuple(samplers),))),
            (Group("5 · Keep and save", ((*decoded, "12", "13"), ("14", "15"))),),
        ),
    )


LAYOUTS = {
    "image_to_video_wan22_4steps": _one_node(_EXPERTS_WITH_LORAS, ("20", *_PROMPT), samplers=("10", "24")),
    "text_to_video_wan22_4steps": _one_node(_EXPERTS_WITH_LORAS, _PROMPT, samplers=("10", "24")),
    "first_last_frame_wan22": _one_node(_EXPERTS, ("20", "26"), _PROMPT, samplers=("10", "24")),
    "fun_control_wan22": _one_node(_EXPERTS, ("20", "26", "27", "28"), _PROMPT, samplers=("10", "24")),
    "image_to_video_wan22_5b": _one_node(_ONE, ("20", *_PROMPT)),
    "image_to_video_wan21": _one_node((*_ONE, "21"), ("20", "22"), _PROMPT),
    "vace_wan21": _one_node(_ONE, ("20", *_PROMPT), decoded=("21", "11")),
    "text_to_video_hunyuan15": _one_node(_ONE, _PROMPT),
    "image_to_video_hunyuan15": _one_node((*_ONE, "21"), ("20", "22"), _PROMPT),
    "wan21_t2v_chorus_one_node": _one_node(_ONE, _PROMPT),
    "wan21_t2v_chorus": Layout(
        560,
        (
            *_inputs(_ONE),
            (Group("3 · Chorus", (("9", "10", "20"), ("11", "12", "13")), colour="#3b8f8f"),),
            (Group("4 · Sample", (("14", "15"),)),),
            (Group("5 · Keep and save", (("16", "17"), ("18", "19"))),),
        ),
    ),
    "wan21_t2v_cold_beside_chorus": Layout(
        560,
        (
            *_inputs(_ONE),
            (Group("3 · Chorus", (("9",),), colour="#3b8f8f"), Group("4 · Sample with Chorus", (("10", "11"),))),
            (Group("5 · Sample in full", (("16", "17"),)), Group("6 · Keep", (("12", "13"),))),
            (Group("7 · Side by side", (("18", "14", "15"),)),),
        ),
    ),
    "wan21_t2v_ablation": Layout(
        560,
        (
            *_inputs(_ONE),
            (Group("3 · All stages", (("9", "10", "20"), ("11", "12", "13", "14", "15")), colour="#3b8f8f"),),
            (Group("4 · Stage 1 only", (("21", "22", "23", "24"),), colour="#3b8f8f"),),
            (Group("5 · Keep", (("16", "17"),)),),
            (Group("6 · Side by side", (("25", "18", "19"),)),),
        ),
    ),
    "wan21_t2v_4steps_chorus": Layout(
        560,
        (
            *_inputs(("1", "21", "2", "3", "8")),
            (Group("3 · Chorus", (("9", "10", "20"), ("11", "12", "13")), colour="#3b8f8f"),),
            (Group("4 · Sample", (("14", "15"),)),),
            (Group("5 · Keep and save", (("16", "17"), ("18", "19"))),),
        ),
    ),
    "wan22_t2v_two_experts_chorus": Layout(
        560,
        (
            *_inputs(_EXPERTS),
            (Group("3 · Chorus", (("9", "10", "20"), ("11", "12", "13", "23")), colour="#3b8f8f"),),
            (Group("4 · Sample", (("14", "24", "15"),)),),
            (Group("5 · Keep and save", (("16", "17"), ("18", "19"))),),
        ),
    ),
}


def names() -> list[str]:
    """The templates' names."""
    return sorted(LAYOUTS)


def api_graph(name: str) -> Api:
    """The graph of a template in API form."""
    graph: Api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    return graph


def text(graph: Any) -> str:
    """A graph as it is written to its file."""
    return json.dumps(graph, indent=2, ensure_ascii=False) + "\n"


def is_widget(spec: Sequence[Any]) -> bool:
    """Whether an input of /object_info shows as a widget."""
    options = spec[1] if len(spec) > 1 else {}
    return not options.get("forceInput") and (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES)


def inputs_of(info: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any], bool]]:
    """(name, spec, optional) of a node type's inputs in their order."""
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, ()):
            yield name, info["input"][kind][name], kind == "optional"


def type_name(spec: Sequence[Any]) -> str:
    """An input's type, COMBO for a list of choices."""
    return "COMBO" if isinstance(spec[0], list) else str(spec[0])


def build(name: str, object_info: ObjectInfo) -> dict[str, Any]:
    """The template `name` in the frontend's format, from its graph, note and layout."""
    api, layout = api_graph(name), LAYOUTS[name]
    nodes = {key: _node(key, node, object_info[node["class_type"]]) for key, node in api.items()}
    links = _link(api, nodes, object_info)
    for order, key in enumerate(_topological(api)):
        nodes[key]["order"] = order
    groups = _place(nodes, layout)
    note = _note(name, max(map(int, api)) + 1, len(api), layout.note_height)
    return {
        "id": f"chorus-{name}",
        "revision": 0,
        "last_node_id": note["id"],
        "last_link_id": len(links),
        "nodes": [*(nodes[key] for key in sorted(nodes, key=int)), note],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _node(key: str, node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    kind, title = node["class_type"], node["_meta"]["title"]
    sockets: list[dict[str, Any]] = []
    widgets: list[dict[str, Any]] = []
    values: list[Any] = []
    for name, spec, optional in inputs_of(info):
        entry: dict[str, Any] = {"name": name, "type": type_name(spec), "link": None}
        if optional:
            entry["shape"] = 7
        if not is_widget(spec):
            sockets.append(entry)
            continue
        value = node["inputs"].get(name)
        if linked := isinstance(value, list):
            widgets.append(entry | {"widget": {"name": name}})  # the frontend saves only these as inputs
        values.append("" if linked else value)
        if len(spec) > 1 and spec[1].get("control_after_generate"):
            values.append("fixed")  # the same seed with another prompt is what people compare
        if len(spec) > 1 and (spec[1].get("image_upload") or spec[1].get("video_upload")):
            values.append("image")  # the button below it
    properties: dict[str, Any] = {"Node name for S&R": kind}
    if models := [_download(value) for value in values if isinstance(value, str) and value in MODELS]:
        properties["models"] = models
    outputs = [
        {"name": name, "type": kind_out, "links": []}
        for name, kind_out in zip(info["output_name"], info["output"], strict=True)
    ]
    made: dict[str, Any] = {
        "id": int(key),
        "type": kind,
        "pos": [0, 0],
        "size": [
            0,
            _height(kind, max(len(sockets) + len(widgets), len(outputs)), len(values) - len(widgets), len(widgets)),
        ],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets + widgets,
        "outputs": outputs,
    }
    if title != info["display_name"]:
        made["title"] = title
    made |= {"properties": properties, "widgets_values": values}
    if info["category"] == "Chorus":
        made |= _CHORUS_COLOURS
    elif kind == "PrimitiveStringMultiline":
        made |= _PROMPT_COLOURS
    return made


def _height(kind: str, sockets: int, widgets: int, linked: int) -> int:
    """Pixels below the title. linked: widgets whose value comes over a link, which leave a gap."""
    rows = LINE * (sockets + widgets) + (36 if linked else 12) + RESULTS.get(kind, 0)
    return HEIGHTS.get(kind, rows) if widgets or kind in _SHOWS_ALWAYS else rows


def _download(file: str) -> dict[str, str]:
    directory, address = MODELS[file]
    return {"name": file, "url": f"{address}/{file}", "directory": directory}


def _link(api: Api, nodes: Mapping[str, dict[str, Any]], object_info: ObjectInfo) -> list[list[Any]]:
    """Connect the nodes; returns [id, from node, from slot, to node, to slot, type] for each link."""
    links: list[list[Any]] = []
    for key in sorted(api, key=int):
        for slot, entry in enumerate(nodes[key]["inputs"]):
            value = api[key]["inputs"].get(entry["name"])
            if not isinstance(value, list):
                continue
            origin, origin_slot = value
            kind = object_info[api[origin]["class_type"]]["output"][origin_slot]
            links.append([len(links) + 1, int(origin), origin_slot, int(key), slot, kind])
            entry["link"] = len(links)
            nodes[origin]["outputs"][origin_slot]["links"].append(len(links))
    return links


def _topological(api: Api) -> list[str]:
    """Node ids with every node after those it takes from."""
    done: list[str] = []
    while len(done) < len(api):
        for key in sorted(set(api) - set(done), key=int):
            if all(value[0] in done for value in api[key]["inputs"].values() if isinstance(value, list)):
                done.append(key)
    return done


def _place(nodes: Mapping[str, dict[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    x = 0
    for column in layout.columns:
        y, widest = 0, 0
        for group in column:
            bottom = 0
            for index, keys in enumerate(group.columns):
                top = y + 50 + TITLE
                for key in keys:
                    nodes[key]["pos"] = [x + 20 + index * (group.width + 40), top]
                    nodes[key]["size"][0] = group.width
                    top += nodes[key]["size"][1] + TITLE + GAP
                bottom = max(bottom, top - TITLE - GAP + 20)
            width = len(group.columns) * (group.width + 40)
            groups.append(
                {
                    "id": len(groups) + 1,
                    "title": group.title,
                    "bounding": [x, y, width, bottom - y],
                    "color": group.colour,
                    "font_size": 24,
                    "flags": {},
                }
            )
            y, widest = bottom + 40, max(widest, width)
        x += widest + 50
    return groups


def _note(name: str, node_id: int, order: int, height: int) -> dict[str, Any]:
    api = api_graph(name)
    note = (WORKFLOWS / "notes" / f"{name}.md").read_text(encoding="utf-8").rstrip("\n")
    files = [v for node in api.values() for v in node["inputs"].values() if isinstance(v, str) and v in MODELS]
    lines = [f"- `models/{MODELS[f][0]}/` [{f}]({_download(f)['url']})" for f in files]
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [-520, 30],
        "size": [470, height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "About this workflow",
        "properties": {},
        "widgets_values": ["\n".join([note, "", "## Files", *lines])],
        **_NOTE_COLOURS,
    }


def main() -> int:
    from . import blueprints
    from .server import ComfyServer
    from .thumbnails import draw

    with ComfyServer() as server:
        object_info = server.client().object_info()
    for name in names():
        template = build(name, object_info)
        (WORKFLOWS / f"{name}.json").write_text(text(template), encoding="utf-8")
        draw(template, WORKFLOWS / f"{name}.jpg")
        print(f"made {WORKFLOWS / name}.json and its thumbnail")
    for file in blueprints.write(object_info):
        print(f"made {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
