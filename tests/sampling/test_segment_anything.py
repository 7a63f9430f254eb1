"""Masks by segment-anything: the real network with random weights, as its published ones cannot be had here."""

import pytest
import torch

from .graphs import GREEN, RED, graph, node


@pytest.fixture(scope="module")
def checkpoint(comfy_host) -> str:
    from segment_anything import sam_model_registry

    folder = comfy_host.base / "models" / "sams"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    name = "sam_vit_b_random.pth"
    torch.save(sam_model_registry["vit_b"]().state_dict(), folder / name)
    yield name
    (folder / name).unlink()


def test_a_segmenter_refines_the_place_of_the_changed_words(run, cache, comfy_host, pack_module, checkpoint):
    first = graph(RED, cache=cache, cfg=3.0)
    first["vae"] = node("SmallWanVAELoader")
    first["decode"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    first["frame"] = node("ImageFromBatch", image=["decode", 0], batch_index=0, length=1)
    first["store"]["inputs"]["frames"] = ["frame", 0]
    run(first)
    g = graph(GREEN, cache=cache, cfg=3.0, masks=True)
    g["srd"]["inputs"] |= {"masks_from": "segment anything", "sam_checkpoint": checkpoint}
    hit = run(g)
    assert hit.report["outcome"] == "hit"
    mask = comfy_host.output("srd")[1][0]
    assert mask.shape == (1, 96, 96)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    segmenter = pack_module("chorus.comfy.masks")._predictor
    assert segmenter.cache_info().currsize == 1
    segmenter.cache_clear()
