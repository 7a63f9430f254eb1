"""Distil the bench model's 20 steps into a 4-step LoRA: `python -m bench_wan.distill --work DIR`, resumable.

Run from `tests/`; needs nothing but torch. Under `torchrun --nproc-per-node N -m` the processes share the teacher's
videos and the student's batches. The teacher samples training captions, and its states at the σ of the 4-step
schedule are kept. A LoRA on the blocks' matrices then learns, at CFG 1, the straight velocity from each state to the
teacher's next one: first from the teacher's own states, in the second half from the states that the student reaches
itself, so that its errors do not add up.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from small_wan.distill import LORA_PREFIX, PEAK_RATE, TEACHER_STEPS, merge, new_factors, rate
from small_wan.export import write
from small_wan.train import share_gradients

from . import sampling
from .captions import sample_caption
from .export import LORA_FILE, MODEL_FILE
from .text import Encoder
from .train import place_among_processes, quick, save
from .twin import Twin

STEPS = sampling.DISTILLED_STEPS


def teacher_states(model: Twin, work: Path, count: int, batch: int, seed: int, device: str) -> tuple[Tensor, list[str]]:
    """States [N, STEPS + 1, 16, T, h, w] fp16 on the 4-step schedule, and the captions; kept in `work`."""
    process, processes = place_among_processes()
    files = [work / f"states_{index:04d}.safetensors" for index in range(count // batch)]
    stride, encoder = TEACHER_STEPS // STEPS, Encoder(device)
    texts = []
    for index, file in enumerate(files):
        rng = np.random.default_rng([seed, index])
        captions = [sample_caption(rng).text for _ in range(batch)]
        texts += captions
        if index % processes == process and not file.exists():
            start = sampling.noise([seed * 1_000_000 + index * batch + i for i in range(batch)]).to(device)
            with quick(torch.device(device)):
                path = sampling.path(model, encoder(captions), start, TEACHER_STEPS)
            part = file.with_suffix(".part")
            save_file({"states": torch.stack(path[::stride], 1).half().cpu()}, part)
            os.replace(part, file)
            print(f"teacher batch {index + 1} of {count // batch}", flush=True)
    if processes > 1:
        torch.distributed.barrier()
    return torch.cat([load_file(file)["states"] for file in files]), texts


class Student:
    """The model's velocity with the LoRA's factors merged in on the fly, so that gradients reach them."""

    def __init__(self, model: Twin, rank: int, device: str):
        self.model = model.requires_grad_(False)
        self.weights = {name: value.detach() for name, value in model.state_dict().items()}
        self.factors = {k: v.requires_grad_() for k, v in new_factors(self.weights, rank).items()}
        self.sigmas = sampling.sigmas(STEPS).to(device)

    def velocity(self, x: Tensor, step: Tensor, context: Tensor) -> Tensor:
        """x: [B, 16, T, h, w]; step: [B] index into the schedule."""
        weights = merge(self.weights, self.factors)
        with quick(x.device):
            return torch.func.functional_call(self.model, weights, (x, self.sigmas[step] * 1000, context)).float()

    @torch.no_grad()
    def reach(self, start: Tensor, step: Tensor, context: Tensor) -> Tensor:
        """The student's own state at `step` from noise, a row each."""
        x = start.clone()
        for i in range(int(step.max())):
            rows = (step > i).nonzero()[:, 0]
            v = self.velocity(x[rows], torch.full_like(rows, i), context[rows])
            x[rows] = x[rows] + (self.sigmas[i + 1] - self.sigmas[i]) * v
        return x


def train(
    student: Student, states: Tensor, texts: list[str], work: Path, steps: int, batch: int, seed: int, device: str
) -> None:
    """Fit the student's factors, with `batch` states a process; resumes from `work`/lora.pt."""
    process, processes = place_among_processes()
    checkpoint, first, encoder = work / "lora.pt", 0, Encoder(device)
    optim = torch.optim.AdamW(student.factors.values(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        first = saved["step"]
        optim.load_state_dict(saved["optim"])
        for name, value in saved["factors"].items():
            student.factors[name].data.copy_(value)
    torch.manual_seed(seed + first + 1_000_003 * process)
    told, began = [], time.monotonic()
    for index in range(first, steps):
        for group in optim.param_groups:
            group["lr"] = PEAK_RATE * rate(index, steps)
        rows = torch.randint(len(states), (batch,))
        step = (torch.arange(batch) % STEPS).to(device)
        context = encoder([texts[i] for i in rows.tolist()])
        path = states[rows].to(device).float()
        all_rows = torch.arange(batch, device=device)
        here, there = path[all_rows, step], path[all_rows, step + 1]
        if index >= steps // 2:
            here = student.reach(path[:, 0], step, context)
        gap = (student.sigmas[step] - student.sigmas[step + 1]).view(-1, 1, 1, 1, 1)
        loss = F.mse_loss(student.velocity(here, step, context), (here - there) / gap)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        if processes > 1:
            share_gradients(student.factors.values())
        torch.nn.utils.clip_grad_norm_(student.factors.values(), 1.0)
        optim.step()
        told.append(loss.item())
        if process == 0 and ((index + 1) % 25 == 0 or index + 1 == steps):
            line = {"step": index + 1, "seconds": round(time.monotonic() - began, 1)}
            print(json.dumps(line | {"loss": round(float(np.mean(told)), 5)}), flush=True)
            told = []
            factors = {name: value.detach() for name, value in student.factors.items()}
            save(checkpoint, step=index + 1, optim=optim.state_dict(), factors=factors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the teacher's states and the checkpoint")
    parser.add_argument("--model", type=Path, default=MODEL_FILE, help="the exported model")
    parser.add_argument("--out", type=Path, default=LORA_FILE)
    parser.add_argument("--teacher", type=int, default=448, help="videos that the teacher samples")
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--batch", type=int, default=16, help="states a step, of each process")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    process, processes = place_among_processes()
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Twin().to(device)
    model.load_state_dict({name: value.float() for name, value in load_file(args.model).items()})
    states, texts = teacher_states(model, args.work, args.teacher, args.batch, args.seed, device)
    torch.manual_seed(args.seed)
    student = Student(model, args.rank, device)
    train(student, states, texts, args.work, args.steps, args.batch, args.seed, device)
    if process > 0:
        return
    write({LORA_PREFIX + name: value.detach().cpu() for name, value in student.factors.items()}, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
