"""The LoRA in the repository makes four unguided steps resemble twenty guided ones."""

from __future__ import annotations

from safetensors.torch import load_file

from bench_wan import export, sampling
from bench_wan.text import Encoder
from bench_wan.twin import Twin
from small_wan.distill import LORA_PREFIX, merge

TEXTS = ("a red circle moving left over a navy background", "a green square moving right over a teal background")


def test_four_steps_under_the_lora_are_nearer_to_twenty_than_without_it():
    weights = {name: value.float() for name, value in load_file(export.MODEL_FILE).items()}
    factors = {name.removeprefix(LORA_PREFIX): value.float() for name, value in load_file(export.LORA_FILE).items()}
    context, noise = Encoder()(list(TEXTS)), sampling.noise(range(len(TEXTS)))

    def made(with_lora: bool, steps: int, cfg: float):
        model = Twin().requires_grad_(False)
        model.load_state_dict(merge(weights, factors) if with_lora else weights)
        return sampling.path(model, context, noise, steps, cfg)[-1]

    wanted = made(False, 20, sampling.CFG)
    near, far = ((made(lora, 4, 1.0) - wanted).norm() / wanted.norm() for lora in (True, False))
    assert near < 0.9 * far, (near, far)
