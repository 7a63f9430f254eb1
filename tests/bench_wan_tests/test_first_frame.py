"""The model that is given the first frame gets from the host's own nodes what it was trained on."""

from __future__ import annotations

import numpy as np
import torch

from bench_wan import captions, export, scenes, train
from bench_wan.twin import Twin
from small_wan import sampling as host


def test_the_hosts_image_to_video_node_gives_the_channels_of_the_training(comfy_host, tmp_path):
    from comfy_extras.nodes_wan import WanImageToVideo

    from small_wan.nodes import load_vae

    caption = captions.sample_caption(np.random.default_rng(0))
    video, _ = scenes.draw(scenes.lay_out([caption], 0))
    x0, _ = train.drawn([caption], 0)
    vae = load_vae("bench_wan_i2v")
    first = video[0, :1].repeat_interleave(2, 1).repeat_interleave(2, 2)
    cond = [[torch.zeros(1, 32, 256), {}]]
    given = WanImageToVideo.execute(cond, cond, vae, 192, 192, 17, 1, start_image=first)
    positive, latent = given[0], given[2]["samples"]
    file = tmp_path / "i2v.safetensors"
    twin = Twin(in_dim=36).initialise()
    export.write(twin.state_dict(), file, export.METADATA)
    model = host.load(file).model
    seen = model.concat_cond(noise=latent, device=torch.device("cpu"), **positive[0][1])
    wanted = train.first_frame(x0.float())
    assert seen.shape == wanted.shape == (1, 20, *latent.shape[2:])
    assert torch.allclose(seen, wanted, atol=0.02)  # the scenes are kept in half precision


def test_a_model_without_the_further_channels_begins_as_it_was(tmp_path):
    torch.manual_seed(0)
    small = Twin().initialise().requires_grad_(False)
    torch.nn.init.normal_(small.head.head.weight, std=0.05)
    file = tmp_path / "t2v.safetensors"
    export.write(small.state_dict(), file, export.METADATA)
    larger = Twin(in_dim=36).initialise().requires_grad_(False)
    train.begun_with(larger, file)
    train.begun_with(small, file)
    x, t, context = torch.randn(1, 16, 2, 8, 8), torch.tensor([700.0]), torch.randn(1, 4, 256)
    more = torch.randn(1, 20, 2, 8, 8)
    assert torch.allclose(larger(torch.cat((x, more), 1), t, context), small(x, t, context), atol=1e-5)
