"""docs/results.md, written from the full results, so that no figure in it can be another than the measured one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from tools.demo_graph import CHECKOUT

from . import report

PAGE = CHECKOUT / "docs" / "results.md"
_HEAD = """# Results

The bench writes this page from the JSON files in `benchmarks/results/`, which also hold seeds and intervals; each \
table names its command (`make bench` has few samples, `make bench-full` all). \
`looks`, `courses`, `hits`, `from_image`, `threshold` and `can_tell` sample the bench's model \
([bench_wan.md](bench_wan.md)), the others the small Wan ([small_wan.md](small_wan.md)), \
all but `looks` through the real host. \
A `+` behind a commit says that files of the checkout differed from it. \
The tables of the small Wan are of commits before 54d0079, when there was no look and join: \
their "Chorus" starts early. \
`±` is half of a 95 % bootstrap interval over requests, for Fréchet distances of one over halves of the requests. \
The choices made from these figures are in [method.md](method.md).

Alignment is the share of a prompt's attributes that the judge reads back from the video. A loss is relative to the \
same request sampled in full. The error of the named objects is their RMS difference (RGB in 0 to 1) from the best \
rendering of what the prompt says. Step equivalents are the \
cost of a run: a full step counts as 1, a selective one as its computed share of the tokens.
"""


def write(tables: Sequence[str], results: Path = report.RESULTS, page: Path = PAGE) -> None:
    """Write the page from the results that are there, in the order of `tables`."""
    parts = [_HEAD, _bars(results / "summary.json")]
    for name in tables:
        file = results / f"{name}.json"
        if file.exists():
            parts.append(_section(name, json.loads(file.read_text(encoding="utf-8")), results))
    page.write_text("\n".join(parts), encoding="utf-8")


def _section(name: str, result: dict, results: Path) -> str:
    about = str(importlib.import_module(f".tables.{name}", __package__).__doc__).strip().replace("\n", " ")
    lines = [f"## {result['title']}", "", about, ""]
    lines += [f"`{result['command']}`, {result['machine']}, commit {result['commit'][:10]}{result['commit'][40:]}.", ""]
    lines += [report.markdown(result), ""]
    if (results / f"{name}.png").exists():
        lines += [f"![{result['title']}](../benchmarks/results/{name}.png)", ""]
    return "\n".join(lines)


BARS = {
    "hit_cost": ("cost of a hit, share of the steps", "4 steps: at most 0.69; 20: 0.5; 50: 0.37"),
    "alignment_vs_fewer": ("alignment of hits beyond that of fewer steps at equal cost", "at least −0.01"),
    "details_vs_fewer": ("share of details that hits keep beyond fewer steps", "above 0"),
    "details_loss_over_fewer": ("details that hits lose over those that fewer steps lose", "at most 0.5"),
    "error_ratio_vs_fewer": ("error of the named objects over that of fewer steps", "at most 1.2"),
    "seams_ratio_vs_fewer": ("seams over those of fewer steps", "at most 1.2"),
    "consistency_ratio_own": (
        "difference to the source of fewer steps on the own seed over that of hits",
        "at least 2",
    ),
    "consistency_ratio_source": ("difference to the source: fewer steps, source's seed, over hits", "above 1"),
    "loss_ratio_vs_nirvana": ("alignment loss over NIRVANA's at equal cost", "at most 0.1"),
    "i2v_hit_cost_4": ("image to video, 4 steps: cost of a hit, share of the steps", "at most 0.69"),
    "i2v_alignment_vs_fewer": ("the same: alignment beyond that of fewer steps at equal cost", "at least −0.01"),
    "i2v_details_vs_fewer": ("the same: share of details kept beyond fewer steps", "above 0"),
    "hit_speedup_50_easycache": ("speedup of hits with EasyCache, 50 steps", "at least 3.58"),
    "alignment_loss_50_easycache": ("alignment loss of these", "at most 0.02"),
    "wall_over_limit": ("wall time of a hit over its limit", "at most 1.05"),
    "low_locality_wall_ratio": ("wall time of a request that finds nothing, over cold", "at most 1.01"),
    "low_locality_alignment_delta": ("alignment against cold at mean similarity 0.60", "0 within the interval"),
    "mask_iou": ("overlap of attention masks with the object", "at least 0.6"),
    "chain8_extra_loss": ("loss after 8 edits beyond that after 1", "at most 0.02"),
}


def _bars(file: Path) -> str:
    """The aims that this project has set itself, and what was measured."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lines = ["## Aims", "", "| what | wanted | measured | n |", "|---|---|---|---|"]
    for key, (what, wanted) in BARS.items():
        values = known.get(key)
        if values is None:
            continue
        by_steps = {"": values} if "mean" in values else dict(sorted(values.items(), key=lambda kv: int(kv[0])))
        for steps, value in by_steps.items():
            label = f"{what}, {steps} steps" if steps else what
            lines.append(f"| {label} | {wanted} | {_range(value)} | {value['n']} |")
    return "\n".join([*lines, ""])


def _range(value: dict) -> str:
    if value["mean"] is None:
        return "not defined: the rival lost nothing"
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
