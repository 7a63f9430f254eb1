"""The size of an entry, the time of its compression, and what hits lose by it.

The aim is a tenth of `fp16`, which keeps every state of the first 75 % of the schedule in half precision and the final
latent in single precision. Alignment is measured with the small Wan through the real host. Changes are relative to hits
on the same source kept in fp16, as the templates make them, and with the state taken at K1, where less noise hides its
errors. Bytes count the states, the estimates of looks and the final latent of a cold run; the final latent is kept
exactly, in fp32.

Latents of Wan's size have the spectrum of the small Wan's over relative frequency, with Gaussian coefficients. So
neighbouring cells are as similar as there; in a real, larger picture they are more similar. White noise is the worst
case, which no model makes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from chorus.cache import codec
from chorus.cache.format import PREFIX, header_length
from chorus.reuse.course import calibrated
from chorus.reuse.join import token_means
from chorus.reuse.profiles import PROFILES, Profile

from .. import report
from ..pairs import REPORTED, Pair, hit_pairs
from ..samples import Bench, of
from ..systems import CHORUS, Request, System

KEEP = 0.75  # the store node's default
WAN = (1, 16, 21, 60, 104)  # 81 frames of 832 × 480
TOKEN = (1, 2, 2)
BASELINE = "fp16"
CODED = ("small", "near-lossless")
PAIRS = {4: (64, 6), 20: (48, 4)}  # steps → pairs in full and quick
FEWER = 12  # pairs for near-lossless, whose values hardly vary
STATES_OF = 4  # small-Wan runs from which Wan-sized latents are made
SEED = 61
THREADS = 2
REPEATS = 5


def measure(bench: Bench, full: bool) -> report.Result:
    """Rows by latents, steps and profile."""
    rows: list[dict] = []
    summary: dict[str, dict] = {}  # figure → profile → steps

    def note(key: str, profile: str, steps: int, value: dict) -> None:
        summary.setdefault(key, {}).setdefault(profile, {})[str(steps)] = value

    for steps, counts in PAIRS.items():
        pairs = hit_pairs(counts[0 if full else 1], REPORTED, steps)
        for profile in (BASELINE, *CODED):
            row = _small_wan(bench, pairs[:FEWER] if profile == "near-lossless" else pairs, steps, profile)
            rows.append(row)
            if profile != BASELINE:
                note("compression_ratio_small_wan", profile, steps, row["ratio"])
                note("alignment_delta", profile, steps, row["alignment, as calibrated"])
                note("alignment_delta_at_k1", profile, steps, row["alignment, state at K1"])
    for steps in (4, 20, 50) if full else (4, 20):
        sources = [p.source for p in hit_pairs(STATES_OF, REPORTED, steps)][: STATES_OF if full else 2]
        runs = [_run(bench, source) for source in sources]
        for name, enlarge in (("Wan size", wan_sized), ("white noise, Wan size", white)):
            for profile in CODED:
                row = _wan(name, steps, profile, runs, enlarge)
                rows.append(row)
                kind = "_white" if enlarge is white else ""
                for key, column in (("compression_ratio", "ratio"), *_TIMES.items()):
                    note(f"{key}{kind}", profile, steps, row[column])
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return report.Result(
        name="size",
        title="Entries: bytes, time and what hits lose",
        columns=columns,
        rows=rows,
        seeds=[REPORTED, SEED],
        summary=summary,
        summary_file="cache.json",
    )


_TIMES = {"encode_ms": "encode, ms a state", "decode_ms": "decode, ms a state"}


def fp16_bytes(values: int, steps: int) -> int:
    """Of states and final latent of so many values each, as fp16 keeps them."""
    return values * (2 * max(1, round(KEEP * steps)) + 4)


# -- the small Wan, through the host


def _small_wan(bench: Bench, pairs: list[Pair], steps: int, profile: str) -> dict:
    shares = [_stored_bytes(bench, p.source, profile) for p in pairs]
    row = {
        "latents": "small Wan",
        "steps": steps,
        "profile": profile,
        "n": len(pairs),
        "states": shares[0]["states"],
        "bits a value": report.estimate([8 * s["bytes"] / (s["values"] * (1 + s["states"])) for s in shares]),
        "ratio": report.estimate([fp16_bytes(s["values"], steps) / s["bytes"] for s in shares]),
        "whole entry, kB": report.estimate([s["entry"] / 1e3 for s in shares]),
    }
    at_k1 = System("state taken at K1", k1=max(1, round(0.45 * steps)), start=1.0, selective=False, strength=0.0)
    for name, system in (("as calibrated", CHORUS), ("state at K1", at_k1)):
        plain, coded = (
            of([bench.sample(p.target, replace(system, precision=kept), p.source) for p in pairs], "alignment")
            for kept in (BASELINE, profile)
        )
        row[f"alignment, {name}"] = report.estimate(coded - plain if profile != BASELINE else coded)
    return row


def _stored_bytes(bench: Bench, source: Request, profile: str) -> dict:
    """How many values a latent of the source has, states are kept, and bytes all latents of the entry take."""
    name = bench.cache_of(source, profile)

    def weighed() -> dict:
        (file,) = _files(bench, name)
        header = _header(file)
        kinds = ("checkpoint/", "estimate/", "final")
        offsets = {n: t["data_offsets"] for n, t in header.items() if n.startswith(kinds)}
        shapes = json.loads(header["__metadata__"]["record"])["shapes"]
        return {
            "values": int(np.prod(shapes["final"])),
            "states": sum(n.startswith("checkpoint/") for n in offsets),
            "bytes": sum(last - first for first, last in offsets.values()),
            "entry": file.stat().st_size,
        }

    return bench.once(f"size {name}", weighed)


def _files(bench: Bench, cache: str) -> list[Path]:
    caches = bench.host.host.module("chorus.comfy.caches")
    caches.open_cache(cache).count()  # waits for what is being written
    folder = caches.cache_folder(cache)
    return sorted(folder.glob("blobs/*/*.safetensors"))


def _header(file: Path) -> dict:
    content = file.read_bytes()
    return json.loads(content[PREFIX.size : PREFIX.size + header_length(content)])


# -- latents of Wan's size


def _run(bench: Bench, source: Request) -> dict[float, torch.Tensor]:
    """The states of a small-Wan run by σ, and its final latent at 0, as they were."""
    caches = bench.host.host.module("chorus.comfy.caches")
    cache = caches.open_cache(bench.cache_of(source, "fp32"))
    (entry,) = cache.entries()
    tensors = cache.load(entry.id)
    return {sigma: tensors[name] for sigma, name in caches.stored_states(entry).items()}


def wan_sized(state: torch.Tensor, seed: int) -> torch.Tensor:
    """A latent of WAN's shape with the spectrum of `state` [1, 16, T, H, W]: its power at a relative frequency.

    Power is that of all channels together, and Gaussian coefficients have it; each channel's mean stays.
    """
    small = codec._transform(state[0].float())
    power = small.square().mean(0)
    power[0, 0, 0] = 0.0
    wide = F.interpolate(power[None, None], WAN[-3:], mode="trilinear", align_corners=False)[0, 0]
    made = torch.randn(WAN[1:], generator=torch.Generator().manual_seed(seed)) * wide.sqrt()
    scale = (np.prod(WAN[-3:]) / np.prod(state.shape[-3:])) ** 0.5
    made[:, 0, 0, 0] = small[:, 0, 0, 0] * scale
    return codec._transform(made, inverse=True)[None]


def white(state: torch.Tensor, seed: int) -> torch.Tensor:
    """Noise of WAN's shape."""
    return torch.randn(WAN, generator=torch.Generator().manual_seed(seed))


def _wan(
    latents: str, steps: int, profile: str, runs: list[dict[float, torch.Tensor]], enlarge: Callable
) -> dict[str, object]:
    kept: Profile = PROFILES[profile]
    found: dict[str, list[float]] = {"ratio": [], "bits": [], "encode": [], "decode": []}
    states = 0
    with _threads():
        for number, run in enumerate(runs):
            sigmas = [1.0, *sorted(run, reverse=True)]
            schedule = sigmas + [0.0] * (steps + 1 - len(sigmas))  # the states after the kept share are not there
            looks = {schedule[step] for step in calibrated().rule(steps).looks if step}
            wanted = {*kept.kept(schedule, KEEP, noise_drawn=False), *looks}
            coded = [(run[at], kept.state_coding(at, False, at in looks), False) for at in sorted(wanted)]
            # An estimate is no state, but as smooth as one.
            coded += [(run[at], kept.estimate_coding, True) for at in (max(run), *looks)]
            coded.append((run[0.0], kept.final_coding, False))
            states, size = len(wanted), 0
            for place, (latent, coding, pooled) in enumerate(coded):
                tensor = enlarge(latent, 1000 * number + place + SEED)
                tensor = token_means(tensor, TOKEN) if pooled else tensor
                length, encode_s, decode_s = _timed(tensor, coding)
                size += length
                found["encode"].append(1e3 * encode_s)
                found["decode"].append(1e3 * decode_s)
            values = int(np.prod(WAN))
            found["ratio"].append(fp16_bytes(values, steps) / size)
            found["bits"].append(8 * size / (values * (1 + states)))
    return {
        "latents": latents,
        "steps": steps,
        "profile": profile,
        "n": len(runs),
        "states": states,
        "bits a value": report.estimate(found["bits"]),
        "ratio": report.estimate(found["ratio"]),
        _TIMES["encode_ms"]: report.estimate(found["encode"]),
        _TIMES["decode_ms"]: report.estimate(found["decode"]),
    }


def _timed(tensor: torch.Tensor, coding: str) -> tuple[int, float, float]:
    """(bytes, seconds to encode, seconds to decode on the CPU): the least of REPEATS, as others use the machine too."""
    described = codec.Coded.of(tensor, coding)
    encoded, decoded = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        content = codec.encode(tensor, coding)
        encoded.append(time.perf_counter() - began)
        began = time.perf_counter()
        codec.decode(content, described)
        decoded.append(time.perf_counter() - began)
    return len(content), min(encoded), min(decoded)


@contextmanager
def _threads():
    """Torch limited to THREADS."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
