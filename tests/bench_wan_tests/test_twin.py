"""The twin that trains is the network that the host samples, and its texts are the ones that the host encodes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from bench_wan.text import Encoder
from bench_wan.twin import CONFIG, Twin
from small_wan import architecture, export, sampling, text_encoder

TEXTS = [
    "",
    "a red circle moving left over a navy background",
    "a red circle moving left, a green square on its left, two white dots, the camera pans left over a navy background",
    "word " * 40,
]


@pytest.fixture(scope="module")
def host(comfy_host) -> torch.nn.Module:
    """The host's network with random weights everywhere, so that no part is silent."""
    torch.manual_seed(0)
    model = architecture.build().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.startswith("head.head"):
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def twin_of(state: dict[str, torch.Tensor], **config: int) -> Twin:
    twin = Twin(**config).requires_grad_(False)
    twin.load_state_dict({name: value.float() for name, value in state.items()})
    return twin


def request(batch: int, frames: int, height: int, width: int, channels: int = 16):
    generator = torch.Generator().manual_seed(batch + height)
    x = torch.randn(batch, channels, frames, height, width, generator=generator)
    context = torch.cat([text_encoder.encode(TEXTS[i % len(TEXTS)]) for i in range(1, batch + 1)])
    return x, torch.linspace(950.0, 30.0, batch), context


def test_dimensions_are_the_small_wans():
    assert CONFIG == architecture.CONFIG


def test_twin_has_the_hosts_names_and_shapes(host):
    def shapes(model):
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}

    assert shapes(Twin()) == shapes(host)
    marked = shapes(Twin(marks=7))
    assert {name: s for name, s in marked.items() if not name.startswith("marks.")} == shapes(host)
    assert {name for name in marked if name.startswith("marks.")} == {"marks.weight", "marks.bias"}


@pytest.mark.parametrize("shape", [(2, 5, 24, 24), (3, 4, 12, 12), (1, 1, 6, 10), (2, 3, 8, 20)])
def test_twin_gives_the_hosts_output(host, shape):
    x, timestep, context = request(*shape)
    expected = host(x, timestep, context)
    assert expected.std() > 0.1
    assert torch.allclose(twin_of(host.state_dict())(x, timestep, context), expected, atol=1e-4)


def test_marks_leave_the_output_as_it_is(host):
    x, timestep, context = request(2, 2, 8, 8)
    marked = Twin(marks=7).requires_grad_(False)
    missing, unexpected = marked.load_state_dict(host.state_dict(), strict=False)
    assert (set(missing), unexpected) == ({"marks.weight", "marks.bias"}, [])
    velocity, marks = marked(x, timestep, context)
    assert torch.equal(velocity, twin_of(host.state_dict())(x, timestep, context))
    assert marks.shape == (2, 2 * 4 * 4, 7)


def test_shipped_weights_give_the_same_in_both(comfy_host):
    loaded = sampling.load(export.MODEL_FILE).model.diffusion_model
    x, timestep, context = request(2, 4, 12, 12)
    twin = twin_of(load_file(export.MODEL_FILE))
    assert torch.allclose(twin(x, timestep, context), loaded(x, timestep, context), atol=1e-4)


def test_encoder_gives_what_the_host_encodes():
    encoder = Encoder()
    expected = torch.cat([text_encoder.encode(text) for text in TEXTS])
    assert torch.allclose(encoder(TEXTS), expected, atol=1e-6)
    # Words that were met in other calls, and a batch of another make-up, change nothing.
    assert torch.allclose(encoder(["a zebra", *TEXTS[:0:-1]])[1:], expected.flip(0)[:-1], atol=1e-6)
    assert not encoder([""]).any()
