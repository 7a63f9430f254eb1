"""Train the small Wan on procedural scenes: `python -m small_wan.train --work DIR --steps 9000`, resumable.

Run from `tests/` with ComfyUI on PYTHONPATH; under `torchrun --nproc-per-node N -m` the processes share the work,
`--batch` scenes each (two with one thread each beat one with two). Rectified flow: v = noise − x0, timestep 1000·σ,
σ stratified and shifted by 5. Muon for the blocks' matrices, AdamW for the rest; an averaged copy of the weights ships.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from . import architecture, codec, scenes, text_encoder

SHIFT = 5.0
EMPTY_CAPTIONS = 0.08
AVERAGE = 0.997
PEAK_RATE = 1.2e-3


def _render(seed: int, count: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    drawn = [scenes.render(scenes.sample_caption(rng), rng) for _ in range(count)]
    return (np.stack([s.video for s in drawn]) * 255).round().astype(np.uint8), [s.caption.text for s in drawn]


def scene_pool(work: Path, count: int, seed: int) -> tuple[torch.Tensor, list[str], codec.Codec]:
    """`count` rendered training scenes as latents [N, 16, T, h, w] fp16 with their texts; kept in `work`.

    A codec that lies there already is used, so that training can go on with other scenes.
    """
    latents_file, texts_file, codec_file = work / "pool.pt", work / "pool.json", work / "codec.safetensors"
    if latents_file.exists() and texts_file.exists() and codec_file.exists():
        return torch.load(latents_file), json.loads(texts_file.read_text()), codec.Codec.load(codec_file)
    share = 500
    fitted = codec.Codec.load(codec_file) if codec_file.exists() else None
    latents, texts = [], []
    with ProcessPoolExecutor(2) as pool:
        for videos, captions in pool.map(_render, range(seed, seed + count // share), [share] * (count // share)):
            floats = videos.astype(np.float32) / 255
            fitted = fitted or codec.fit(floats)
            latents.append(fitted.encode(torch.from_numpy(floats)).half())
            texts += captions
    fitted.save(codec_file)
    torch.save(torch.cat(latents), latents_file)
    texts_file.write_text(json.dumps(texts))
    return torch.cat(latents), texts, fitted


def stratified_sigmas(batch: int) -> torch.Tensor:
    u = (torch.randperm(batch) + torch.rand(batch)) / batch
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def rate(step: int, steps: int) -> float:
    """Warm-up over 40 steps, constant for two thirds of the run, then cosine to 3 %."""
    if step < 40:
        return (step + 1) / 40
    constant = 2 * steps // 3
    if step < constant:
        return 1.0
    progress = (step - constant) / max(1, steps - constant)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fp32_muon() -> None:
    """Keep Muon's Newton–Schulz iteration in fp32: CPUs without bf16 units are a hundred times slower in bf16."""
    import torch.optim._muon as muon

    def orthogonalise(grad, ns_coefficients, ns_steps, eps):
        a, b, c = ns_coefficients
        x = grad.T if grad.size(0) > grad.size(1) else grad
        x = x / x.norm().clamp(min=eps)
        for _ in range(ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if grad.size(0) > grad.size(1) else x

    muon._zeropower_via_newtonschulz = orthogonalise


def optimisers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices,
            lr=PEAK_RATE,
            momentum=0.95,
            weight_decay=0.01,
            ns_steps=4,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def share_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Average the gradients over the processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pool, checkpoints and the curve")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pool", type=int, default=24_000, help="training scenes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    device = architecture.use_available_device()
    if process == 0:
        scene_pool(args.work, args.pool, args.seed * 100_000)
    if processes > 1:
        torch.distributed.barrier()
    latents, texts, _ = scene_pool(args.work, args.pool, args.seed * 100_000)
    latents, encodings = latents.to(device), {}
    architecture.training_rope()
    fp32_muon()
    torch.manual_seed(args.seed)
    model = architecture.build(device)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optims = optimisers(model)
    checkpoint, step, spent = args.work / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        average, step, spent = state["average"], state["step"], state["seconds"]
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
    torch.manual_seed(args.seed + step + 1_000_003 * process)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, from step {step}", flush=True)
    empty = text_encoder.encode("")[0]
    losses, began = [], time.monotonic()
    while step < args.steps:
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = PEAK_RATE * rate(step, args.steps)
        picked = torch.randint(len(texts), (args.batch,)).tolist()
        for i in picked:
            if i not in encodings:
                encodings[i] = text_encoder.encode(texts[i])[0]
        context = torch.stack([empty if torch.rand(()) < EMPTY_CAPTIONS else encodings[i] for i in picked]).to(device)
        x0 = latents[picked].float()
        noise = torch.randn_like(x0)
        sigma = stratified_sigmas(args.batch).to(device)
        s = sigma.view(-1, 1, 1, 1, 1)
        v = model(s * noise + (1 - s) * x0, sigma * 1000, context)
        loss = torch.nn.functional.mse_loss(v, noise - x0)
        loss.backward()
        if processes > 1:
            share_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        decay = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        losses.append(loss.item())
        step += 1
        if process > 0:
            continue
        if step % 50 == 0 or step == args.steps:
            seconds = spent + time.monotonic() - began
            line = {"step": step, "seconds": round(seconds, 1), "loss": round(float(np.mean(losses)), 5)}
            print(json.dumps(line), flush=True)
            with (args.work / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(line) + "\n")
            losses = []
        if step % 100 == 0 or step == args.steps:
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average,
                    "optims": [o.state_dict() for o in optims],
                    "step": step,
                    "seconds": spent + time.monotonic() - began,
                },
                part,
            )
            os.replace(part, checkpoint)


if __name__ == "__main__":
    main()
