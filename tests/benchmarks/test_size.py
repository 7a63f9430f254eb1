"""What table `size` weighs, and the latents of Wan's size that it makes."""

from __future__ import annotations

import torch

from benchmarks.tables import size


def smooth(shape: tuple[int, ...]) -> torch.Tensor:
    """Noise averaged over neighbours, around another mean in every channel."""
    noise = torch.randn(*shape[:-3], *(n + 2 for n in shape[-3:]), generator=torch.Generator().manual_seed(3))
    means = torch.arange(shape[1], dtype=torch.float32)[None, :, None, None, None] / 4
    return torch.nn.functional.avg_pool3d(noise, 3, stride=1) * 5 + means


def alike(latent: torch.Tensor, axis: int) -> float:
    """Correlation of neighbouring cells along an axis, around each channel's mean."""
    centred = latent - latent.mean((2, 3, 4), keepdim=True)
    before, after = (centred.narrow(axis, start, latent.shape[axis] - 1) for start in (0, 1))
    return float((before * after).mean() / centred.square().mean())


def test_bytes_in_fp16_are_those_of_the_readme_before_compression():
    """71 MB for 20 steps at 832 × 480 and 81 frames."""
    values = 16 * 21 * 60 * 104
    assert [round(size.fp16_bytes(values, steps) / 1e6) for steps in (4, 20, 50)] == [21, 71, 168]


def test_latents_of_wans_size_are_as_alike_to_their_neighbours_as_the_small_ones():
    small = smooth((1, 16, 4, 12, 12))
    large = size.wan_sized(small, 1)
    assert tuple(large.shape) == size.WAN
    assert torch.allclose(large.mean((2, 3, 4)), small.mean((2, 3, 4)), atol=1e-3)
    assert 0.8 < float(large.std((2, 3, 4)).mean() / small.std((2, 3, 4)).mean()) < 1.25
    for axis in (3, 4):
        assert abs(alike(large, axis) - alike(small, axis)) < 0.15
        assert abs(alike(size.white(small, 1), axis)) < 0.01
    assert not torch.equal(large, size.wan_sized(small, 2))
