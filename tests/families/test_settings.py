"""What a request is set to beside its prompt and inputs: each sampler's own settings, and nodes behind the encoder."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import pytest
import torch

from .catalog import FAMILIES, FIRST, SIMILAR, Family, Graph, node, plain, with_input
from .conftest import Answer, away
from .models import Tiny

STEPS = 8
EXPERTS = next(one for one in FAMILIES if one.name == "Wan 2.2 14B T2V, two experts")


class StyleOfNumber:
    """A style model as Flux Redux has it: a picture becomes further tokens of the text."""

    RETURN_TYPES = ("STYLE_MODEL",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"tokens": ("INT", {"default": 3})}}

    def make(self, tokens: int) -> tuple[Any]:
        class Style:
            def get_cond(self, seen: Any) -> torch.Tensor:
                given = seen.last_hidden_state[:, :tokens]
                mix = torch.randn(given.shape[-1], 64, generator=torch.Generator().manual_seed(3))
                return 3 * (given @ mix) / given.shape[-1] ** 0.5

        return (Style(),)


class WholeText:
    """Another vector of the whole text, as a text encoder beside the first one gives it."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "put"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "seed": ("INT", {"default": 0})}}

    def put(self, conditioning: list[Any], seed: int) -> tuple[Any]:
        drawn = torch.Generator().manual_seed(seed)
        return (
            [
                [tokens, {**more, "pooled_output": 2 * torch.randn(more["pooled_output"].shape, generator=drawn)}]
                for tokens, more in conditioning
            ],
        )


class EmptyShape:
    """A latent of three dimensions, as those of shapes and sound are."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing"
    INPUTS: ClassVar[dict[str, Any]] = {"required": {"batch_size": ("INT", {"default": 1})}}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return cls.INPUTS

    def make(self, batch_size: int) -> tuple[Any]:
        return ({"samples": torch.zeros(batch_size, 64, 16)},)


@pytest.fixture(scope="module", autouse=True)
def further_nodes(comfy_host):
    import nodes

    with pytest.MonkeyPatch.context() as patch:
        for made in (StyleOfNumber, WholeText, EmptyShape):
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, made.__name__, made)
        yield


@pytest.fixture
def ask(comfy_host):
    """`ask(family, graph)`: sampled anew, whatever the host still knows of it."""

    def asked(family: Family, graph: Graph) -> Answer:
        family.write(comfy_host.base / "models" / "diffusion_models")
        comfy_host.forget_outputs()
        outputs = comfy_host.execute(graph)["outputs"]
        return Answer(
            comfy_host.output("sample")[0][0]["samples"].clone(), outputs.get("store", {}).get("chorus", [{}])[0]
        )

    return asked


@pytest.fixture
def cache() -> str:
    return f"settings {uuid.uuid4().hex[:12]}"


def seeded(graph: Graph, seed: int) -> Graph:
    for one in graph.values():
        for name in {"seed", "noise_seed"} & set(one["inputs"]):
            if one["class_type"].startswith("KSampler"):
                one["inputs"][name] = seed
    return graph


def through(graph: Graph, family: Family, link: list[Any]) -> Graph:
    """The graph whose positive conditioning comes from `link`."""
    for name in ("chorus", "sample"):
        graph[name]["inputs"]["positive"] = link
    return graph


SECOND = {
    "CFG": ("sample.cfg", 5.0),
    "sampler": ("sample.sampler_name", "dpmpp_2m"),
    "negative prompt": ("sample.negative", ["other", 0]),
}


def of_two(cache: str, prompt: str, changed: str = "", cfg: float = 1.0) -> Graph:
    """Two experts, 8 steps. changed: what of the second sampler; cfg: its own."""
    graph = with_input(EXPERTS.graph(prompt, cache, mode="read and write", steps=STEPS), "sample.cfg", cfg)
    graph["other"] = node("CLIPTextEncode", clip=["clip", 0], text="calm sea at night, pink")
    return with_input(graph, *SECOND[changed]) if changed else graph


@pytest.mark.parametrize("changed", SECOND)
def test_a_second_sampler_that_is_set_otherwise_computes_all_its_steps(ask, cache, changed):
    cfg = 3.0 if changed == "negative prompt" else 1.0
    source = ask(EXPERTS, of_two(cache, FIRST, cfg=cfg))
    assert source.outcome == "miss"
    own = ask(EXPERTS, plain(of_two(cache, FIRST, changed, cfg))).latent
    hit = ask(EXPERTS, of_two(cache, FIRST, changed, cfg))
    boundary = EXPERTS.graph(FIRST, cache, steps=STEPS)["sample"]["inputs"]["start_at_step"]
    assert hit.outcome == "hit" and hit.report["steps_computed"] >= 1 + STEPS - boundary
    assert any(note.startswith("the second sampler computes all its steps") for note in hit.report["notes"])
    if changed == "CFG":  # the others change little in this model
        assert away(hit.latent, own) < 0.5 * away(source.latent, own)


def test_a_second_sampler_that_is_set_alike_skips_steps(ask, cache):
    assert ask(EXPERTS, of_two(cache, FIRST)).outcome == "miss"
    hit = ask(EXPERTS, of_two(cache, SIMILAR))
    assert hit.outcome == "hit" and hit.report["step_equivalents"] < STEPS - 2
    assert not any("second sampler" in note for note in hit.report["notes"])


def test_a_step_cache_on_the_second_expert_alone_is_seen(ask, cache):
    def graph(prompt: str, on: bool) -> Graph:
        made = of_two(cache, prompt)
        if on:
            patch = {"reuse_threshold": 2.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
            made["patch"] = node("EasyCache", model=["unet1", 0], **patch)
            made["chorus"]["inputs"]["low_noise_model"] = ["patch", 0]
        return made

    assert ask(EXPERTS, graph(FIRST, True)).outcome == "miss"
    hit = ask(EXPERTS, graph(SIMILAR, False))
    assert hit.outcome == "hit"
    assert any(note.startswith("the second sampler computes all its steps") for note in hit.report["notes"])


def test_the_same_prompt_and_seed_with_another_sampler_is_sampled_in_full(ask, cache):
    family = next(one for one in FAMILIES if one.name == "Wan 2.1 T2V")
    graph = family.graph(FIRST, cache, mode="read and write", steps=STEPS)
    assert ask(family, graph).outcome == "miss"
    other = with_input(graph, "sample.sampler_name", "dpmpp_2m")
    own = ask(family, plain(other)).latent
    answer = ask(family, other)
    assert answer.outcome == "miss" and "with another sampler" in answer.reason
    assert torch.equal(answer.latent, own)


def test_samplers_whose_schedules_do_not_meet_are_told_so(ask, cache):
    graph = with_input(of_two(cache, FIRST), "sample.scheduler", "beta")
    own = ask(EXPERTS, plain(graph)).latent
    answer = ask(EXPERTS, graph)
    assert answer.outcome == "bypassed" and "does not begin at the sigma" in answer.reason
    assert torch.equal(answer.latent, own)


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.name in ("Flux", "Wan 2.1 I2V")], ids=lambda f: f.name
)
def test_another_style_picture_is_no_hit(ask, cache, family: Family):
    def graph(picture: int, prompt: str = FIRST, strength: float = 1.0) -> Graph:
        made = family.graph(prompt, cache, mode="read and write")
        made["styler"] = node("StyleOfNumber", tokens=3)
        made["seen"] = node("FamilySight", seed=picture, width=1280)
        made["styled"] = node(
            "StyleModelApply",
            conditioning=family.positive,
            style_model=["styler", 0],
            clip_vision_output=["seen", 0],
            strength=strength,
            strength_type="multiply",
        )
        return through(made, family, ["styled", 0])

    assert ask(family, graph(1)).outcome == "miss"
    assert ask(family, graph(1, SIMILAR)).outcome == "hit"
    for other in (graph(2), graph(1, strength=0.5)):
        answer = ask(family, other)
        assert answer.outcome == "miss" and "another style picture" in answer.reason


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES if one.name in ("Flux", "HunyuanVideo 1.0 T2V")], ids=lambda f: f.name
)
def test_another_vector_of_the_whole_text_is_another_text(ask, cache, family: Family):
    def graph(vector: int, seed: int = 1) -> Graph:
        made = family.graph(FIRST, cache, mode="read and write")
        made["whole"] = node("WholeText", conditioning=family.positive, seed=vector)
        return seeded(through(made, family, ["whole", 0]), seed)

    assert ask(family, graph(1)).outcome == "miss"
    assert "the same prompt" in ask(family, graph(1, seed=2)).reason
    assert "the same prompt" not in ask(family, graph(2, seed=2)).reason


def test_a_latent_that_is_no_picture_is_left_alone(ask, cache, monkeypatch):
    import comfy.samplers

    config = {"in_channels": 64, "context_in_dim": 64, "hidden_size": 256, "mlp_ratio": 4.0, "num_heads": 16}
    config |= {"depth": 1, "depth_single_blocks": 1, "qkv_bias": True, "guidance_embed": False}
    shape = Family(
        "a shape",
        (Tiny("comfy.ldm.hunyuan3d.model:Hunyuan3Dv2", config),),
        {"empty": node("EmptyShape", batch_size=1)},
        {},
        positive=["encode", 0],
        negative=["blurry", 0],
        latent=["empty", 0],
    )
    calls = []
    inner = comfy.samplers.CFGGuider.predict_noise
    monkeypatch.setattr(
        comfy.samplers.CFGGuider, "predict_noise", lambda *args, **kw: (calls.append(1), inner(*args, **kw))[1]
    )
    answer = ask(shape, shape.graph(FIRST, cache, steps=4))
    assert answer.outcome == "bypassed" and "3 dimensions" in answer.reason
    assert len(calls) == 4
