"""What a hit costs and keeps: alignment against step equivalents, and what becomes of chains of reuse.

Every system samples the same held-out prompts through the real host, 20 Euler steps, CFG 3. A source prompt differs
from its target in one attribute. Alignment is the share of the prompt's attributes that the judge reads back.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from small_wan import judge, scenes
from tools import inprocess
from tools.demo_graph import Graph, build, load_template

RESULTS = Path(__file__).parent / "results" / "reuse_quality.json"
STEPS = 20
CHAIN = 8
_SHOWING = {"CreateVideo", "SaveVideo", "PreviewImage", "PreviewAny"}  # of no use without eyes


def edited(caption: scenes.Caption, rng: np.random.Generator) -> scenes.Caption:
    """The caption with one of its main attributes changed."""
    name = str(rng.choice(["colour", "shape", "direction", "background"]))
    taken = {getattr(caption, name)}
    if name == "colour" and caption.second:
        taken.add(caption.second[0])
    choices = {
        "colour": list(scenes.COLOURS),
        "shape": list(scenes.SHAPES),
        "direction": list(scenes.DIRECTIONS),
        "background": list(scenes.BACKGROUNDS),
    }[name]
    return replace(caption, **{name: str(rng.choice([c for c in choices if c not in taken]))})


class Bench:
    """Samples prompts through a host in this process."""

    def __init__(self, folder: Path):
        self.host = inprocess.boot(folder)
        self.template = load_template()

    def sample(
        self,
        caption: scenes.Caption,
        seed: int,
        *,
        cache: str | None,
        steps: int = STEPS,
        stage1_only: bool = False,
        amplified: bool = True,
    ) -> dict:
        """One request → its report with `alignment`. cache: None samples without Chorus."""
        made = build(self.template, caption.text, seed, use_chorus=cache is not None)
        graph: Graph = {k: n for k, n in made.nodes.items() if n["class_type"] not in _SHOWING}
        for node in graph.values():
            inputs = node["inputs"]
            if node["class_type"] == "KSampler":
                inputs["steps"] = steps
            if node["class_type"] == "ChorusCacheLookup":
                inputs["cache_name"] = cache
        if cache is not None and (stage1_only or not amplified):
            self._leave_out(graph, stage1_only, amplified)
        self.host.forget_outputs()
        began = time.perf_counter()
        history = self.host.execute(graph)
        seconds = time.perf_counter() - began
        decode = next(k for k, n in graph.items() if n["class_type"] == "VAEDecode")
        frames = self.host.output(decode)[0][0].cpu().numpy()
        right = judge.correct(frames, caption)
        shown = [o["chorus"][0] for o in history["outputs"].values() if "chorus" in o]
        report = shown[0] if cache else {"outcome": "plain", "step_equivalents": float(steps)}
        return {**report, "alignment": statistics.mean(right.values()), "right": right, "seconds": seconds}

    @staticmethod
    def _leave_out(graph: Graph, stage1_only: bool, amplified: bool) -> None:
        def only(kind: str) -> str:
            return next(k for k, n in graph.items() if n["class_type"] == kind)

        stage1, tgaa, stage3 = only("ChorusStage1Reuse"), only("TGAAPatch"), only("ChorusStage3Refine")
        if stage1_only:
            graph[stage1]["inputs"]["chorus"] = [only("ChorusCacheLookup"), 0]
        if stage1_only or not amplified:
            graph[stage3]["inputs"] |= {"model": [stage1, 0], "chorus": [stage1, 1]}
            del graph[tgaa]


def measure(bench: Bench, pairs: int, console: Console) -> dict[str, list[dict]]:
    """Every system on the same pairs of prompts → its reports, by system."""
    rng = np.random.default_rng(20_000)
    reports: dict[str, list[dict]] = {}

    def keep(system: str, report: dict) -> None:
        reports.setdefault(system, []).append(report)

    for index in track(range(pairs), "pairs", console=console):
        source = scenes.sample_caption(rng, held_out=True, template=0)
        target = edited(source, rng)
        cache, seed = f"bench-{uuid.uuid4().hex[:8]}", 1000 + index
        keep("source, cold", bench.sample(source, seed, cache=cache))
        keep("target, cold", bench.sample(target, seed, cache=None))
        systems = {
            "stage 1 only": bench.sample(target, seed, cache=cache, stage1_only=True),
            "without TGAA": bench.sample(target, seed, cache=cache, amplified=False),
            "all stages": bench.sample(target, seed, cache=cache),
            "all stages, another seed": bench.sample(target, seed + 500, cache=cache),
        }
        for name, report in systems.items():
            keep(name, report)
        fewer = max(1, round(systems["all stages"]["step_equivalents"]))
        keep("fewer steps at equal cost", bench.sample(target, seed, cache=None, steps=fewer))
    return reports


def measure_chains(bench: Bench, chains: int, console: Console) -> dict[str, list[dict]]:
    """Chains of edits, each request reusing what the cache offers then → reports by depth."""
    rng = np.random.default_rng(30_000)
    reports: dict[str, list[dict]] = {}
    for index in track(range(chains), "chains", console=console):
        caption, cache = scenes.sample_caption(rng, held_out=True, template=0), f"chain-{uuid.uuid4().hex[:8]}"
        for depth in range(CHAIN + 1):
            reports.setdefault(f"chain, request {depth + 1}", []).append(
                bench.sample(caption, 3000 + index, cache=cache)
            )
            caption = edited(caption, rng)
    return reports


def summary(reports: Sequence[dict]) -> dict:
    """Means with 95 % intervals (normal) over requests."""

    def mean(values: Sequence[float]) -> dict:
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return {"mean": round(statistics.mean(values), 4), "interval": round(1.96 * spread, 4)}

    hits = [r for r in reports if r["outcome"] == "hit"]
    return {
        "n": len(reports),
        "hits": len(hits),
        "alignment": mean([r["alignment"] for r in reports]),
        "step_equivalents": mean([r["step_equivalents"] for r in reports]),
        "alignment_of_hits": mean([r["alignment"] for r in hits]) if hits else None,
        "step_equivalents_of_hits": mean([r["step_equivalents"] for r in hits]) if hits else None,
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=16, help="prompt pairs")
    parser.add_argument("--chains", type=int, default=4, help="chains of edits")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    console = Console()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder))
        reports = measure(bench, options.pairs, console) | measure_chains(bench, options.chains, console)
        bench.host.module("chorus.comfy.caches").close_caches()
    table = Table("system", "n", "hits", "alignment", "± 95 %", "step equivalents")
    systems = {name: summary(r) for name, r in reports.items()}
    for name, s in systems.items():
        table.add_row(
            name,
            str(s["n"]),
            str(s["hits"]),
            f"{s['alignment']['mean']:.3f}",
            f"{s['alignment']['interval']:.3f}",
            f"{s['step_equivalents']['mean']:.2f}",
        )
    console.print(table)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "command": " ".join(["make bench", *arguments]),
        "commit": commit,
        "machine": f"{platform.machine()} {platform.system()}, CPU",
        "seconds": round(time.perf_counter() - began, 1),
        "systems": systems,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
