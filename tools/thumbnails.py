"""Draw a template's thumbnail: its graph in small, and below it which steps a hit computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from chorus.reuse import course
from chorus.reuse.schedule import FULL, SELECTIVE, SKIPPED

SIZE = (640, 400)
_SCALE = 3  # drawn larger and shrunk, for smooth edges
_BACKGROUND, _DOT = "#12171c", "#1d252d"
_NODE, _HEAD, _GROUP = "#2b343d", "#3a4650", "#182026"
_CHORUS, _CHORUS_HEAD = "#17695f", "#2fb3a0"
_TEXT, _QUIET = "#f2f6f8", "#93a4b0"
_LINKS = {
    "MODEL": "#b39ddb",
    "CHORUS": "#3fd8c0",
    "CLIP": "#ffd54f",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff7bd0",
    "IMAGE": "#64b5f6",
    "VAE": "#ff6e6e",
    "STRING": "#8bc98b",
}
_HEADINGS = {
    "image_to_video_wan22_4steps": ("Wan 2.2", "from an image, four steps"),
    "text_to_video_wan22_4steps": ("Wan 2.2", "four steps"),
    "first_last_frame_wan22": ("Wan 2.2", "first and last frame"),
    "fun_control_wan22": ("Wan 2.2 Fun Control", "a video's edges"),
    "image_to_video_wan22_5b": ("Wan 2.2 5B", "from an image"),
    "image_to_video_wan21": ("Wan 2.1", "from an image"),
    "vace_wan21": ("Wan 2.1 VACE", "with a reference"),
    "text_to_video_hunyuan15": ("HunyuanVideo 1.5", "from text"),
    "image_to_video_hunyuan15": ("HunyuanVideo 1.5", "from an image"),
    "wan21_t2v_chorus_one_node": ("Wan 2.1", "one node"),
    "wan21_t2v_chorus": ("Wan 2.1", "stage by stage"),
    "wan21_t2v_cold_beside_chorus": ("Wan 2.1", "in full beside Chorus"),
    "wan21_t2v_ablation": ("Wan 2.1", "stage 1 only beside all"),
    "wan21_t2v_4steps_chorus": ("Wan 2.1", "four steps"),
    "wan22_t2v_two_experts_chorus": ("Wan 2.2", "two experts"),
}


def draw(template: Mapping[str, Any], file: Path) -> None:
    """Write the thumbnail of `template`, a graph in the frontend's format, as a JPEG."""
    image = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), _BACKGROUND)
    pen = ImageDraw.Draw(image)
    for y in range(0, image.height, 16 * _SCALE):
        for x in range(0, image.width, 16 * _SCALE):
            pen.ellipse((x, y, x + 3, y + 3), fill=_DOT)
    model, what = _HEADINGS[file.stem]
    _write(pen, (24, 16), model, 26, _TEXT)
    _write(pen, (24 + _width(f"{model} ", 26), 16), what, 26, _CHORUS_HEAD)
    _graph(pen, template, (24, 62, SIZE[0] - 24, 312))
    types = [node["type"] for node in template["nodes"]]
    steps = 4 if "4steps" in file.stem else 20
    kinds = _course(steps, halves=types.count("KSamplerAdvanced") == 2)
    _steps(pen, kinds, (24, 330, SIZE[0] - 24, 358))
    image.resize(SIZE, Image.Resampling.LANCZOS).save(file, quality=84, optimize=True, progressive=True)


def _graph(pen: ImageDraw.ImageDraw, template: Mapping[str, Any], box: tuple[int, int, int, int]) -> None:
    nodes = {node["id"]: node for node in template["nodes"] if node["type"] != "MarkdownNote"}
    groups = [group["bounding"] for group in template["groups"]]
    left, top = min(g[0] for g in groups), min(g[1] for g in groups)
    right, bottom = max(g[0] + g[2] for g in groups), max(g[1] + g[3] for g in groups)
    wide, high = (box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top)

    def place(x: float, y: float) -> tuple[float, float]:
        # Stretched to the box: the graph's shape matters here, not its nodes' proportions.
        return (box[0] + (x - left) * wide) * _SCALE, (box[1] + (y - top) * high) * _SCALE

    for x, y, w, h in groups:
        pen.rounded_rectangle((*place(x, y), *place(x + w, y + h)), 6 * _SCALE, fill=_GROUP)
    for _, start, start_slot, end, end_slot, kind in template["links"]:
        a, b = nodes[start], nodes[end]
        out = place(a["pos"][0] + a["size"][0], a["pos"][1] + 14 + 22 * start_slot)
        sockets = sum("widget" not in entry for entry in b["inputs"])
        into = place(b["pos"][0], b["pos"][1] + 14 + 22 * min(end_slot, sockets))
        _curve(pen, out, into, _LINKS.get(kind, _QUIET), 2.2 if kind in ("CHORUS", "MODEL") else 1.2)
    for node in nodes.values():
        own = node.get("color") == "#233"
        (x, y), (w, h) = node["pos"], node["size"]
        corners = (*place(x, y - 30), *place(x + w, y + h))
        pen.rounded_rectangle(corners, 4 * _SCALE, fill=_CHORUS if own else _NODE)
        head = (corners[0], corners[1], corners[2], min(corners[3], corners[1] + 8 * _SCALE))
        pen.rounded_rectangle(head, 4 * _SCALE, fill=_CHORUS_HEAD if own else _HEAD)


def _curve(pen: ImageDraw.ImageDraw, a: tuple[float, float], b: tuple[float, float], colour: str, width: float) -> None:
    bend = max(18.0 * _SCALE, abs(b[0] - a[0]) * 0.45)
    points = []
    for i in range(41):
        t = i / 40
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        xs, ys = (a[0], a[0] + bend, b[0] - bend, b[0]), (a[1], a[1], b[1], b[1])
        points.append(
            (sum(w * x for w, x in zip(weights, xs, strict=True)), sum(w * y for w, y in zip(weights, ys, strict=True)))
        )
    pen.line(points, fill=colour, width=round(width * _SCALE), joint="curve")


def _course(count: int, halves: bool) -> str:
    """The steps of a hit.

    halves: whether a second expert computes the second half, whose first computed step is a full one.
    """
    kinds = course.selective_course(count, course.calibrated().rule(count))
    second = count // 2 if halves else count
    return kinds[:second] + re.sub(f"^({SKIPPED}*){SELECTIVE}", rf"\1{FULL}", kinds[second:])


def _steps(pen: ImageDraw.ImageDraw, kinds: str, box: tuple[int, int, int, int]) -> None:
    """The steps of a hit: full ones filled, selective ones half filled, skipped ones as outlines."""
    count = len(kinds)
    gap = 4 if count > 8 else 8
    width = (box[2] - box[0] + gap) / count
    for step, kind in enumerate(kinds):
        x = box[0] + step * width
        corners = (x * _SCALE, box[1] * _SCALE, (x + width - gap) * _SCALE, box[3] * _SCALE)
        _step(pen, corners, kind)
    x = float(box[0])
    for kind, words in ((FULL, "full"), (SELECTIVE, "only what changed"), (SKIPPED, "skipped")):
        if kind in kinds:
            side = 13
            _step(pen, tuple(v * _SCALE for v in (x, box[3] + 11, x + side, box[3] + 11 + side)), kind)
            _write(pen, (x + side + 6, box[3] + 8), words, 15, _QUIET)
            x += side + 6 + _width(words, 15) + 22


def _step(pen: ImageDraw.ImageDraw, corners: tuple[float, ...], kind: str) -> None:
    radius = 4 * _SCALE if corners[2] - corners[0] > 20 * _SCALE else 2 * _SCALE
    if kind == SKIPPED:
        pen.rounded_rectangle(corners, radius, outline="#4a5965", width=round(1.5 * _SCALE))
        return
    pen.rounded_rectangle(corners, radius, fill=_CHORUS_HEAD if kind == FULL else _GROUP, outline=_CHORUS_HEAD)
    if kind == SELECTIVE:
        middle = (corners[1] + corners[3]) / 2
        pen.rounded_rectangle((corners[0], middle, *corners[2:]), radius, fill=_CHORUS_HEAD)


def _write(pen: ImageDraw.ImageDraw, at: tuple[float, float], words: str, size: int, colour: str) -> None:
    place = (at[0] * _SCALE, at[1] * _SCALE)
    pen.text(place, words, fill=colour, font=ImageFont.load_default(size * _SCALE))


def _width(words: str, size: int) -> float:
    font = ImageFont.load_default(size * _SCALE)
    return font.getlength(words) / _SCALE
