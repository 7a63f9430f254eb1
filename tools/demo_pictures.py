"""The demo's pictures: looping videos, and three of them side by side with captions.

Frames everywhere: uint8 [T, H, W, 3].
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAME_MS = 250
ENLARGE = 4

_BACKGROUND = "#14161a"
_CARD = "#1e2127"
_TEXT = "#e8eaed"
_MUTED = "#9aa0a6"
_ACCENT = "#ffb454"
_GOOD = "#7fd88f"
_TINT = (255, 64, 38)
_GAP, _PADDING = 16, 14
_LINE = 135  # line height in percent of the font size
_SHEET_CAPTION = 280


@dataclass(frozen=True)
class Panel:
    """One captioned video. `changed`: words that the source's prompt lacks; `saving`: not all work was done."""

    title: str
    prompt: str
    changed: frozenset[str]
    work: str
    saving: bool
    frames: np.ndarray


def outlined(frames: np.ndarray, masks: Mapping[str, Any]) -> np.ndarray:
    """Frames with a thin line around the edit mask."""
    edit = mask_of(masks, "edit", frames.shape[:3])
    inner = edit.copy()
    for axis in (1, 2):
        for shift in (-1, 1):
            inner &= np.roll(edit, shift, axis)
    line = (edit & ~inner)[..., None]
    return np.where(line, 0.4 * frames + 0.6 * np.array(_TINT), frames).round().astype(np.uint8)


def mask_of(masks: Mapping[str, Any], name: str, size: Sequence[int]) -> np.ndarray:
    """A mask in the size of the frames, [T, H, W] bool.

    masks: `grid` [T, H, W] of tokens, and the bits of `edit` and `visible` on it, base64, eight tokens a byte.
    """
    grid = masks["grid"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(masks[name]), np.uint8), count=int(np.prod(grid)))
    mask = bits.reshape(grid).astype(bool)
    for axis, (tokens, pixels) in enumerate(zip(grid, size, strict=True)):
        mask = mask.take(np.arange(pixels) * tokens // pixels, axis)
    return mask


def write_video(file: Path, frames: np.ndarray) -> None:
    """Write frames enlarged, exact to the pixel, as a looping animation."""
    _write_animation(file, [_enlarged(frame, ENLARGE) for frame in frames])


def marked(frames: np.ndarray, masks: Mapping[str, Any]) -> np.ndarray:
    """The frames with masks over them: the edit mask tinted, everything outside the visible mask dimmed."""
    edit, visible = (mask_of(masks, name, frames.shape[:3])[..., None] for name in ("edit", "visible"))
    lit = frames * (0.35 + 0.65 * visible)
    return np.where(edit, 0.55 * lit + 0.45 * np.array(_TINT), lit).astype(np.uint8)


def write_side_by_side(file: Path, panels: Sequence[Panel]) -> None:
    """Write an animation with a card a panel: its video and, below, its caption."""
    videos = [[_enlarged(frame, ENLARGE) for frame in panel.frames] for panel in panels]
    width, height = videos[0][0].size
    captions = [_caption(panel, width - 2 * _PADDING) for panel in panels]
    below = max(caption.height for caption in captions) + 2 * _PADDING
    still = Image.new("RGB", (_GAP + len(panels) * (width + _GAP), height + below + 2 * _GAP), _BACKGROUND)
    corners = [(_GAP + i * (width + _GAP), _GAP) for i in range(len(panels))]
    for caption, (left, top) in zip(captions, corners, strict=True):
        _draw_card(still, left, top, width, height + below)
        still.paste(caption, (left + _PADDING, top + height + _PADDING))
    pages = []
    for moment in zip(*videos, strict=True):
        page = still.copy()
        for frame, corner in zip(moment, corners, strict=True):
            page.paste(frame, corner)
        pages.append(page)
    _write_animation(file, pages)


def write_contact_sheet(file: Path, panels: Sequence[Panel]) -> None:
    """Write a still with a row a panel: its caption, then its frames."""
    strips = [[_enlarged(frame, ENLARGE // 2) for frame in panel.frames] for panel in panels]
    width, height = strips[0][0].size
    captions = [_caption(panel, _SHEET_CAPTION) for panel in panels]
    row_width = _SHEET_CAPTION + 2 * _PADDING + len(strips[0]) * (width + _PADDING)
    row_height = height + 2 * _PADDING
    size = (row_width + 2 * _GAP, _GAP + len(panels) * (row_height + _GAP))
    sheet = Image.new("RGB", size, _BACKGROUND)
    for row, (caption, strip) in enumerate(zip(captions, strips, strict=True)):
        top = _GAP + row * (row_height + _GAP)
        _draw_card(sheet, _GAP, top, row_width, row_height)
        sheet.paste(caption, (_GAP + _PADDING, top + (row_height - caption.height) // 2))
        for column, frame in enumerate(strip):
            left = _GAP + 2 * _PADDING + _SHEET_CAPTION + column * (width + _PADDING)
            sheet.paste(frame, (left, top + _PADDING))
    sheet.save(file, optimize=True)


def _draw_card(image: Image.Image, left: int, top: int, width: int, height: int) -> None:
    ImageDraw.Draw(image).rounded_rectangle((left, top, left + width - 1, top + height - 1), 8, _CARD)


def _caption(panel: Panel, width: int) -> Image.Image:
    """Title, prompt with its changed words in the accent colour, and work, in lines of `width` pixels."""
    words = [(word, _ACCENT if word in panel.changed else _TEXT) for word in panel.prompt.split()]
    work = [(word, _GOOD if panel.saving else _MUTED) for word in panel.work.split()]
    title = [(word, _MUTED) for word in panel.title.split()]
    image = Image.new("RGB", (width, 400), _CARD)
    top = _draw_words(image, title, 0, 17)
    top = _draw_words(image, words, top + 6, 21)
    top = _draw_words(image, work, top + 8, 17)
    return image.crop((0, 0, width, top))


def _draw_words(image: Image.Image, words: Sequence[tuple[str, str]], top: int, size: int) -> int:
    """Draw coloured words from y = `top` on, in as many lines as they need. Returns the y below them."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    space, x = draw.textlength(" ", font), 0.0
    for word, colour in words:
        length = draw.textlength(word, font)
        if x > 0 and x + length > image.width:
            x, top = 0.0, top + _LINE * size // 100
        draw.text((x, top), word, colour, font)
        x += length + space
    return top + _LINE * size // 100


def _enlarged(frame: np.ndarray, times: int) -> Image.Image:
    height, width = frame.shape[:2]
    return Image.fromarray(frame).resize((width * times, height * times), Image.Resampling.NEAREST)


def _write_animation(file: Path, pages: Sequence[Image.Image]) -> None:
    pages[0].save(file, save_all=True, append_images=pages[1:], duration=FRAME_MS, loop=0, lossless=True)
