"""The network of a small Wan in plain torch, for training: the host's tensor names, numbers and formulas.

ComfyUI's own `WanModel` has kernels without gradients and casts that the compiler cannot follow. This twin has the same
state dict and gives the same output (`tests/bench_wan_tests/test_twin.py` compares them), needs nothing but torch, and
compiles to one graph on the CPU and on CUDA.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {"dim": 192, "ffn_dim": 768, "num_layers": 5, "num_heads": 3, "text_dim": 256, "in_dim": 16, "out_dim": 16}
FREQUENCIES = 256  # width of the sinusoidal time embedding
PATCH = 2  # cells a side of a token
EPSILON = 1e-6


def rotary_angles(frames: int, rows: int, columns: int, head: int) -> Tensor:
    """[frames · rows · columns, head / 2] angles: a third of the pairs for each axis, the time's first."""
    side = 2 * (head // 6)
    axes = []
    for size, width in ((frames, head - 2 * side), (rows, side), (columns, side)):
        frequencies = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        axes.append(torch.outer(torch.arange(size, dtype=torch.float64), frequencies))
    t, y, x = axes
    shape = (frames, rows, columns)
    grid = [
        t[:, None, None].expand(*shape, -1),
        y[None, :, None].expand(*shape, -1),
        x[None, None].expand(*shape, -1),
    ]
    return torch.cat(grid, -1).reshape(frames * rows * columns, head // 2).float()


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x: [B, L, heads, head]; cosine, sine: [L, 1, head / 2]. Neighbouring channels are a pair."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2).type_as(x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, EPSILON), nn.RMSNorm(dim, EPSILON)

    def forward(self, x: Tensor, context: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        if angles is not None:
            q, k = rotated(q, *angles), rotated(k, *angles)
        q, k, v = (part.type_as(v).transpose(1, 2) for part in (q, k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, heads: int):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(dim, heads), Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, EPSILON, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, EPSILON, elementwise_affine=False)
        self.norm3 = nn.LayerNorm(dim, EPSILON)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(self, x: Tensor, time: Tensor, context: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        e = (self.modulation + time).unsqueeze(2).unbind(1)
        y = torch.addcmul(e[0], self.norm1(x), 1 + e[1])
        x = torch.addcmul(x, self.self_attn(y, y, angles), e[2])
        x = x + self.cross_attn(self.norm3(x), context, None)
        return torch.addcmul(x, self.ffn(torch.addcmul(e[3], self.norm2(x), 1 + e[4])), e[5])


class Head(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPSILON, elementwise_affine=False)
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time.unsqueeze(1)).unsqueeze(2).unbind(1)
        return self.head(torch.addcmul(shift, self.norm(x), 1 + scale))


class Twin(nn.Module):
    """The network. `marks` are labels of each token, predicted from a middle block while training; 0 for none."""

    def __init__(self, marks: int = 0, **config: int):
        super().__init__()
        c = CONFIG | config
        dim, self.out_dim = c["dim"], c["out_dim"]
        self.patch_embedding = nn.Conv3d(c["in_dim"], dim, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(c["text_dim"], dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, c["ffn_dim"], c["num_heads"]) for _ in range(c["num_layers"]))
        self.head = Head(dim, self.out_dim * PATCH * PATCH)
        self.head_size = dim // c["num_heads"]
        self.marks = nn.Linear(dim, marks) if marks else None
        self._angles: dict[tuple, tuple[Tensor, Tensor]] = {}

    def initialise(self) -> Twin:
        """Xavier matrices, zero head: the velocity is 0 at first."""
        for name, p in self.named_parameters():
            if p.ndim >= 2 and "modulation" not in name:
                nn.init.xavier_uniform_(p.view(p.shape[0], -1))
            elif "norm" in name and name.endswith("weight"):
                nn.init.ones_(p)
            elif "modulation" in name:
                nn.init.normal_(p, std=p.shape[-1] ** -0.5)
            else:
                nn.init.zeros_(p)
        nn.init.zeros_(self.head.head.weight)
        return self

    def angles(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        key = (grid, device)
        if key not in self._angles:
            turned = rotary_angles(*grid, self.head_size).to(device)[:, None]
            self._angles[key] = (turned.cos(), turned.sin())
        return self._angles[key]

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """x: [B, C, T, H, W]; timestep: [B] = 1000 σ; context: [B, L, text_dim] → velocity [B, out, T, H, W].

        With marks, (velocity, marks [B, T · H/2 · W/2, marks]).
        """
        batch, _, t, h, w = x.shape
        grid = (t, h // PATCH, w // PATCH)
        angles = self.angles(grid, x.device)
        cells = x.unflatten(3, (grid[1], PATCH)).unflatten(5, (grid[2], PATCH))
        tokens = cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, math.prod(grid), -1)
        x = F.linear(tokens, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        half = FREQUENCIES // 2
        turned = timestep[:, None].float() * 10000.0 ** -(torch.arange(half, device=x.device) / half)
        time = self.time_embedding(torch.cat((turned.cos(), turned.sin()), 1))
        modulation = self.time_projection(time).unflatten(1, (6, -1))
        context = self.text_embedding(context)
        marks = None
        for i, block in enumerate(self.blocks):
            x = block(x, modulation, context, angles)
            if self.marks is not None and i == len(self.blocks) // 2:
                marks = self.marks(x)
        out = self.head(x, time).reshape(batch, *grid, PATCH, PATCH, self.out_dim)
        v = out.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, self.out_dim, t, h, w)
        return v if marks is None else (v, marks)
