"""TGAA through the host."""

import torch

from .conftest import difference
from .graphs import GREEN, RED, graph


def test_new_words_are_amplified_and_change_the_result(run, cache):
    run(graph(RED, cache=cache))
    plain = run(graph(GREEN, cache=cache, k1=0.25, cfg=3.0))
    louder = run(graph(GREEN, cache=cache, k1=0.25, cfg=3.0, tgaa=True))
    assert [word for word, _ in louder.report["tokens"]] == ["green"]
    assert plain.report["tokens"] == []
    assert not torch.equal(louder.latent, plain.latent)
    assert "green ×2.00" in louder.outputs["tgaa"]["text"][0]


def test_it_is_exactly_a_no_op_where_the_prompts_say_the_same(run, cache):
    run(graph(RED, cache=cache, k1=0.0))
    plain = run(graph(RED, cache=cache, k1=0.25))
    same = run(graph(RED, cache=cache, k1=0.25, tgaa=True))
    assert same.report["outcome"] == plain.report["outcome"] == "hit"
    assert torch.equal(same.latent, plain.latent)


def test_it_does_nothing_without_a_hit(run, cache):
    cold = run(graph(RED, cache=cache, mode="write only", tgaa=True))
    plain = run(graph(RED, cache=cache, mode="off"))
    assert torch.equal(cold.latent, plain.latent)


def test_only_the_conditional_rows_are_amplified(run, cache, comfy_host, monkeypatch):
    """Batched or apart, cond and uncond give the same picture."""
    import comfy.model_patcher

    run(graph(RED, cache=cache))
    together = run(graph(GREEN, cache=cache, k1=0.25, cfg=3.0, tgaa=True, mode="read only"))
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "get_free_memory", lambda self, device: 0)
    apart = run(graph(GREEN, cache=cache, k1=0.25, cfg=3.0, tgaa=True, mode="read only"))
    assert apart.report["outcome"] == together.report["outcome"] == "hit"
    assert difference(apart.latent, together.latent) < 1e-3
