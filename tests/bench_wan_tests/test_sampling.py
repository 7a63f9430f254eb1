"""Sampling the twin gives what the host's sampler gives with the exported weights."""

from __future__ import annotations

import torch

from bench_wan import export, sampling
from bench_wan.text import Encoder
from bench_wan.twin import Twin
from small_wan import sampling as host

TEXT = "a red circle moving left, two white dots over a navy background"


def test_the_path_ends_where_the_hosts_sampler_ends(comfy_host, tmp_path):
    import comfy.sample

    torch.manual_seed(0)
    twin = Twin().initialise().requires_grad_(False)
    torch.nn.init.normal_(twin.head.head.weight, std=0.05)
    file = tmp_path / "bench_wan.safetensors"
    export.write(twin.state_dict(), file, export.METADATA)
    twin.load_state_dict({name: value.half().float() for name, value in twin.state_dict().items()})
    model = host.load(file)
    for steps in (3, 4, 20):
        assert torch.equal(host.sigmas(model, steps).float(), sampling.sigmas(steps))
    seeds = [3, 4]
    assert torch.equal(
        sampling.noise(seeds[:1]), comfy.sample.prepare_noise(torch.zeros(1, *sampling.LATENT), seeds[0])
    )
    context = Encoder()([TEXT, ""])
    with torch.inference_mode():
        latent = comfy.sample.sample(
            model,
            sampling.noise(seeds),
            3,
            sampling.CFG,
            "euler",
            "simple",
            [[context, {}]],
            [[torch.zeros_like(context), {}]],
            torch.zeros(2, *sampling.LATENT),
            disable_pbar=True,
            seed=0,
        )
    ends = model.model.process_latent_in(latent)
    path = sampling.path(twin, context, sampling.noise(seeds), 3)
    assert float((path[-1] - ends).norm() / ends.norm()) < 1e-4
    assert float((path[-1] - path[-2]).norm() / ends.norm()) > 0.01
