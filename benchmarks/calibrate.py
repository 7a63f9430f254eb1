"""Makes chorus/reuse/calibration.json from the full results of the tables `tuning` and `embedders`.

Both sample the tuning half of prompts and seeds. What a mean hit may lose is stated here; where the source's state is
taken, how many steps are saved and which scores count follow from what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tools.demo_graph import CHECKOUT

from . import report
from .prompts import vidprom
from .systems import DISTILLED_STEPS
from .tables.embedders import MATCH

CALIBRATION = CHECKOUT / "chorus" / "reuse" / "calibration.json"
EXTRA_LOSS = 0.005  # of alignment, that a source's state may cost beyond what fewer steps do
MOST_LOSS = 0.02  # of alignment, at any score
DETAILS_LOST = 0.1  # by a mean hit
DETAILS_LOST_DISTILLED = 0.4  # a distilled model has no step to spare, and users of it take speed for detail
SPREAD = 0.25  # of the schedule, between what a hit at the threshold and one at score 1 save
MOST_SELECTIVE, SELECTIVE_STEPS = 0.1, 2  # stage 2 is at most so long: skipping its steps loses no more (`regions`)
ALIKE = {"clip": "conditioning"}  # families that pool in the same way


def made(tuning: Mapping, embedders: Mapping, before: Mapping) -> dict:
    """The calibration that follows from the two results; an embedder that was not at hand keeps what it had."""
    measured = {r["embedder"]: r[MATCH]["mean"] for r in embedders["rows"] if r["scores"] == "all"}
    thresholds = {
        family: round(float(measured[ALIKE.get(family, family)]) * 20) / 20
        if ALIKE.get(family, family) in measured
        else had["threshold"]
        for family, had in before["embedders"].items()
    }
    threshold = thresholds["conditioning"]
    by_steps: dict[int, list] = {}
    for row in tuning["rows"]:
        by_steps.setdefault(row["steps"], []).append(row)
    return {
        "embedders": {family: {"threshold": value} for family, value in thresholds.items()},
        "bounds": {str(steps): _bounds(steps, rows, threshold) for steps, rows in by_steps.items()},
    }


def _bounds(steps: int, rows: Sequence[Mapping], threshold: float) -> dict[str, float]:
    start = _start(rows)
    taken = {r["saved"]: r for r in rows if r["state taken at"] == f"{start:g}"}
    fit = [k for k, r in taken.items() if r["alignment loss"]["mean"] <= MOST_LOSS]
    lost = DETAILS_LOST_DISTILLED if steps <= DISTILLED_STEPS else DETAILS_LOST
    most = (max(fit) + 0.99) / steps  # a share just below the next step
    wanted = min(_saving(steps, {k: taken[k]["details loss"]["mean"] for k in fit}, lost), max(fit) / steps)
    least_reuse, most_reuse = _map(steps, wanted, most, threshold)
    return {
        "least_reuse": least_reuse,
        "most_reuse": most_reuse,
        "selective": round(min(MOST_SELECTIVE, SELECTIVE_STEPS / steps), 4),
        "start": start,
    }


def _start(rows: Sequence[Mapping]) -> float:
    """The latest place from which, however much is saved, the state costs no words that fewer steps do not cost."""
    fewer = {r["saved"]: r["alignment loss"]["mean"] for r in rows if r["state taken at"] == "fewer steps"}
    extra: dict[float, float] = {}
    for r in rows:
        if r["state taken at"] not in ("fewer steps", "at K1"):
            place = float(r["state taken at"])
            extra[place] = max(extra.get(place, 0.0), r["alignment loss"]["mean"] - fewer[r["saved"]])
    harmless = [place for place in sorted(extra) if max(extra[p] for p in extra if p <= place) <= EXTRA_LOSS]
    if not harmless:
        raise ValueError(f"every place costs more than {EXTRA_LOSS} of alignment: sample earlier ones in `tuning`")
    return harmless[-1]


def _saving(steps: int, details_lost: Mapping[int, float], allowed: float) -> float:
    """The share of the schedule that may be saved until so many details are lost, between those sampled linearly."""
    saved = [0, *sorted(details_lost)]
    lost = np.maximum.accumulate([0.0, *(details_lost[k] for k in saved[1:])])
    if lost[-1] <= allowed:
        return saved[-1] / steps
    above = int(np.argmax(lost > allowed))
    return float(np.interp(allowed, lost[above - 1 : above + 1], saved[above - 1 : above + 1])) / steps


def _map(steps: int, wanted: float, most: float, threshold: float) -> tuple[float, float]:
    """(least_reuse, most_reuse), SPREAD apart below `most`, with which VidProM's hits save `wanted` on the mean."""
    scores = vidprom()(np.linspace(0, 1, 2001))
    positions = (scores[scores >= threshold] - threshold) / (1 - threshold)

    def at(middle: float) -> tuple[float, float]:
        high = min(middle + SPREAD / 2, most)
        return max(0.0, min(middle - SPREAD / 2, high)), high

    def saved(middle: float) -> float:
        low, high = at(middle)
        return float(np.floor((low + (high - low) * positions) * steps + 1e-6).mean()) / steps

    middles = np.linspace(0, 1 + SPREAD / 2, 2001)
    enough = [m for m in middles if saved(m) >= wanted - 1e-9]
    low, high = at(enough[0] if enough else middles[-1])
    return round(low, 3), round(high, 3)


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
        lines = ",\n".join(f'    "{key}": {json.dumps(value)}' for key, value in values.items())
        parts.append(f'  "{name}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
