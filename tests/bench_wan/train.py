"""Train the bench's small Wan: `python -m bench_wan.train --work DIR`, resumable, on the CPU or a GPU.

Run from `tests/`; needs nothing but torch and numpy. Under `torchrun --nproc-per-node N -m` the processes share the
work, `--batch` scenes each. On the CPU the scenes come from a pool that is drawn once; a GPU draws them as it goes.

Rectified flow: v = noise − x0, timestep 1000 σ, σ stratified and shifted by 5. Muon for the blocks' matrices, AdamW for
the rest; an average of the weights ships. Beside the velocity the middle block learns to say what each token shows:
this teaches the words much sooner, and is not part of the shipped weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import latents, scenes
from .captions import COLOURS, DIRECTIONS, SHAPES, Caption, sample_caption
from .text import Encoder
from .twin import Twin

SHIFT = 5.0
EMPTY_CAPTIONS = 0.08
AVERAGE = 0.998
PEAK_RATE = 1e-3
CHUNK = 200  # scenes drawn at once
KINDS = 5  # main, second and third object, dots, details
MARKS = KINDS + 2 * (len(COLOURS) + len(SHAPES)) + len(DIRECTIONS)
MARKS_WEIGHT = 0.05  # of the loss of what a token shows, summed over the marks


class Scenes:
    """Training scenes: latents with their captions and what each token shows."""

    def __init__(self, captions: Sequence[Caption], x0: Any, shown: Any):
        """x0: [N, 16, T, h, w] fp16; shown: [N, KINDS, T, h/2, w/2] in 1/255."""
        self.captions, self.x0, self.shown = captions, x0, shown
        self.attributes = attribute_marks(captions)

    def marks(self, rows: np.ndarray, frames: int, device: Any = "cpu") -> Tensor:
        """[B, T · h/2 · w/2, MARKS] in [0, 1]."""
        shown = torch.as_tensor(self.shown[rows][:, :, :frames]).to(device).float() / 255
        shown = shown.flatten(2).transpose(1, 2)
        named = self.attributes[torch.as_tensor(rows)].to(device)[:, None]
        half = 2 * len(COLOURS) + 2 * len(SHAPES) + len(DIRECTIONS) - len(COLOURS) - len(SHAPES)
        main, second = shown[..., :1] * named[..., :half], shown[..., 1:2] * named[..., half:]
        return torch.cat((shown, main, second), -1)


def attribute_marks(captions: Sequence[Caption]) -> Tensor:
    """[N, …] one-hot: colour, shape and direction of the main object, colour and shape of a second one."""

    def one_hot(names: Sequence[str], value: str | None) -> list[float]:
        return [float(name == value) for name in names]

    rows = []
    for c in captions:
        colour, shape = (c.second[0], c.second[1]) if c.second else (None, None)
        main = one_hot(list(COLOURS), c.colour) + one_hot(SHAPES, c.shape) + one_hot(list(DIRECTIONS), c.direction)
        rows.append(main + one_hot(list(COLOURS), colour) + one_hot(SHAPES, shape))
    return torch.tensor(rows)


def drawn(captions: Sequence[Caption], seed: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """(latents fp16, what the tokens show in 1/255) of scenes for captions."""
    video, seen = scenes.draw(scenes.lay_out(captions, seed, device))
    shown = F.avg_pool2d(seen.flatten(0, 2)[:, None], scenes.TOKEN)
    shown = (shown.view(*seen.shape[:3], *shown.shape[-2:]) * 255).round().to(torch.uint8)
    return latents.codec(device).encode(video).half(), shown


def _chunk(seed: int) -> tuple[np.ndarray, np.ndarray, list[Caption]]:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    captions = [sample_caption(rng) for _ in range(CHUNK)]
    x0, shown = drawn(captions, seed)
    return x0.numpy(), shown.numpy(), captions


def pool(work: Path, count: int, seed: int) -> Scenes:
    """`count` scenes, drawn once and kept in `work`."""
    files = {name: work / f"{name}.npy" for name in ("x0", "shown")}
    told = work / "captions.json"
    if not told.exists():
        captions: list[Caption] = []
        cells = scenes.SIZE // 4
        shapes = {"x0": (count, 16, scenes.FRAMES, cells, cells)}
        shapes["shown"] = (count, KINDS, scenes.FRAMES, cells // 2, cells // 2)
        kept = {
            name: np.lib.format.open_memmap(file, "w+", np.float16 if name == "x0" else np.uint8, shapes[name])
            for name, file in files.items()
        }
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            for i, (x0, shown, new) in enumerate(workers.map(_chunk, range(seed, seed + count // CHUNK))):
                kept["x0"][i * CHUNK : (i + 1) * CHUNK], kept["shown"][i * CHUNK : (i + 1) * CHUNK] = x0, shown
                captions += new
        told.write_text(json.dumps([asdict(c) for c in captions]))
    read = [
        Caption(**{**c, "second": tuple(c["second"]) if c["second"] else None}) for c in json.loads(told.read_text())
    ]
    return Scenes(read, *(np.load(files[name], mmap_mode="r") for name in ("x0", "shown")))


def stratified_sigmas(batch: int) -> Tensor:
    u = (torch.randperm(batch) + torch.rand(batch)) / batch
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def rate(done: float) -> float:
    """Constant for two thirds of the run, then cosine to 3 %. done: share of the run."""
    progress = max(0.0, min(1.0, 3 * done - 2))
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))


def fp32_muon() -> None:
    """Keep Muon's Newton–Schulz iteration in fp32: CPUs without bf16 units are many times slower in bf16."""
    import torch.optim._muon as muon

    def orthogonalise(grad, ns_coefficients, ns_steps, eps):  # type: ignore[no-untyped-def]
        a, b, c = ns_coefficients
        x = grad.T if grad.size(0) > grad.size(1) else grad
        x = x / x.norm().clamp(min=eps)
        for _ in range(ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if grad.size(0) > grad.size(1) else x

    muon._zeropower_via_newtonschulz = orthogonalise


def optimisers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = {"momentum": 0.95, "weight_decay": 0.01, "ns_steps": 4, "adjust_lr_fn": "match_rms_adamw"}
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, **muon),
        torch.optim.AdamW(rest, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def share_gradients(model: torch.nn.Module) -> None:
    """Average the gradients over the processes, in one message."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def losses(model: Any, x0: Tensor, sigma: Tensor, context: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """(of the velocity, of what the tokens show)."""
    noise, s = torch.randn_like(x0), sigma.view(-1, 1, 1, 1, 1)
    v, guessed = model(s * noise + (1 - s) * x0, sigma * 1000, context)
    told = F.binary_cross_entropy_with_logits(guessed.float(), marks, reduction="none").sum(-1).mean()
    return F.mse_loss(v.float(), noise - x0), told


def save(file: Path, **state: Any) -> None:
    """By atomic rename."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pool, the checkpoint and the curve")
    parser.add_argument("--from-weights", type=Path, help="weights to begin with (safetensors); default: fresh ones")
    parser.add_argument("--samples", type=int, default=200_000, help="scenes to train on, with repetitions")
    parser.add_argument("--until", type=int, help="stop here, with the rate of the whole run")
    parser.add_argument("--frames", type=int, default=scenes.FRAMES, help="train on the first frames alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pool", type=int, default=24_000, help="scenes drawn, where they are not drawn as it goes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    if process == 0:
        pool(args.work, args.pool, args.seed * 100_000)
    if processes > 1:
        torch.distributed.barrier()
    given = pool(args.work, args.pool, args.seed * 100_000)
    fp32_muon()
    torch.manual_seed(args.seed)
    model = Twin(MARKS).initialise()
    if args.from_weights is not None:
        from safetensors.torch import load_file

        model.load_state_dict({k: v.float() for k, v in load_file(args.from_weights).items()}, strict=False)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optims = optimisers(model)
    checkpoint, seen, spent = args.work / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        average, seen, spent = state["average"], state["samples"], state["seconds"]
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
    rng = np.random.default_rng([args.seed, seen, process])
    torch.manual_seed(args.seed + seen + 1_000_003 * process)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, from sample {seen}", flush=True)
    encoder, compiled = Encoder(), torch.compile(model)
    told: list[tuple[float, float]] = []
    began, step = time.monotonic(), 0
    until = args.until or args.samples
    while seen < until:
        warm = min(1.0, (step + 1) / 40)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = PEAK_RATE * rate(seen / args.samples) * warm
        rows = np.sort(rng.choice(len(given.captions), args.batch, replace=False))
        texts = ["" if rng.random() < EMPTY_CAPTIONS else given.captions[i].text for i in rows]
        x0 = torch.from_numpy(given.x0[rows][:, :, : args.frames]).float()
        marks = given.marks(rows, args.frames)
        flow, shown = losses(compiled, x0, stratified_sigmas(args.batch), encoder(texts), marks)
        (flow + MARKS_WEIGHT * shown).backward()
        if processes > 1:
            share_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - min(AVERAGE, (step + 1) / (step + 10)))
        told.append((flow.item(), shown.item()))
        seen, step = seen + args.batch * processes, step + 1
        if process > 0:
            continue
        if step % 50 == 0 or seen >= until:
            mean = np.mean(told, 0)
            line = {"samples": seen, "seconds": round(spent + time.monotonic() - began, 1)}
            line |= {"loss": round(float(mean[0]), 5), "marks": round(float(mean[1]), 4)}
            print(json.dumps(line), flush=True)
            with (args.work / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(line) + "\n")
            told = []
        if step % 100 == 0 or seen >= until:
            save(
                checkpoint,
                model=model.state_dict(),
                average=average,
                optims=[o.state_dict() for o in optims],
                samples=seen,
                seconds=spent + time.monotonic() - began,
            )


if __name__ == "__main__":
    main()
