"""Distil the small Wan's 20 steps into a 4-step LoRA: `python -m small_wan.distill --work DIR`.

Run from `tests/` with ComfyUI on PYTHONPATH; resumable. The teacher samples training captions through
the host, and its states at the σ of the 4-step schedule are kept. A LoRA on the blocks' matrices then
learns, at CFG 1, the straight velocity from each state to the teacher's next one: first from the
teacher's own states, in the second half from the states that the student reaches itself, so that its
errors do not add up.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import architecture, export, sampling, scenes, text_encoder

TEACHER_STEPS = 20
STEPS = 4
BATCH = 16
PEAK_RATE = 2e-3
LORA_PREFIX = "diffusion_model."


def make_pairs(model_file: Path, work: Path, batches: int, cfg: float, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Teacher states [N, STEPS + 1, 16, 4, 12, 12] fp16 in model space, and the captions; kept in `work`."""
    model = sampling.load(model_file)
    latent_format = model.model.latent_format
    stride = TEACHER_STEPS // STEPS
    states, texts = [], []
    for index in range(batches):
        rng = np.random.default_rng([seed, index])
        captions = [scenes.sample_caption(rng).text for _ in range(BATCH)]
        texts += captions
        file = work / f"pairs_{index:03d}.safetensors"
        if not file.exists():
            seen: dict[int, torch.Tensor] = {}

            def keep(step: int, denoised: torch.Tensor, x: torch.Tensor, steps: int, seen=seen) -> None:
                if step % stride == 0:
                    seen[step] = x.clone()

            seeds = [seed * 1_000_000 + index * BATCH + i for i in range(BATCH)]
            last = sampling.sample(model, captions, seeds, steps=TEACHER_STEPS, cfg=cfg, callback=keep)
            path = torch.stack([*(seen[step] for step in sorted(seen)), latent_format.process_in(last)], 1)
            part = file.with_suffix(".part")
            save_file({"states": path.half().contiguous()}, part)
            os.replace(part, file)
            print(f"teacher batch {index + 1} of {batches}", flush=True)
        states.append(load_file(file)["states"])
    return torch.cat(states), texts


def new_factors(weights: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """A [rank, in] and B [out, rank] for every matrix of the blocks; B is zero: no change at first."""
    factors = {}
    for name, weight in weights.items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            layer = name.removesuffix(".weight")
            factors[f"{layer}.lora_A.weight"] = torch.randn(rank, weight.shape[1]).to(weight) * weight.shape[1] ** -0.5
            factors[f"{layer}.lora_B.weight"] = torch.zeros(weight.shape[0], rank).to(weight)
    return factors


def merge(weights: dict[str, torch.Tensor], factors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with every B·A added."""
    merged = dict(weights)
    for name, a in factors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            merged[f"{layer}.weight"] = weights[f"{layer}.weight"] + factors[f"{layer}.lora_B.weight"] @ a
    return merged


class Student:
    """The model's velocity with the LoRA's factors merged in on the fly, so that gradients reach them."""

    def __init__(self, model_file: Path, rank: int, sigmas: torch.Tensor):
        architecture.training_rope()
        self.model = architecture.build().requires_grad_(False)
        self.weights = {name: value.float() for name, value in load_file(model_file).items()}
        self.factors = {k: v.requires_grad_() for k, v in new_factors(self.weights, rank).items()}
        self.sigmas = sigmas

    def velocity(self, x: torch.Tensor, step: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x: [B, 16, T, h, w]; step: [B] index into the schedule."""
        merged = merge(self.weights, self.factors)
        return torch.func.functional_call(self.model, merged, (x, self.sigmas[step] * 1000, context))

    @torch.no_grad()
    def reach(self, noise: torch.Tensor, step: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The student's own state at `step` from `noise`, a row each."""
        x = noise.clone()
        for i in range(int(step.max())):
            rows = (step > i).nonzero()[:, 0]
            v = self.velocity(x[rows], torch.full_like(rows, i), context[rows])
            x[rows] = x[rows] + (self.sigmas[i + 1] - self.sigmas[i]) * v
        return x


def rate(step: int, steps: int) -> float:
    """Warm-up over 20 steps, then cosine to 2 %."""
    return min((step + 1) / 20, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(student: Student, states: torch.Tensor, texts: list[str], work: Path, steps: int, seed: int) -> None:
    """Fit the student's factors; resumes from `work`/lora.pt."""
    checkpoint, first = work / "lora.pt", 0
    optim = torch.optim.AdamW(student.factors.values(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        first = saved["step"]
        optim.load_state_dict(saved["optim"])
        for name, value in saved["factors"].items():
            student.factors[name].data.copy_(value)
    contexts = torch.cat([text_encoder.encode(text) for text in texts])
    torch.manual_seed(seed + first)
    losses, began = [], time.monotonic()
    for index in range(first, steps):
        for group in optim.param_groups:
            group["lr"] = PEAK_RATE * rate(index, steps)
        rows = torch.randint(len(states), (BATCH,))
        step = torch.arange(BATCH) % STEPS
        here, there = states[rows, step].float(), states[rows, step + 1].float()
        if index >= steps // 2:
            here = student.reach(states[rows, 0].float(), step, contexts[rows])
        gap = (student.sigmas[step] - student.sigmas[step + 1]).view(-1, 1, 1, 1, 1)
        v = student.velocity(here, step, contexts[rows])
        loss = torch.nn.functional.mse_loss(v, (here - there) / gap)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.factors.values(), 1.0)
        optim.step()
        losses.append(loss.item())
        if (index + 1) % 25 == 0 or index + 1 == steps:
            line = {
                "step": index + 1,
                "seconds": round(time.monotonic() - began, 1),
                "loss": round(float(np.mean(losses)), 5),
            }
            print(json.dumps(line), flush=True)
            losses = []
            part = checkpoint.with_suffix(".part")
            factors = {name: value.detach() for name, value in student.factors.items()}
            torch.save({"step": index + 1, "optim": optim.state_dict(), "factors": factors}, part)
            os.replace(part, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the teacher's states and the checkpoint")
    parser.add_argument("--model", type=Path, default=export.MODEL_FILE, help="the exported model")
    parser.add_argument("--out", type=Path, default=export.LORA_FILE)
    parser.add_argument("--cfg", type=float, default=sampling.CFG, help="the teacher's CFG")
    parser.add_argument("--batches", type=int, default=40, help=f"of {BATCH} teacher videos")
    parser.add_argument("--steps", type=int, default=800, help="training steps")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--start-from", type=Path, help="LoRA file, say of an earlier checkpoint, to begin with")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    states, texts = make_pairs(args.model, args.work, args.batches, args.cfg, args.seed)
    schedule = sampling.sigmas(sampling.load(args.model), STEPS)
    torch.manual_seed(args.seed)
    student = Student(args.model, args.rank, schedule)
    if args.start_from is not None:
        for name, value in load_file(args.start_from).items():
            student.factors[name.removeprefix(LORA_PREFIX)].data.copy_(value)
    train(student, states, texts, args.work, args.steps, args.seed)
    export.write({LORA_PREFIX + name: value.detach() for name, value in student.factors.items()}, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
