"""The templates for which there is no small Wan run, too: with tiny models of random weights, in few pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools import templates

from .stand_ins import FIRST, SIMILAR, asking, reports, small, write_models

if TYPE_CHECKING:
    from tools.inprocess import ComfyHost

NAMES = (
    "first_last_frame_wan22",
    "fun_control_wan22",
    "image_to_video_hunyuan15",
    "image_to_video_wan21",
    "image_to_video_wan22_5b",
    "text_to_video_hunyuan15",
    "vace_wan21",
)


@pytest.mark.parametrize("name", NAMES)
def test_second_similar_prompt_is_a_hit_and_the_first_one_again_is_known(name: str, comfy_host: ComfyHost) -> None:
    template = templates.api_graph(name)
    write_models(template, comfy_host.base / "models" / "diffusion_models")
    graph = small(template, name)

    def asked(prompt: str) -> dict:
        asks = asking(graph, prompt)
        (report,) = reports(asks, comfy_host.execute(asks))
        return report

    cold = asked(FIRST)
    assert cold["outcome"] == "miss" and cold["steps_computed"] == cold["steps"] == 20, cold["reason"]
    hit = asked(SIMILAR)
    assert hit["outcome"] == "hit" and hit["source_prompt"] == FIRST, hit["reason"]
    assert 0 < hit["step_equivalents"] < 20
    comfy_host.forget_outputs()
    assert asked(FIRST)["outcome"] == "identical"
