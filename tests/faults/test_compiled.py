"""torch.compile as core's TorchCompileModel sets it, with a backend that only counts the graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sampling.graphs import GREEN, RED, Graph, graph, plain
from sampling.test_regions import masked

from .sampling_reference import patched

BOX = [(32, 32, 64, 64)]


@pytest.fixture
def graphs() -> Iterator[list[int]]:
    """One number for every graph that is compiled: its operations."""
    import torch._dynamo

    torch._dynamo.reset()
    compiled: list[int] = []
    yield compiled
    torch._dynamo.reset()


@pytest.fixture
def compiled_run(comfy_host, cache, graphs):
    """`compiled_run(graph)`: the model stays loaded and compiled from run to run. → (latent, report or None)"""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    def backend(module, _inputs, **_options):
        graphs.append(len(module.graph.nodes))
        return module.forward

    def compiling(patcher) -> None:
        set_torch_compile_wrapper(patcher, backend, options={"guard_filter_fn": skip_torch_compile_dict})

    count = iter(range(1000))

    def execute(g: Graph, compiled: bool = True):
        g = patched(g, compiling) if compiled else g
        g["sample"]["inputs"]["again"] = next(count)
        shown = comfy_host.execute(g)["outputs"].get("store", {}).get("chorus")
        return comfy_host.output("sample")[0][0]["samples"], shown[0] if shown else None

    with comfy_host.node_cache("classic"):  # by default the host may drop the loaded model when memory is short
        comfy_host.forget_outputs()
        yield execute
        comfy_host.forget_outputs()


@pytest.mark.timeout(600)
def test_compiled_models_keep_their_graphs_and_their_results(compiled_run, graphs, comfy_host, cache):
    def g(prompt: str, **settings) -> Graph:
        return graph(prompt, cache=cache, steps=4, **settings)

    def all_stages() -> Graph:
        return masked(g(GREEN, tgaa=True, k1=0.25, k2=0.75), BOX, comfy_host, visible=1)

    without, _ = compiled_run(plain(g(RED)))
    compiled = len(graphs)
    assert compiled > 0
    cold, report = compiled_run(g(RED, tgaa=True))
    assert report["outcome"] == "miss" and torch.equal(cold, without)
    assert len(graphs) == compiled, "a cold run compiled further graphs"
    hit, report = compiled_run(g(GREEN, k1=0.25, k2=0.25))
    assert report["outcome"] == "hit"
    assert len(graphs) == compiled, "full steps of a hit compiled further graphs"
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.utils.counters.clear()
    selective, report = compiled_run(all_stages())
    assert report["outcome"] == "hit" and any(share < 1 for share in report["token_share"])
    assert torch._dynamo.utils.counters["frames"].get("total", 0) < limit
    # Nothing of the patched calls is frozen into the compiled ones.
    assert torch.equal(compiled_run(plain(g(RED)))[0], without)
    # And the same as without torch.compile.
    for compiled_latent, asked in ((hit, g(GREEN, k1=0.25, k2=0.25)), (selective, all_stages())):
        asked["lookup"]["inputs"]["mode"] = "read only"
        asked["stage1"]["inputs"]["maximum"] = 0.99  # the same run, but not an identical request
        assert torch.equal(compiled_run(asked, compiled=False)[0], compiled_latent)
