"""What goes wrong elsewhere costs at most a miss, and nothing stays behind."""

import gc

import pytest
import torch

from .conftest import difference
from .graphs import GREEN, RED, UNLIKE, graph, plain


@pytest.fixture
def at_call(comfy_host, monkeypatch):
    """`at_call(n, raise_)`: calls `raise_` at the n-th block call of the model from now."""
    import comfy.ldm.wan.model as wan

    forward = wan.WanAttentionBlock.forward
    state = {"left": None, "raise": None}

    def failing(self, *args, **kwargs):
        if state["left"] is not None:
            state["left"] -= 1
            if state["left"] == 0:
                state["left"] = None
                state["raise"]()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(wan.WanAttentionBlock, "forward", failing)

    def arm(calls: int, raise_) -> None:
        state.update({"left": calls, "raise": raise_})

    return arm


def entries(pack_module, cache: str):
    return pack_module("chorus.comfy.caches").open_cache(cache).entries()


def only_file(pack_module, cache: str):
    """The file of the cache's one entry, once that is written."""
    entries(pack_module, cache)
    [blob] = (pack_module("chorus.comfy.caches").cache_folder(cache) / "blobs").rglob("*.safetensors")
    return blob


def test_a_run_stays_with_the_place_it_began_in(run, cache, pack_module, at_call, tmp_path):
    place = pack_module("chorus.comfy.place")
    try:
        at_call(17, lambda: place.choose(folder=str(tmp_path)))  # amid its steps
        run(graph(GREEN, cache=cache))
        assert place.current().folder == tmp_path
        assert entries(pack_module, cache) == []
        run(graph(RED, cache=cache))
        assert [entry.prompt for entry in entries(pack_module, cache)] == [RED]
    finally:
        place.choose(folder="")
    assert [entry.prompt for entry in entries(pack_module, cache)] == [GREEN]


def test_an_interrupted_run_stores_nothing_and_the_next_is_whole(run, cache, comfy_host, pack_module, at_call):
    import comfy.model_management

    from tools.client import ExecutionInterrupted

    def interrupt():
        raise comfy.model_management.InterruptProcessingException()

    expected = run(plain(graph(GREEN, cache=cache))).latent
    at_call(17, interrupt)
    with pytest.raises(ExecutionInterrupted):
        run(graph(GREEN, cache=cache))
    assert entries(pack_module, cache) == []
    again = run(graph(GREEN, cache=cache))
    assert again.report["outcome"] == "miss" and "stored" in again.summary
    assert torch.equal(again.latent, expected)


def test_an_exception_in_the_sampler_stores_nothing(run, cache, pack_module, at_call):
    from tools.client import ExecutionFailed

    def fail():
        raise RuntimeError("out of everything")

    waiting = pack_module("chorus.comfy.sampling.finished").finished_runs
    before = len(waiting)
    at_call(17, fail)
    with pytest.raises(ExecutionFailed, match="out of everything"):
        run(graph(RED, cache=cache))
    assert entries(pack_module, cache) == []
    assert len(waiting) == before


def test_nothing_remains_when_the_nodes_are_gone(run, cache):
    expected = run(plain(graph(GREEN, cache=cache))).latent
    run(graph(RED, cache=cache))
    hit = run(graph(GREEN, cache=cache, masks=True, tgaa=True))
    assert hit.report["outcome"] == "hit" and not torch.equal(hit.latent, expected)
    assert torch.equal(run(plain(graph(GREEN, cache=cache))).latent, expected)


def test_a_removed_stage_node_takes_its_effect_along(run, cache):
    run(graph(RED, cache=cache))
    g = graph(GREEN, cache=cache, k1=0.25)
    g["stage3"]["inputs"] |= {"model": ["model", 0], "chorus": ["lookup", 0]}
    del g["stage1"]
    without = run(g)
    assert without.report["outcome"] == "miss" and without.report["k1"] == 0
    assert torch.equal(without.latent, run(plain(graph(GREEN, cache=cache))).latent)


def test_an_identical_request_is_answered_from_the_cache(run, cache):
    first = run(graph(RED, cache=cache, cfg=3.0, masks=True, tgaa=True))
    again = run(graph(RED, cache=cache, cfg=3.0, masks=True, tgaa=True))
    assert again.report["outcome"] == "identical" and again.report["steps_computed"] == 0
    assert torch.equal(again.latent, first.latent)
    hit = run(graph(GREEN, cache=cache, cfg=3.0, masks=True, tgaa=True))
    hit_again = run(graph(GREEN, cache=cache, cfg=3.0, masks=True, tgaa=True))
    assert (hit.report["outcome"], hit_again.report["outcome"]) == ("hit", "identical")
    assert torch.equal(hit_again.latent, hit.latent)


@pytest.mark.parametrize("change", [{"cfg": 2.5}, {"steps": 9}, {"sampler": "heun"}, {"seed": 2}, {"tgaa": True}])
def test_a_request_that_differs_in_anything_is_not_identical(run, cache, change):
    run(graph(RED, cache=cache, cfg=3.0))
    other = run(graph(RED, cache=cache, **{"cfg": 3.0, **change}))
    assert other.report["outcome"] in ("hit", "miss") and other.report["steps_computed"] > 0


def test_the_same_prompt_with_another_seed_is_another_take(run, cache):
    first = run(graph(RED, cache=cache))
    take = run(graph(RED, cache=cache, seed=2))
    assert take.report["outcome"] == "miss" and "another take" in take.report["reason"]
    assert not torch.equal(take.latent, first.latent)


def test_a_hit_with_another_seed_is_another_video(run, cache):
    run(graph(RED, cache=cache))
    one = run(graph(GREEN, cache=cache, masks=True, tgaa=True))
    two = run(graph(GREEN, cache=cache, masks=True, tgaa=True, seed=2))
    assert (one.report["outcome"], two.report["outcome"]) == ("hit", "hit")
    assert difference(two.latent, one.latent) > 0.05


def test_an_unchanged_graph_queued_twice_runs_nothing(comfy_host, cache):
    comfy_host.forget_outputs()
    g = graph(RED, cache=cache)
    comfy_host.execute(g)
    for _ in range(2):
        again = comfy_host.execute(g)
        cached = {n for kind, data in again["status"]["messages"] if kind == "execution_cached" for n in data["nodes"]}
        assert cached == set(g)


@pytest.fixture
def rerun(comfy_host):
    """`rerun(graph)`: the nodes that had to run this time."""
    comfy_host.forget_outputs()

    def execute(g) -> set[str]:
        item = comfy_host.execute(g)
        cached = {n for kind, data in item["status"]["messages"] if kind == "execution_cached" for n in data["nodes"]}
        return set(g) - cached

    return execute


def test_an_entry_of_another_process_makes_the_look_up_run_again(comfy_host, cache, pack_module, rerun):
    red = graph(RED, cache=cache)
    rerun(red)
    plan = comfy_host.output("lookup")[0][0]
    shared = pack_module("chorus.comfy.caches").open_cache(cache)
    [own] = shared.entries()
    better = pack_module("chorus.cache").NewEntry(
        space=own.space,
        request="of another process",
        prompt=GREEN,
        embedder=own.embedder,
        vector=plan.vector,
        sigmas=own.sigmas,
        settings={**own.settings, "plan": "of another process"},
        seconds=1.0,
        is_source=True,
        parent=None,
        tensors=shared.load(own.id),
    )
    assert rerun(red) == set()
    shared.put(better)
    assert "lookup" in rerun(red)
    assert rerun(red) == set()


def test_entries_that_change_no_answer_make_no_look_up_run_again(comfy_host, cache, rerun):

    green = graph(GREEN, cache=cache)
    rerun(green)
    comfy_host.forget_outputs()
    rerun(graph(UNLIKE, cache=cache))
    comfy_host.forget_outputs()
    rerun(green)  # its own entry and an unlike one are there: the same answer
    assert rerun(green) == set()
    comfy_host.forget_outputs()
    rerun(graph(RED, cache=cache))  # a hit on green; stores no source
    comfy_host.forget_outputs()
    rerun(green)
    assert rerun(green) == set()


def test_a_damaged_entry_is_a_miss_with_a_message_never_served(run, cache, pack_module):
    run(graph(RED, cache=cache))
    blob = only_file(pack_module, cache)
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 0x10
    blob.write_bytes(data)
    expected = run(plain(graph(GREEN, cache=cache))).latent
    missed = run(graph(GREEN, cache=cache))
    assert missed.report["outcome"] == "miss"
    assert torch.equal(missed.latent, expected)


def test_fifty_runs_hold_no_more_than_five(run, cache, comfy_host):
    """Tensors alive after many hits and misses: those of the host's own caches."""

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    def one(index: int) -> None:
        prompt = GREEN if index % 2 else RED
        run(graph(prompt, cache=f"{cache}-{index % 3}", seed=index, steps=2, masks=True, tgaa=True, k1=0.5))

    for index in range(8):
        one(index)
    before = tensors()
    for index in range(8, 58):
        one(index)
    assert tensors() <= before + 10


def test_an_identical_entry_that_is_damaged_is_computed_again(run, cache, pack_module):
    first = run(graph(RED, cache=cache))
    blob = only_file(pack_module, cache)
    blob.write_bytes(blob.read_bytes()[:-100])
    again = run(graph(RED, cache=cache))
    assert again.report["outcome"] == "miss" and again.report["steps_computed"] == 8
    assert torch.equal(again.latent, first.latent)
    assert "stored" in again.summary
