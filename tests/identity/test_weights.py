"""Latents are shared, and answers given, only under the weights that are really sampled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import files
from .conftest import assert_same
from .graphs import (
    CASES,
    GREEN,
    LORA,
    MODEL,
    OTHER_LORA,
    OTHER_MODEL,
    OTHER_PICTURE,
    PICTURE,
    QUANTISED,
    QUANTISED_MERGED,
    RED,
    SHIFT,
    Graph,
    in_cache,
    node,
    plain,
    request,
)


def with_loader(loader: dict, prompt: str = RED, lora: str | None = None, **kwargs) -> Graph:
    chain = {"shift": SHIFT}
    if lora is not None:
        chain["lora"] = node("LoraLoaderModelOnly", lora_name=lora, strength_model=0.6)
    return request(chain, prompt=prompt, loader=loader, **kwargs)


def of_file(name: str, dtype: str = "default") -> dict:
    return node("UNETLoader", unet_name=name, weight_dtype=dtype)


LOADERS = {
    "plain": (of_file(MODEL), of_file(OTHER_MODEL)),
    "quantised": (
        node("UnetLoaderGGUF", unet_name=QUANTISED),
        node("UnetLoaderGGUF", unet_name=QUANTISED_MERGED),
    ),
    "quantised, the other way round": (
        node("UnetLoaderGGUF", unet_name=QUANTISED_MERGED),
        node("UnetLoaderGGUF", unet_name=QUANTISED),
    ),
    "fp8 and fp8 fast": (of_file(MODEL, "fp8_e4m3fn"), of_file(MODEL, "fp8_e4m3fn_fast")),
    "fp8 fast and fp8": (of_file(MODEL, "fp8_e4m3fn_fast"), of_file(MODEL, "fp8_e4m3fn")),
    "fp8 and fp8 of another kind": (of_file(MODEL, "fp8_e4m3fn"), of_file(MODEL, "fp8_e5m2")),
    "whole and fp8": (of_file(MODEL), of_file(MODEL, "fp8_e4m3fn")),
    "whole and quantised": (of_file(MODEL), node("UnetLoaderGGUF", unet_name=QUANTISED)),
}


@pytest.mark.parametrize("pair", LOADERS)
def test_other_weights_are_never_hit_nor_identical(run, cache, pair):
    one, other = LOADERS[pair]
    assert run(in_cache(with_loader(one), cache)).outcome == "miss"
    for prompt in (RED, GREEN):
        g = with_loader(other, prompt)
        g["lookup"]["inputs"]["mode"] = "read only"  # or the next prompt would find this one's entry
        answer = run(in_cache(g, cache))
        assert answer.outcome in ("miss", "bypassed")
        assert_same(answer.latent, run(plain(g)).latent, f"the answer '{answer.outcome}'")


@pytest.mark.parametrize("loader", ["plain", "quantised", "fp8 and fp8 fast"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_same_weights_hit_whether_just_loaded_or_already_sampled(comfy_host, run, cache, loader, lora):
    """A LoRA is patched into the weights in place, in fp8 with rounding: the digest must not see that."""
    one, _ = LOADERS[loader]
    comfy_host.forget_outputs()
    assert run(in_cache(with_loader(one, lora=lora), cache), keep_nodes=True).outcome == "miss"
    loaded = run(in_cache(with_loader(one, GREEN, lora), cache), keep_nodes=True)
    assert loaded.outcome == "hit", loaded.report["reason"]
    anew = run(in_cache(with_loader(one, GREEN, lora, k1=0.75), cache))
    assert anew.outcome == "hit", anew.report["reason"]
    again = run(in_cache(with_loader(one, lora=lora), cache))
    assert (again.outcome, again.steps_computed) == ("identical", 0)


@pytest.mark.parametrize("loader", ["plain", "quantised", "fp8 and fp8 fast"])
@pytest.mark.parametrize(("lora", "earlier"), [(LORA, LORA), (None, LORA), (LORA, None)])
def test_weights_first_seen_while_a_lora_is_patched_in_are_the_same(comfy_host, run, cache, loader, lora, earlier):
    """Chorus meets a model that has been sampled already, and after a restart one that has not.

    lora: of the request; earlier: of the run without Chorus before it, which left the weights as it needed them.
    """
    one, _ = LOADERS[loader]
    comfy_host.forget_outputs()
    run(plain(with_loader(one, lora=earlier)), keep_nodes=True)
    first = run(in_cache(with_loader(one, lora=lora), cache), keep_nodes=True)
    assert first.outcome == "miss"
    hit = run(in_cache(with_loader(one, GREEN, lora), cache))
    assert hit.outcome == "hit", hit.report["reason"]
    again = run(in_cache(with_loader(one, lora=lora), cache))
    assert (again.outcome, again.steps_computed) == ("identical", 0)
    assert_same(again.latent, first.latent, "the stored result")


# -- files under one name -------------------------------------------------------------------------------------------


@pytest.fixture
def model_file(comfy_host) -> Iterator[tuple[Path, ...]]:
    """Files of their own to overwrite: (model, LoRA, quantised model, picture, number)."""
    base = comfy_host.base
    paths = (
        base / "models" / "diffusion_models" / "rewritten.safetensors",
        base / "models" / "loras" / "rewritten.safetensors",
        base / "models" / "diffusion_models" / "rewritten.gguf",
        base / "input" / "rewritten.png",
        base / "input" / "rewritten.txt",
    )
    (base / "input" / "one.txt").write_text("1.05")
    (base / "input" / "other.txt").write_text("1.20")
    sources = (
        files.WEIGHTS / MODEL,
        files.WEIGHTS / LORA,
        paths[2].with_name(QUANTISED),
        base / "input" / PICTURE,
        base / "input" / "one.txt",
    )
    for path, source in zip(paths, sources, strict=True):
        if path.suffix == ".safetensors":  # written as the others are, so that the lengths agree
            files.write(*files.read(source), path)
        else:
            shutil.copyfile(source, path)
    yield paths
    for path in paths:
        path.unlink()


def _rewritten(kind: str) -> Graph:
    if kind == "model":
        return with_loader(of_file("rewritten.safetensors"))
    if kind == "LoRA":
        return with_loader(of_file(MODEL), lora="rewritten.safetensors")
    if kind == "quantised":
        return with_loader(node("UnetLoaderGGUF", unet_name="rewritten.gguf"))
    if kind.startswith("patch"):
        patch = node("PatchFromFile", file="rewritten.txt", as_tensor=kind == "patch's tensor")
        return request({"shift": SHIFT, "patch": patch})
    g = CASES["control" if kind == "control picture" else "conditioning"].graph()
    g["picture" if kind == "control picture" else "mask_file"]["inputs"]["image"] = "rewritten.png"
    return g


REWRITTEN = {
    "model": 0,
    "LoRA": 1,
    "quantised": 2,
    "control picture": 3,
    "mask picture": 3,
    "patch's number": 4,
    "patch's tensor": 4,
}
MAY_HIT = ("patch's number", "patch's tensor")  # how strong a patch is need not be part of the space


@pytest.mark.parametrize("kind", REWRITTEN)
def test_a_file_with_another_content_under_its_name_is_another(comfy_host, run, cache, model_file, kind):
    path = model_file[REWRITTEN[kind]]
    g = _rewritten(kind)
    before = run(in_cache(g, cache))
    # Files of earlier tests lay under this name: what a patch has read of them is not known for sure.
    assert before.outcome == "miss" or kind.startswith("patch")
    instead = {
        "model": path.with_name(OTHER_MODEL),
        "LoRA": path.with_name(OTHER_LORA),
        "quantised": path.with_name(QUANTISED_MERGED),
        "patch's number": path.with_name("other.txt"),
        "patch's tensor": path.with_name("other.txt"),
    }.get(kind, path.with_name(OTHER_PICTURE))
    size = path.stat().st_size
    shutil.copyfile(instead, path)
    if not kind.endswith("picture"):
        assert path.stat().st_size == size, "the files must not be told apart by their length"
    expected = run(plain(g)).latent
    answer = run(in_cache(g, cache))
    if answer.outcome != "hit" or kind not in MAY_HIT:
        assert answer.outcome in ("miss", "bypassed")
        assert_same(answer.latent, expected, f"the answer '{answer.outcome}'")


@pytest.mark.parametrize("kind", ["model", "LoRA", "quantised"])
def test_a_file_replaced_while_it_is_loaded_does_not_lend_its_name(comfy_host, run, cache, model_file, kind):
    """A run with weights that are loaded already must not be stored as the new file's."""
    path = model_file[REWRITTEN[kind]]
    g = _rewritten(kind)
    comfy_host.forget_outputs()
    run(plain(g), keep_nodes=True)  # loads the old file, and Chorus has not seen it yet
    instead = {"model": OTHER_MODEL, "LoRA": OTHER_LORA, "quantised": QUANTISED_MERGED}[kind]
    replacement = path.with_name("replacement.tmp")
    shutil.copyfile(path.with_name(instead), replacement)
    os.replace(replacement, path)
    run(in_cache(g, cache), keep_nodes=True)  # still the old weights, in a server that goes on
    expected = run(plain(g)).latent  # the new file, as after a restart
    answer = run(in_cache(g, cache))
    assert_same(answer.latent, expected, f"the answer '{answer.outcome}'")


# -- the price of a digest ------------------------------------------------------------------------------------------


PATCHES = {
    "the model alone": {},
    "a LoRA": {"lora": node("LoraLoaderModelOnly", lora_name=LORA, strength_model=0.6)},
    "a patch that holds the network": {"odd": node("OddPatch", way="binds the network", gain=1.05)},
    "a LoRA and a patch that holds the network": {
        "lora": node("LoraLoaderModelOnly", lora_name=LORA, strength_model=0.6),
        "odd": node("OddPatch", way="binds the network", gain=1.05),
    },
}


@pytest.mark.parametrize("patches", PATCHES)
def test_weights_are_hashed_once_a_file(comfy_host, pack_module, run, cache, model_file, patches):
    """Also after a reload. The LoRA's own file is 3.2 MB, the model's 6.8 MB."""
    fresh = model_file[0].with_name(f"counted-{len(PATCHES[patches])}-{'lora' in PATCHES[patches]}.safetensors")
    shutil.copyfile(files.WEIGHTS / MODEL, fresh)
    model = fresh.stat().st_size
    counter = pack_module("chorus.comfy.content").counter

    def asked(prompt: str) -> Graph:
        patched = {"shift": SHIFT, **PATCHES[patches]}
        return in_cache(request(patched, prompt=prompt, loader=of_file(fresh.name)), cache)

    comfy_host.forget_outputs()
    before = counter.bytes
    assert run(asked(RED), keep_nodes=True).outcome == "miss"
    assert counter.bytes - before >= 0.9 * model, "the weights were not hashed where this test counts"
    for prompt, keep_nodes in ((GREEN, True), (RED, True), (RED, False)):
        before = counter.bytes
        answer = run(asked(prompt), keep_nodes=keep_nodes)
        assert answer.outcome == ("identical" if prompt == RED else "hit")
        assert counter.bytes - before < 0.6 * model, f"{(counter.bytes - before) / 1e6:.1f} MB hashed again"
    fresh.unlink()
