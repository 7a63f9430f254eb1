"""Makes chorus/reuse/calibration.json from the full results of the tables `tuning` and `embedders`.

Both sample the tuning half of prompts and seeds. `tuning` states what a hit may lose, and from that follow where the
source's state is taken and how many steps a hit with score 1 saves; `embedders` which scores count as a match.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.demo_graph import CHECKOUT

from . import report
from .tables.embedders import MATCH
from .tables.tuning import most_saved, place

CALIBRATION = CHECKOUT / "chorus" / "reuse" / "calibration.json"
SPREAD = 0.25  # of the schedule, between what a hit at the threshold and one at score 1 save
MOST_SELECTIVE, SELECTIVE_STEPS = 0.1, 2  # stage 2 is at most so long: skipping its steps loses no more (`regions`)
ALIKE = {"clip": "conditioning"}  # families that pool in the same way


def made(tuning: Mapping, embedders: Mapping, before: Mapping) -> dict:
    """The calibration that follows from the two results. An embedder that was not measured keeps its figures."""
    measured = {r["embedder"]: r[MATCH]["mean"] for r in embedders["rows"] if r["scores"] == "all"}
    thresholds = {
        family: round(float(measured[ALIKE.get(family, family)]) * 20) / 20
        if ALIKE.get(family, family) in measured
        else had["threshold"]
        for family, had in before["embedders"].items()
    }
    by_steps: dict[int, list] = {}
    for row in tuning["rows"]:
        by_steps.setdefault(row["steps"], []).append(row)
    return {
        "steps_per_cfg": before["steps_per_cfg"],  # chosen by hand: no table measures CFG
        "embedders": {family: {"threshold": value} for family, value in thresholds.items()},
        "bounds": {str(steps): _bounds(steps, rows) for steps, rows in by_steps.items()},
    }


def _bounds(steps: int, rows: Sequence[Mapping]) -> dict[str, float]:
    start = place(rows)
    most = (most_saved(rows, start) + 0.5) / steps  # half a step above, so that scores somewhat below 1 get it too
    return {
        "least_reuse": round(max(0.0, most - SPREAD), 4),
        "most_reuse": round(most, 4),
        "selective": round(min(MOST_SELECTIVE, SELECTIVE_STEPS / steps), 4),
        "start": start,
    }


def main(arguments: Sequence[str]) -> int:
    """Write the calibration, or with --check say whether it is what the results make."""
    parser = argparse.ArgumentParser(prog="python tools/launch.py benchmarks.calibrate", description=__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder of tuning.json and embedders.json")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the file is another")
    options = parser.parse_args(arguments)
    before = json.loads(CALIBRATION.read_text(encoding="utf-8"))
    after = from_results(options.results, before)
    if options.check:
        return int(after != before)
    CALIBRATION.write_text(shown(after), encoding="utf-8")
    print(shown(after), end="")
    return 0


def from_results(folder: Path, before: Mapping) -> dict:
    """The calibration from the result files in a folder."""
    tuning, embedders = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("tuning", "embedders")
    )
    return made(tuning, embedders, before)


def shown(calibration: Mapping) -> str:
    """The file's text, a line each embedder and number of steps."""
    parts = []
    for name, values in calibration.items():
        if not isinstance(values, Mapping):
            parts.append(f'  "{name}": {json.dumps(values)}')
            continue
        lines = ",\n".join(f'    "{key}": {json.dumps(value)}' for key, value in values.items())
        parts.append(f'  "{name}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
