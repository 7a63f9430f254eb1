"""Train the bench's small Wan: `python -m bench_wan.train --work DIR`, resumable, on the CPU or a GPU.

Run from `tests/`; needs nothing but torch, numpy and safetensors. Under `torchrun --nproc-per-node N -m` the processes
share the work, `--batch` scenes each. On the CPU the scenes come from a pool that is drawn once; a GPU draws them as it
goes. `--minutes` ends the run by time, and writes the averaged weights after every `--every` seconds.

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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from small_wan.train import fp32_muon, share_gradients

from . import latents, scenes
from .captions import COLOURS, COUNTS, DIRECTIONS, PANS, SHAPES, Caption, sample_caption
from .export import MODEL_FILE, write_model
from .text import Encoder
from .twin import Twin

SHIFT = 5.0
EMPTY_CAPTIONS = 0.08
AVERAGE = 0.998
PEAK_RATE = 1e-3
CHUNK = 200  # scenes drawn at once
DRAWN_AT_ONCE = 2048  # at most, on a GPU
KINDS = 5  # main, second and third object, dots, details
MARKS = KINDS + 2 * (len(COLOURS) + len(SHAPES)) + len(DIRECTIONS) + len(COUNTS) + len(PANS)
MARKS_WEIGHT = 0.05  # of the loss of what a token shows, summed over the marks


class Scenes:
    """Training scenes: latents with their captions and what each token shows."""

    def __init__(self, captions: Sequence[Caption], x0: Any, shown: Any):
        """x0: [N, 16, T, h, w] fp16; shown: [N, KINDS, T, h/2, w/2] in 1/255."""
        self.captions, self.x0, self.shown = captions, x0, shown
        self.attributes = attribute_marks(captions)

    def marks(self, rows: np.ndarray, frames: int) -> Tensor:
        """[B, T · h/2 · w/2, MARKS] in [0, 1]."""
        return token_marks(torch.as_tensor(self.shown[rows])[:, :, :frames], self.attributes[torch.as_tensor(rows)])


def token_marks(shown: Tensor, named: Tensor) -> Tensor:
    """What the tokens show, [B, T · h/2 · w/2, MARKS] in [0, 1].

    shown: [B, KINDS, T, h/2, w/2] in 1/255; named: `attribute_marks` of the captions.
    """
    shown = (shown.float() / 255).flatten(2).transpose(1, 2)
    ground = (1 - shown.sum(-1, keepdim=True)).clamp(min=0.0)
    main, second, dots, pan = named[:, None].split(list(_NAMED), -1)
    parts = (shown, shown[..., :1] * main, shown[..., 1:2] * second, shown[..., 3:4] * dots, ground * pan)
    return torch.cat(parts, -1)


# What is named of the main object, of the second one, of the dots and of the camera.
_NAMED = (len(COLOURS) + len(SHAPES) + len(DIRECTIONS), len(COLOURS) + len(SHAPES), len(COUNTS), len(PANS))


def attribute_marks(captions: Sequence[Caption]) -> Tensor:
    """[N, …] one-hot: colour, shape and direction of the main object, colour and shape of a second one, how many dots
    there are, where the camera pans to.
    """

    def one_hot(names: Sequence[str], value: str | None) -> list[float]:
        return [float(name == value) for name in names]

    rows = []
    for c in captions:
        colour, shape = (c.second[0], c.second[1]) if c.second else (None, None)
        main = one_hot(list(COLOURS), c.colour) + one_hot(SHAPES, c.shape) + one_hot(list(DIRECTIONS), c.direction)
        second = one_hot(list(COLOURS), colour) + one_hot(SHAPES, shape)
        rows.append(main + second + one_hot(list(COUNTS), c.dots) + one_hot(list(PANS), c.pan))
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


class Pool:
    """Batches of scenes that were drawn once."""

    def __init__(self, given: Scenes, batch: int, frames: int, seeds: Sequence[int]):
        self.given, self.batch, self.frames = given, batch, frames
        self._rng = np.random.default_rng(seeds)
        self._encoder = Encoder()

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, σ, the encoded captions and what the tokens show, of scenes picked at random."""
        rng, given = self._rng, self.given
        rows = np.sort(rng.choice(len(given.captions), self.batch, replace=False))
        texts = ["" if rng.random() < EMPTY_CAPTIONS else given.captions[i].text for i in rows]
        x0 = torch.from_numpy(given.x0[rows][:, :, : self.frames]).float()
        return x0, stratified_sigmas(self.batch), self._encoder(texts), given.marks(rows, self.frames)


class Drawn:
    """Batches of scenes that are drawn on the device as it goes, for captions out of a large number."""

    def __init__(self, captions: int, batch: int, frames: int, seeds: Sequence[int], device: torch.device):
        self.batch, self.frames, self.device = batch, frames, device
        self._seeds = np.random.default_rng(seeds)
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            of_a_worker = workers.map(_captions, range(seeds[0] * 100_000, seeds[0] * 100_000 + -(-captions // CHUNK)))
            self._captions = [caption for some in of_a_worker for caption in some][:captions]
        self._encoder = Encoder(device)
        self._texts = self._encoder.indices([caption.text for caption in self._captions])
        self._named = attribute_marks(self._captions).to(device)
        self._rows, self._x0, self._shown = torch.zeros(0), torch.zeros(0), torch.zeros(0)
        self._at = 0

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x0, σ, the encoded captions and what the tokens show, of scenes never seen before."""
        if self._at + self.batch > len(self._rows):
            self._draw()
        part = slice(self._at, self._at + self.batch)
        self._at += self.batch
        rows, x0 = self._rows[part], self._x0[part, :, : self.frames].float()
        told = torch.rand(self.batch, 1, device=self.device) >= EMPTY_CAPTIONS
        marks = token_marks(self._shown[part, :, : self.frames], self._named[rows])
        sigmas = stratified_sigmas(self.batch, self.device)
        return x0, sigmas, self._encoder.encode(self._texts[rows] * told), marks

    def _draw(self) -> None:
        count = self.batch * max(1, min(8, DRAWN_AT_ONCE // self.batch))
        rows = self._seeds.integers(len(self._captions), size=count)
        picked, seed = [self._captions[i] for i in rows], int(self._seeds.integers(2**40))
        self._x0, self._shown = drawn(picked, seed, self.device)
        self._rows, self._at = torch.from_numpy(rows).to(self.device), 0


def _captions(seed: int) -> list[Caption]:
    rng = np.random.default_rng(seed)
    return [sample_caption(rng) for _ in range(CHUNK)]


def stratified_sigmas(batch: int, device: Any = "cpu") -> Tensor:
    u = (torch.randperm(batch, device=device) + torch.rand(batch, device=device)) / batch
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def rate(done: float) -> float:
    """Constant for two thirds of the run, then cosine to 3 %. done: share of the run."""
    progress = max(0.0, min(1.0, 3 * done - 2))
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))


def optimisers(model: torch.nn.Module, peak_rate: float = PEAK_RATE) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = {"momentum": 0.95, "weight_decay": 0.01, "ns_steps": 4, "adjust_lr_fn": "match_rms_adamw"}
    return [
        torch.optim.Muon(matrices, lr=peak_rate, **muon),
        torch.optim.AdamW(rest, lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def losses(
    model: Any, x0: Tensor, sigma: Tensor, context: Tensor, marks: Tensor, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(of the velocity, of what the tokens show). given: further channels of the input."""
    noise, s = torch.randn_like(x0), sigma.view(-1, 1, 1, 1, 1)
    x = s * noise + (1 - s) * x0
    v, guessed = model(x if given is None else torch.cat((x, given), 1), sigma * 1000, context)
    told = F.binary_cross_entropy_with_logits(guessed.float(), marks, reduction="none").sum(-1).mean()
    return F.mse_loss(v.float(), noise - x0), told


def first_frame(x0: Tensor) -> Tensor:
    """The 20 channels in which the host gives a model the first frame, [B, 20, T, h, w].

    Four say which latent frames are given; in the others are these frames, and gray where none is.
    """
    image = _gray(x0.shape[2], x0.device).to(x0).repeat(len(x0), 1, 1, 1, 1)
    image[:, :, 0] = x0[:, :, 0]
    told = torch.zeros_like(x0[:, :4])
    told[:, :, 0] = 1.0
    return torch.cat((told, image), 1)


@cache
def _gray(frames: int, device: torch.device) -> Tensor:
    return latents.codec(device).encode(torch.full((1, frames, scenes.SIZE, scenes.SIZE, 3), 0.5, device=device))


def begun_with(model: Twin, file: Path) -> None:
    """Load weights to begin with. Inputs that the model has beyond them count for nothing at first."""
    from safetensors.torch import load_file

    weights = {name: value.float() for name, value in load_file(file).items()}
    name = "patch_embedding.weight"
    more = model.state_dict()[name].shape[1] - weights[name].shape[1]
    weights[name] = F.pad(weights[name], (0, 0, 0, 0, 0, 0, 0, more))
    model.load_state_dict(weights, strict=False)


def place_among_processes() -> tuple[int, int]:
    """(number of this process, how many there are) under torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def save(file: Path, **state: Any) -> None:
    """By atomic rename."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, file)


def quick(device: torch.device) -> AbstractContextManager:
    """Half precision where that is the quicker one: on a GPU, and on a CPU with instructions for it."""
    half = device.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


class Step:
    """One step's gradients: compiled, or eager where nothing can be compiled here."""

    def __init__(self, model: Twin, device: torch.device, from_image: bool):
        self.model, self.device, self.from_image = model, device, from_image
        for block in model.blocks:  # which share their graphs; one graph of all of them takes minutes to compile
            block.compile(dynamic=False)
        self._tried = False

    def __call__(self, x0: Tensor, sigma: Tensor, context: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses, detached; the gradients are added to the model's."""
        try:
            told = self._gradients(x0, sigma, context, marks)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._tried:
                raise
            print(f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}", flush=True)
            for block in self.model.blocks:
                block._compiled_call_impl = None
            self.model.zero_grad(set_to_none=True)
            told = self._gradients(x0, sigma, context, marks)
        self._tried = True
        return told

    def _gradients(self, x0: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        given = first_frame(x0) if self.from_image else None
        with quick(self.device):
            flow, shown = losses(self.model, x0, *rest, given=given)
        (flow + MARKS_WEIGHT * shown).backward()
        return flow.detach(), shown.detach()


class Clock:
    """How far the run is, by samples or by time. minutes: of the whole run, None to count samples."""

    def __init__(self, samples: int, until: int | None, minutes: float | None, spent: float):
        self.samples, self.until, self.minutes = samples, until or samples, minutes
        self.spent, self.began = spent, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def done(self, seen: int) -> float:
        """The share of the run that lies behind."""
        return seen / self.samples if self.minutes is None else self.seconds / (60 * self.minutes)

    def over(self, seen: int) -> bool:
        return seen >= self.until if self.minutes is None else self.seconds >= 60 * self.minutes


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pool, the checkpoint and the curve")
    parser.add_argument("--from-weights", type=Path, help="weights to begin with (safetensors); default: fresh ones")
    parser.add_argument("--samples", type=int, default=200_000, help="scenes to train on, with repetitions")
    parser.add_argument("--until", type=int, help="stop here, with the rate of the whole run")
    parser.add_argument("--minutes", type=float, help="train so long instead, all before the first step included")
    parser.add_argument("--weights", type=Path, help="with --minutes: where to write the averaged weights")
    parser.add_argument("--every", type=float, default=60.0, help="with --minutes: write them after so many seconds")
    parser.add_argument("--from-image", action="store_true", help="train the model that is given the first frame")
    parser.add_argument("--frames", type=int, default=scenes.FRAMES, help="train on the first frames alone")
    parser.add_argument("--stills", type=int, default=0, help="single frames a step, beside the videos")
    parser.add_argument("--batch", type=int, default=8, help="videos a step")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="of learning, at its peak")
    parser.add_argument("--pool", type=int, default=24_000, help="scenes; captions, where scenes are drawn as it goes")
    parser.add_argument("--draw", action="store_true", help="draw scenes as it goes on the CPU, too")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(given)


def sources_of(
    args: argparse.Namespace, seen: int, device: torch.device, process: int, processes: int
) -> list[Pool | Drawn]:
    """Where the batches of a step come from: videos, and single frames."""
    wanted = [(args.batch, args.frames, [args.seed, seen, process])]
    if args.stills:
        wanted.append((args.stills, 1, [args.seed, seen, process, 1]))
    if args.draw or device.type == "cuda":
        return [Drawn(args.pool, batch, frames, seeds, device) for batch, frames, seeds in wanted]
    if process == 0:
        pool(args.work, args.pool, args.seed * 100_000)
    if processes > 1:
        torch.distributed.barrier()
    scenes_of_all = pool(args.work, args.pool, args.seed * 100_000)
    return [Pool(scenes_of_all, batch, frames, seeds) for batch, frames, seeds in wanted]


def main(given: Sequence[str] | None = None, told: Callable[[dict], None] = lambda line: None) -> None:
    """given: the command line; told: is given each line of the curve."""
    began = time.monotonic()
    args = arguments_of(given)
    args.work.mkdir(parents=True, exist_ok=True)
    process, processes = place_among_processes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if processes > 1 and args.minutes is not None:
        raise SystemExit("--minutes is for one process: several would not stop at the same step")
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    checkpoint, seen, spent, state = args.work / "checkpoint.pt", 0, 0.0, None
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        seen, spent = state["samples"], state["seconds"]
    sources = sources_of(args, seen, device, process, processes)
    if device.type == "cpu":
        fp32_muon()
    torch.manual_seed(args.seed)
    model = Twin(MARKS, in_dim=36 if args.from_image else 16).initialise()
    if args.from_weights is not None:
        begun_with(model, args.from_weights)
    model.to(device)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optims = optimisers(model, args.rate)
    if state is not None:
        model.load_state_dict(state["model"])
        average = state["average"]
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
    torch.manual_seed(args.seed + seen + 1_000_003 * process)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, from sample {seen}", flush=True)
    clock, gradients, step = (
        Clock(args.samples, args.until, args.minutes, spent),
        Step(model, device, args.from_image),
        0,
    )
    if args.minutes is not None:
        clock.began = began
    lost: list[tuple[Tensor, Tensor]] = []
    kept = time.monotonic()
    over = args.minutes is None and clock.over(seen)  # by time, one step at least
    while not over:
        warm = min(1.0, (step + 1) / 40)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = args.rate * rate(clock.done(seen)) * warm
        lost.append(gradients(*sources[0].next()))
        for stills in sources[1:]:
            gradients(*stills.next())
        if processes > 1:
            share_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        steps = seen // (args.batch * processes)  # those before a resumption, too
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - min(AVERAGE, (steps + 1) / (steps + 10)))
        seen, step = seen + args.batch * processes, step + 1
        over = clock.over(seen)
        if process > 0:
            continue
        if step % 50 == 0 or over:
            mean = torch.stack([torch.stack(pair) for pair in lost]).double().mean(0).tolist()  # waits for the device
            line = {"samples": seen, "seconds": round(clock.seconds, 1)}
            line |= {"loss": round(mean[0], 5), "marks": round(mean[1], 4)}
            print(json.dumps(line), flush=True)
            with (args.work / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(line) + "\n")
            told(line)
            lost = []
        due = step % 100 == 0 if args.minutes is None else time.monotonic() - kept >= args.every
        if due or over:
            if args.minutes is not None:
                write_model(average, args.weights or args.work / MODEL_FILE.name)
            save(
                checkpoint,
                model=model.state_dict(),
                average=average,
                optims=[o.state_dict() for o in optims],
                samples=seen,
                seconds=clock.seconds,
            )
            kept = time.monotonic()


if __name__ == "__main__":
    main()
