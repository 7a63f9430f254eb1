"""From samples to a table, a JSON file and a plot."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from tools.demo_graph import CHECKOUT

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 2000


@dataclass
class Result:
    """One table. rows: flat dictionaries; an estimate is {"mean", "low", "high", "n"}."""

    name: str  # of the module and of the files
    title: str
    columns: Sequence[str]
    rows: list[dict[str, Any]]
    seeds: Sequence[int] = ()
    summary: dict[str, Any] = field(default_factory=dict)  # this table's part of its summary file
    draw: Callable[[Any], None] | None = None  # draws the plot on a matplotlib Axes
    plot_size: tuple[float, float] = (7.0, 4.2)  # inches
    summary_file: str = "summary.json"  # cache.json: what concerns the cache alone


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval, by the bootstrap over samples: [N] → mean, low, high, n."""
    return combined(lambda x: float(np.mean(x)), values)


def combined(statistic: Callable[..., float], *samples: Sequence[Any], resamples: int = RESAMPLES) -> dict[str, Any]:
    """A statistic of samples that belong together, sample by sample, with its 95 % bootstrap interval."""
    arrays = [np.asarray(s) for s in samples]
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"samples that belong together, but of sizes {sorted(len(a) for a in arrays)}")
    n = sizes.pop()
    value = statistic(*arrays)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples if n > 1 else 0):
        rows = rng.integers(n, size=n)
        drawn.append(statistic(*(a[rows] for a in arrays)))
    finite = [x for x in drawn if np.isfinite(x)]
    low, high = np.quantile(finite, (0.025, 0.975)) if finite else (value, value)
    return {"mean": _round(value), "low": _round(low), "high": _round(high), "n": n}


def over_halves(statistic: Callable[..., float], *samples: np.ndarray) -> dict[str, Any]:
    """A statistic of sets that the bootstrap's doubles would change, such as a Fréchet distance: [N, ...] each.

    Its spread is that over halves, drawn without doubles: half a finite set varies as the set itself does.
    """
    value, count = statistic(*samples), len(samples[0])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(100):
        rows = rng.permutation(count)[: count // 2]
        drawn.append(statistic(*(part[rows] for part in samples)))
    half = 1.96 * float(np.std(drawn))
    return {"mean": _round(value), "low": _round(value - half), "high": _round(value + half), "n": count}


def _round(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def shown(value: Any) -> str:
    """A cell: an estimate as mean and half width of its interval, or the range where that is lopsided."""
    if isinstance(value, dict):
        if value["mean"] is None:
            return "none"
        half = (value["high"] - value["low"]) / 2
        return f"{value['mean']:.3f} ± {half:.3f}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def machine() -> str:
    """What ran this, in words."""
    return f"{platform.machine()} {platform.system()}, CPU"


def commit() -> str:
    """The checkout's commit, with a + where files other than results differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!docs/results.md")
    return git("rev-parse", "HEAD").strip() + ("+" if changed.strip() else "")


def table(result: Result) -> Table:
    """For the terminal."""
    made = Table(*result.columns, title=result.title)
    for row in result.rows:
        made.add_row(*(shown(row.get(name, "")) for name in result.columns))
    return made


def markdown(result: dict[str, Any]) -> str:
    """The table of a result file, for docs/results.md."""
    columns = result["columns"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(shown(row.get(name, "")) for name in columns) + " |" for row in result["rows"]]
    return "\n".join(lines)


def write(result: Result, command: str, seconds: float, folder: Path = RESULTS) -> Path:
    """Write the result's JSON, and its plot as PNG beside it; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{result.name}.json"
    content = {
        "title": result.title,
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "seeds": list(result.seeds),
        "seconds": round(seconds, 1),
        "columns": list(result.columns),
        "rows": result.rows,
        "summary": result.summary,
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if result.draw is not None:
        _plot(result, folder / f"{result.name}.png")
    return file


def _plot(result: Result, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=result.plot_size, layout="constrained")
    assert result.draw is not None
    result.draw(axes)
    axes.set_title(result.title, fontsize=10)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    drawn = Image.open(file).convert("RGB")
    drawn.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)  # a third of the size, and looks the same


def summarise(result: Result, folder: Path = RESULTS) -> Path:
    """Bring one table's part of its summary file up to date; the others stay."""
    file = folder / result.summary_file
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for key, value in result.summary.items():
        if isinstance(value, dict) and "mean" not in value:  # by steps
            known[key] = {**known.get(key, {}), **value}
        else:
            known[key] = value
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return file
