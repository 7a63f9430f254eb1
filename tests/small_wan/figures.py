"""Draw the curve and example frames in docs/: `python -m small_wan.figures --work DIR`.

Run from `tests/` with ComfyUI on PYTHONPATH, once the model and the LoRA are exported.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from . import evaluate, export, sampling

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
WIDTH, HEIGHT, MARGIN = 560, 280, 44
TEXT_WIDTH, FRAME = 300, 96


def curve(lines: list[dict]) -> Image.Image:
    """The training loss over steps, on a logarithmic scale."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    last = lines[-1]["step"]
    low, high = math.floor(20 * min(x["loss"] for x in lines)) / 20, max(x["loss"] for x in lines)

    def place(step: float, loss: float) -> tuple[float, float]:
        rise = math.log(loss / low) / math.log(high / low)
        return MARGIN + step / last * (WIDTH - MARGIN - 16), HEIGHT - MARGIN + rise * (2 * MARGIN - HEIGHT)

    for loss in (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5):
        if low <= loss <= high:
            x, y = place(0, loss)
            draw.line([(x, y), (WIDTH - 16, y)], "#dddddd")
            draw.text((8, y - 5), f"{loss:g}", "black")
    for step in range(0, last + 1, 1000):
        x, y = place(step, low)
        draw.line([(x, y), (x, y + 4)], "black")
        draw.text((x - 8, y + 8), str(step), "black")
    draw.line([place(x["step"], x["loss"]) for x in lines], "#1f5fbf", 2)
    draw.text((WIDTH // 2 - 40, HEIGHT - 16), "training step", "black")
    draw.text((MARGIN, 12), "velocity loss (mean of 50 steps)", "black")
    return image


def frames(rows: list[tuple[str, list[np.ndarray]]]) -> Image.Image:
    """A line a caption: its text, then each video's frames."""
    videos = max(len(made) for _, made in rows)
    image = Image.new("RGB", (TEXT_WIDTH + videos * (4 * FRAME + 12), len(rows) * (FRAME + 4)), "white")
    draw = ImageDraw.Draw(image)
    for line, (text, made) in enumerate(rows):
        top = line * (FRAME + 4)
        words, lines = text.split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) > 42:
                lines.append("")
            lines[-1] += word + " "
        draw.multiline_text((6, top + 24), "\n".join(lines), "black")
        for i, video in enumerate(made):
            strip = np.concatenate(list(video), axis=1)
            pixels = Image.fromarray((strip * 255).round().astype(np.uint8))
            image.paste(pixels, (TEXT_WIDTH + i * (4 * FRAME + 12), top))
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the training's work folder")
    parser.add_argument("--cfg", type=float, default=sampling.CFG, help="CFG of the 20 steps")
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.work / "curve.jsonl").read_text().splitlines()]
    curve(lines).save(DOCS / "small_wan_curve.png", optimize=True)
    captions = [
        *evaluate.held_out(4, two_objects=False, seed=1),
        *evaluate.held_out(4, two_objects=True, seed=1),
    ]
    full = evaluate.videos(sampling.load(export.MODEL_FILE), captions, steps=20, cfg=args.cfg)
    made = [full]
    if export.LORA_FILE.is_file():
        distilled = sampling.load(export.MODEL_FILE, export.LORA_FILE)
        made.append(evaluate.videos(distilled, captions, steps=4, cfg=1.0))
    rows = [(c.text, [videos[i] for videos in made]) for i, c in enumerate(captions)]
    frames(rows).save(DOCS / "small_wan_frames.png", optimize=True)


if __name__ == "__main__":
    main()
