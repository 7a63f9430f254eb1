"""`make demo`: the pack at work in a real ComfyUI, on a model small enough for a CPU.

Four requests go through the API that any client uses: a first prompt, a similar one, an unlike one, and
the similar one again. docs/demo.md describes what is shown and written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from small_wan import export

from . import demo_graph, demo_pictures
from .client import ApiError, ExecutionFailed, ExecutionInterrupted
from .comfyui import ComfyUINotFound
from .demo_requests import DemoFailure, Video, sample_all
from .server import ServerFailure

OUTPUT = demo_graph.CHECKOUT / "demo_output"
REPORT_VERSION = 1

_FAILURES = (
    DemoFailure,
    demo_graph.TemplateFailure,
    ComfyUINotFound,
    ServerFailure,
    ApiError,
    ExecutionFailed,
    ExecutionInterrupted,
    OSError,  # the output folder, or the time a request may take
)
_COLOURS = {"hit": "green", "identical": "green", "miss": "yellow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status: 0 when the four outcomes are as expected."""
    parser = argparse.ArgumentParser(prog="make demo", description="Show the pack at work in ComfyUI.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the pictures and report.json")
    output: Path = parser.parse_args(arguments).output.absolute()
    console = Console(highlight=False)
    try:
        run(output, console)
    except KeyboardInterrupt:
        console.print("demo interrupted", style="red")
        return 130
    except _FAILURES as error:
        console.print(f"demo failed: {str(error) or repr(error)}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


def run(output: Path, console: Console) -> None:
    """Sample all requests, write `output` and show the figures. Raises the errors that `main` words."""
    for file in (export.MODEL_FILE, export.CODEC_FILE):
        if not file.is_file():
            raise DemoFailure(f"{file} is missing, and the demo samples with it: restore it from the repository")
    template = demo_graph.load_template()
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").unlink(missing_ok=True)  # an earlier demo's must not pass for this one's
    videos, system = sample_all(template, console, output / "cache")
    *four, target_cold = videos
    files = write_pictures(output, four, target_cold)
    report = {
        "version": REPORT_VERSION,
        "machine": machine(system),
        "comfyui": system["system"]["comfyui_version"],
        "requests": [video.as_json() for video in four],
        "target_cold": target_cold.as_json(),
        "files": files,
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(figures_table(four))
    console.print(comparison(four[1], target_cold))
    console.print(f"\nLook at {output}", soft_wrap=True, markup=False)
    for name, content in (
        (files["side_by_side"], "the similar prompt, sampled cold and from the cache"),
        (files["contact_sheet"], "the same as a still"),
        ("srd_mask.webp", "where the similar prompt changes the source, as its first step showed"),
        ("report.json", "every figure, explained in docs/demo.md"),
        ("cache", "what was kept: python -m chorus.cache ls demo_output/cache"),
    ):
        console.print(f"  {name:<18}{content}")
    for video in four:
        outcome, expected = video.figures["outcome"], video.request.expected
        if outcome != expected:
            raise DemoFailure(
                f"request '{video.request.name}' ended as '{outcome}', not '{expected}': {video.figures['reason']}"
            )


def write_pictures(output: Path, four: Sequence[Video], target_cold: Video) -> dict[str, str]:
    """Write every picture, note each video's own in its `files`, and return the names of the common ones."""
    source, target = four[0], four[1]
    for video in (*four, target_cold):
        video.files["video"] = f"{video.request.name}.webp"
        demo_pictures.write_video(output / video.files["video"], video.frames)
    shown = target.frames
    if target.masks is not None:
        target.files["srd_mask"] = "srd_mask.webp"
        demo_pictures.write_video(output / target.files["srd_mask"], demo_pictures.marked(source.frames, target.masks))
        shown = demo_pictures.outlined(target.frames, target.masks)
    new = frozenset(target.request.caption.text.split()) - frozenset(source.request.caption.text.split())
    panels = [
        panel("Source, sampled cold", source, frozenset()),
        panel("Similar prompt, sampled cold", target_cold, new),
        replace(panel("Similar prompt, from the cache", target, new), frames=shown),
    ]
    files = {"side_by_side": "side_by_side.webp", "contact_sheet": "side_by_side.png"}
    demo_pictures.write_side_by_side(output / files["side_by_side"], panels)
    demo_pictures.write_contact_sheet(output / files["contact_sheet"], panels)
    return files


def panel(title: str, video: Video, changed: frozenset[str]) -> demo_pictures.Panel:
    """The captioned video of a request."""
    figures = video.figures
    saving = figures["step_equivalents"] < figures["steps"]
    work = f"{figures['steps_computed']} of {figures['steps']} steps computed"
    if saving:
        work = f"{figures['steps_computed']} of {figures['steps']} steps, the work of {figures['step_equivalents']:.1f}"
    return demo_pictures.Panel(title, video.request.caption.text, changed, work, saving, video.frames)


def figures_table(videos: Sequence[Video]) -> Table:
    """The figures of the requests, a column a request."""
    table = Table(title="Four requests on an empty cache", show_lines=True)
    table.add_column("request", style="bold")
    for video in videos:
        table.add_column(video.request.name, ratio=1, overflow="fold")
    cells = [_cells(video) for video in videos]
    for label in cells[0]:
        table.add_row(label, *(column[label] for column in cells))
    return table


def _cells(video: Video) -> dict[str, str]:
    """A request's column of the table, label to text."""
    figures, judged = video.figures, video.judged
    score = figures["match_score"]
    return {
        "prompt": video.request.caption.text,
        "outcome": f"[{_COLOURS.get(figures['outcome'], 'red')}]{figures['outcome']}[/]",
        "why": escape(figures["reason"]),
        "match score": "–" if score is None else f"{score:.2f}",
        "source prompt": figures["source_prompt"] or "–",
        "picture that differs": "–" if figures["looked"] is None else f"{figures['looked']:.0%}",
        "K1, K2": f"{figures['k1']}, {figures['k2']}",
        "steps computed": f"{figures['steps_computed']} of {figures['steps']}",
        "step equivalents": f"{figures['step_equivalents']:.1f}",
        "tokens in stage 2": " ".join(f"{share:.0%}" for share in figures["token_share"]) or "–",
        "sampling": f"{figures['sampling_s']:.2f} s",
        "added by Chorus": f"{figures['chorus_s']:.2f} s",
        "video shows": "\n".join(f"{'✓' if shown else '✗'} {name}" for name, shown in judged.items()),
    }


def comparison(target: Video, target_cold: Video) -> str:
    """One line on what the cache was worth to the second prompt."""
    cold, hit = target_cold.figures, target.figures
    seconds = hit["sampling_s"] + hit["chorus_s"]
    return (
        f"The similar prompt took {hit['step_equivalents']:.1f} steps' work and {seconds:.2f} s with the cache, "
        f"{cold['step_equivalents']:.0f} steps and {cold['sampling_s']:.2f} s without it."
    )


def machine(system: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures were measured on. system: the server's /system_stats."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(system["system"]["ram_total"] / 1e9, 1),
        "device": system["devices"][0]["name"],
        "python": platform.python_version(),
        "torch": system["system"]["pytorch_version"],
    }


if __name__ == "__main__":
    sys.exit(main())
