"""A fault planted at each statement of Chorus, in turn, costs a line and never the render."""

from __future__ import annotations

import gc
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sampling.graphs import GREEN, RED, Graph, graph, plain

from .planting import Spot, Spots

# What runs between the look-up node and the store node. Patterns may match nothing.
MODULES = (
    "nodes/*.py",
    "chorus/comfy/*.py",
    "chorus/comfy/networks/**/*.py",
    "chorus/comfy/techniques/**/*.py",
    "chorus/comfy/sampling/**/*.py",
    "chorus/reuse/**/*.py",
    "chorus/prompt/**/*.py",
)
SAMPLE = 24  # statements a scenario where not all are asked for
PLANTED = "a planted fault"


@dataclass(frozen=True)
class Scenario:
    """A graph that is run with faults, in a copy of a cache that holds what `before` left.

    after: run without a fault afterwards: what was stored must serve it rightly.
    only: ends of the names of the files whose statements are tried; () for all.
    """

    before: tuple[Graph, ...]
    target: Graph
    after: Graph
    only: tuple[str, ...] = ()


def _graph(prompt: str, **settings: Any) -> Graph:
    g = graph(prompt, cache="", **{"steps": 4, "masks": True, "tgaa": True, "k1": 0.25, "k2": 0.75, **settings})
    g["latent"]["inputs"] |= {"width": 64, "height": 64, "length": 9}  # 3 × 4 × 4 tokens, for speed
    return g


def one_node(prompt: str) -> Graph:
    g = _graph(prompt, masks=False, tgaa=False)
    looked_up = g.pop("lookup")["inputs"]
    del g["stage1"], g["stage3"]
    g["lookup"] = {"class_type": "Chorus", "inputs": looked_up}
    g["sample"]["inputs"]["model"] = ["lookup", 0]
    g["store"]["inputs"]["chorus"] = ["lookup", 1]
    return g


def looking(prompt: str) -> Graph:
    """A hit with a look and selective steps."""
    g = _graph(prompt, start=0.0, k1=None)
    g["srd"]["inputs"] |= {"edit_dilation": 0, "visible_dilation": 0}
    return g


LOOK = ("look_and_join.py", "join.py", "course.py", "networks/base.py", "wan.py", "run.py", "regions.py", "source.py")

SCENARIOS = {
    "cold": Scenario((), _graph(RED), _graph(GREEN)),
    "hit": Scenario((_graph(RED),), _graph(GREEN, cfg=2.0), _graph(GREEN, cfg=2.0)),
    "look": Scenario((_graph(RED),), looking(GREEN), looking(GREEN), LOOK),
    "identical": Scenario((_graph(RED),), _graph(RED), _graph(GREEN)),
    "one node": Scenario((), one_node(RED), one_node(GREEN)),
}


class Bench:
    """Runs graphs on models that stay loaded, so that what a fault leaves on them would show."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.caches = host.module("chorus.comfy.caches")
        pack = host.base / "custom_nodes" / "chorus"
        self.spots = Spots(pack, MODULES)
        # The host asks for fingerprints before a graph can be interrupted.
        self.interruptible = Spots(pack, MODULES, ("define_schema", "fingerprint_inputs"))
        self._count = 0

    def again(self, g: Graph, cache: str) -> Graph:
        """The graph with another cache, and a mark that makes the host sample anew."""
        self._count += 1
        g = {name: {**n, "inputs": dict(n["inputs"])} for name, n in g.items()}
        for n in g.values():
            if "cache_name" in n["inputs"]:
                n["inputs"]["cache_name"] = cache
        g["sample"]["inputs"]["again"] = self._count
        return g

    def run(self, g: Graph, cache: str) -> tuple[torch.Tensor, str]:
        """The latent, and everything shown."""
        item = self.host.execute(self.again(g, cache))
        return self.host.output("sample")[0][0]["samples"], str(item["outputs"])

    def plain(self, g: Graph) -> torch.Tensor:
        self.host.execute(self.again(plain(g), ""))
        return self.host.output("sample")[0][0]["samples"]

    def copy(self, cache: str) -> str:
        """Another cache that holds the same."""
        name = f"planted-{uuid.uuid4().hex[:12]}"
        self.caches.open_cache(cache).entries()  # waits for what is still being written
        folder = self.caches.cache_folder(cache)
        if folder.exists():
            shutil.copytree(folder, self.caches.cache_folder(name))
        return name

    def on_the_model(self) -> str:
        """What lies on the model that all these graphs share: patches, wrappers, attributes of its modules."""
        [patcher] = self.host.output("model")[0]
        network = patcher.model.diffusion_model
        attributes = [sorted(k for k in vars(m) if k[0] != "_") for m in network.modules()]
        own = {k: sorted(map(str, v)) if isinstance(v, dict) else str(v) for k, v in patcher.model_options.items()}
        return str([own, sorted(map(str, patcher.object_patches)), sorted(patcher.wrappers), attributes])


@pytest.fixture(scope="module")
def bench(comfy_host, _odd_nodes) -> Iterator[Bench]:
    with comfy_host.node_cache("classic"):  # by default the host may drop the loaded model when memory is short
        comfy_host.forget_outputs()
        yield Bench(comfy_host)
        comfy_host.forget_outputs()


def _sampled(spots: dict[Spot, int], everything: bool) -> list[Spot]:
    """All, or evenly some; each function's first one among them as far as there is room."""
    ordered = sorted(spots)
    if everything or len(ordered) <= SAMPLE:
        return ordered
    firsts = list({(s.file, s.function): s for s in reversed(ordered)}.values())
    rest = [s for s in ordered if s not in set(firsts)]
    chosen = firsts[:: max(1, -(-len(firsts) // SAMPLE))]
    room = SAMPLE - len(chosen)
    return sorted([*chosen, *(rest[:: -(-len(rest) // room)] if room > 0 else [])])


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_exception_at_any_statement_gives_the_render_without_chorus(bench, said, name, pytestconfig):
    scenario = SCENARIOS[name]
    prepared = bench.copy("nothing")
    for g in scenario.before:
        bench.run(g, prepared)
    expected = {}
    for which, g in {"target": scenario.target, "after": scenario.after}.items():
        expected[which] = bench.plain(g)
    unharmed = bench.copy(prepared)
    spots = bench.spots.executed(lambda: expected.update(right=bench.run(scenario.target, unharmed)[0]))
    expected["right after"] = bench.run(scenario.after, unharmed)[0]
    spots = {spot: times for spot, times in spots.items() if not scenario.only or spot.file.endswith(scenario.only)}
    assert len(spots) > 20 and {spot.file.rsplit("/", 1)[-1] for spot in spots} >= {
        file for file in scenario.only if "/" not in file
    }
    clean = bench.on_the_model()

    failures: dict[str, str] = {}
    everything = pytestconfig.getoption("--all-lines")
    chosen = _sampled(spots, everything)
    for index, spot in enumerate(chosen):
        kinds: list[Callable[[str], Exception]] = [RuntimeError, torch.OutOfMemoryError]
        for kind in kinds if everything else kinds[index % 2 :][:1]:
            for occurrence in sorted({1, spots[spot]} if everything or index % 3 == 0 else {1}):
                said.take()
                problem = _one(bench, scenario, bench.copy(prepared), spot, kind(PLANTED), occurrence, expected, said)
                if not problem and bench.on_the_model() != clean:
                    problem = "something stays on the model"
                if problem:
                    failures[f"{spot}, {kind.__name__}, time {occurrence}"] = problem
    gc.collect()
    assert torch.equal(bench.plain(scenario.target), expected["target"]), "the model is another than before"
    listed = "\n".join(f"{where}: {problem}" for where, problem in failures.items())
    assert not failures, f"{len(failures)} of {len(chosen)} of {len(spots)} statements:\n{listed}"


def _one(bench, scenario, cache, spot, error, occurrence, expected, said) -> str:
    """What is wrong with a run in which `error` was raised at `spot`; "" when nothing is."""
    outcome: dict[str, Any] = {}

    def faulty() -> None:
        outcome["latent"], outcome["shown"] = bench.run(scenario.target, cache)

    try:
        reached = bench.spots.plant(spot, error, faulty, occurrence)
    except Exception as failed:
        return f"the render is lost: {type(failed).__name__}: {str(failed).splitlines()[0][:150]}"
    if not any(torch.equal(outcome["latent"], expected[which]) for which in ("target", "right")):
        return "another video than without Chorus"
    if reached and PLANTED not in outcome["shown"] + said.take():
        return "nothing is said about it"
    try:
        after, _ = bench.run(scenario.after, cache)
    except Exception as failed:
        return f"the next render is lost: {type(failed).__name__}: {str(failed).splitlines()[0][:150]}"
    if not any(torch.equal(after, expected[which]) for which in ("after", "right after")):
        return "the next request gets a wrong video"
    return ""


def test_an_interrupt_at_any_statement_interrupts(bench, pytestconfig):
    import comfy.model_management

    from tools.client import ExecutionInterrupted

    scenario = SCENARIOS["hit"]
    prepared = bench.copy("nothing")
    for g in scenario.before:
        bench.run(g, prepared)
    unharmed = bench.copy(prepared)
    spots = bench.interruptible.executed(lambda: bench.run(scenario.target, unharmed))
    right = bench.run(scenario.after, unharmed)[0]
    clean = bench.on_the_model()
    # What runs when a graph is queued runs in the server, where no interrupt is raised.
    # Behind the store (`stored_figures`), the entry is there already.
    during = [spot for spot in sorted(spots) if not any(part in str(spot) for part in ("store", "files"))]
    failures = {}
    for spot in during if pytestconfig.getoption("--all-lines") else during[:: max(1, len(during) // 15)]:
        cache, error = bench.copy(prepared), comfy.model_management.InterruptProcessingException()
        finished = False
        try:
            reached = bench.interruptible.plant(spot, error, lambda c=cache: bench.run(scenario.target, c))
            finished = True
        except ExecutionInterrupted:
            reached = True
        entries = len(bench.caches.open_cache(cache).entries())
        if finished and reached:
            failures[str(spot)] = "went on"
        elif entries != 1:
            failures[str(spot)] = f"{entries} entries"
        elif bench.on_the_model() != clean:
            failures[str(spot)] = "something stays on the model"
        elif not torch.equal(bench.run(scenario.after, cache)[0], right):
            failures[str(spot)] = "the next run is another"
    assert not failures, "\n".join(f"{where}: {problem}" for where, problem in failures.items())
