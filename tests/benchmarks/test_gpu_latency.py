"""The latency bench, scaled down on the CPU: what is computed is what masks and K1 dictate, and a fault is seen."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_latency
from benchmarks.gpu_latency import COLD, FEW, MANY, PLAIN, SRD, STAGE1, TGAA, Case
from chorus.comfy.techniques import resume, selective

# The masks on the small grid of 14 × 14 tokens a frame: 13 × 13, 8 × 9 and 5 × 6 of them visible.
VISIBLE = {"SRD 84%": 169 / 196, "SRD 38%": 72 / 196, "SRD 15%": 30 / 196, "SRD 38%, TGAA": 72 / 196}
FEW_EQUIVALENTS = {
    "without Chorus": 4.0,
    "cold": 4.0,
    "stage 1 only": 3.0,
    "stage 1, TGAA": 3.0,
    **{name: 2 + share for name, share in VISIBLE.items()},
}
# K1 = 13 and K2 = 25 of 50 steps; the first of stage 2 is a full one.
MANY_EQUIVALENTS = {
    "without Chorus": 50.0,
    "cold": 50.0,
    "stage 1 only": 37.0,
    **{name: 11 * share + 26 for name, share in VISIBLE.items()},
}


def measure(folder: Path, *arguments: str) -> dict:
    output = folder / "results" / "latency.json"
    assert gpu_latency.main(["--size", "small", "--budget-seconds", "inf", "--output", str(output), *arguments]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


def rows_of(result: dict, schedule: gpu_latency.Schedule) -> dict[str, dict]:
    return {row["case"]: row for row in result["rows"] if row["schedule"] == schedule.name}


@pytest.fixture(scope="module")
def wan(comfy_host, tmp_path_factory) -> dict:
    """What the bench writes for Wan."""
    return measure(tmp_path_factory.mktemp("wan"), "--model", "wan-1.3b", "--repeats", "2")


@pytest.fixture(scope="module")
def hunyuan(comfy_host, tmp_path_factory) -> dict:
    """What the bench writes for HunyuanVideo."""
    return measure(tmp_path_factory.mktemp("hunyuan"), "--model", "hunyuan-1.5", "--repeats", "1")


@pytest.fixture(scope="module")
def bench(comfy_host, tmp_path_factory):
    """A small Wan with a source in its cache."""
    with gpu_latency.caches_in(tmp_path_factory.mktemp("caches")):
        made = gpu_latency.Bench(gpu_latency.SIZES["wan-1.3b", "small"], torch.device("cpu"), torch.float32)
        made.remember_source()
        yield made


def sample(bench, case: Case, without: str = "", **changed):
    """(what `case` measures, its bounds) on the whole 4-step schedule. Stores nothing.

    without: a stage that its plan lacks; changed: stages with other settings.
    """
    bounds = bench.bounds(case, FEW, whole=True)
    plan = bench.plan(case, FEW)
    stages = {name: asked for name, asked in plan.stages.items() if name != without}
    plan = replace(plan, writes=False, stages=stages | changed)
    return bench.request(case, FEW, bounds, plan=plan), bounds


def test_the_short_schedule_computes_what_masks_and_k1_dictate(wan):
    rows = rows_of(wan, FEW)
    assert {name: row["step_equivalents"] for name, row in rows.items()} == pytest.approx(FEW_EQUIVALENTS, abs=1e-4)
    assert {row["status"] for row in rows.values()} == {"measured"}
    assert all(row["sampled"]["steps"] == [0, 4] for row in rows.values())


def test_the_long_schedule_is_extrapolated_from_one_step_of_each_kind(wan):
    rows = rows_of(wan, MANY)
    assert {name: row["step_equivalents"] for name, row in rows.items()} == pytest.approx(MANY_EQUIVALENTS, abs=1e-4)
    assert {row["status"] for row in rows.values()} == {"extrapolated"}
    one_step = {name: 1.0 + VISIBLE.get(name, 0.0) for name in MANY_EQUIVALENTS}
    sampled = {name: row["sampled"]["step_equivalents"] for name, row in rows.items()}
    assert sampled == pytest.approx(one_step, abs=1e-4)


def test_stage_1_skips_k1_steps(wan):
    for schedule, k1 in ((FEW, 1), (MANY, 13)):
        rows = rows_of(wan, schedule)
        assert rows["stage 1 only"]["steps_by_kind"] == {"skipped": k1, "selective": 0, "full": schedule.steps - k1}
        skipped = rows["cold"]["step_equivalents"] - rows["stage 1 only"]["step_equivalents"]
        assert skipped == k1


def test_rows_tell_the_share_of_visible_tokens(wan):
    for schedule in (FEW, MANY):
        told = {name: row["token_share"] for name, row in rows_of(wan, schedule).items() if row["token_share"]}
        assert told == pytest.approx(VISIBLE, abs=1e-4)


def test_figures_are_finite_and_say_where_they_come_from(wan):
    head = {"command", "commit", "machine", "torch", "seeds", "config", "latent", "tokens", "full_step_seconds"}
    assert head <= wan.keys()
    assert wan["tokens"] == 2 * 14 * 14 and wan["match_score"] > 0.6
    keys = {"n", "mean", "interval", "steps", "step_equivalents", "token_share", "peak_memory_gb", "wall_over_limit"}
    assert "extrapolated" in wan["about"]
    for row in wan["rows"]:
        assert keys <= row.keys()
        assert row["n"] == 2 and row["peak_memory_gb"] is None  # memory is measured on CUDA only
        for key in ("mean", "interval", "wall_over_limit", "speedup"):
            assert math.isfinite(row[key]) and row[key] > 0


def test_what_a_model_does_not_support_is_said_with_the_reason_and_not_timed(hunyuan):
    rows = rows_of(hunyuan, FEW)
    for name in ("without Chorus", "cold", "stage 1 only"):
        assert rows[name]["status"] == "measured"
        assert rows[name]["step_equivalents"] == FEW_EQUIVALENTS[name]
    for name in VISIBLE:
        assert rows[name]["status"] == "not supported" and "HunyuanVideo" in rows[name]["reason"]
    assert rows["stage 1, TGAA"]["status"] == "not supported"
    assert all(row["n"] == 0 and row["mean"] is None for row in rows.values() if row["status"] == "not supported")


def test_masks_that_are_not_applied_are_seen(bench):
    measured, bounds = sample(bench, SRD[1], without=selective.NAME)
    assert measured.equivalents == 3.0
    assert "masks and K1 dictate 2.3673" in bench.fault(SRD[1], bounds, measured)


def test_other_masks_than_the_case_has_are_seen(bench):
    others = selective.Masks(bench.regions[SRD[2].share], None)
    measured, bounds = sample(bench, SRD[1], **{selective.NAME: others})
    assert "the blocks computed 2.1531" in bench.fault(SRD[1], bounds, measured)


def test_steps_that_are_not_skipped_are_seen(bench):
    measured, bounds = sample(bench, STAGE1, without=resume.NAME)
    assert "the blocks computed 4.0000" in bench.fault(STAGE1, bounds, measured)


def test_a_report_that_tells_another_amount_is_seen(bench):
    measured, bounds = sample(bench, STAGE1)
    assert bench.fault(STAGE1, bounds, measured) == ""
    wrong = replace(measured, report=replace(measured.report, step_equivalents=2.5))
    assert "the report says 2.5" in bench.fault(STAGE1, bounds, wrong)


def test_a_latent_that_is_not_finite_is_seen(bench):
    bounds = bench.bounds(PLAIN, FEW, whole=False)
    measured = bench.request(PLAIN, FEW, bounds)
    assert bench.fault(PLAIN, bounds, measured) == ""
    broken = replace(measured, latent=measured.latent * math.nan)
    assert bench.fault(PLAIN, bounds, broken) == "the latent is not finite"


def test_amplification_without_effect_is_seen(bench):
    bounds, seed = bench.bounds(TGAA, FEW, whole=False), bench.next_seed()
    without = bench.request(STAGE1, FEW, bounds, seed=seed)
    assert "TGAA changes nothing" in bench.unsupported(TGAA, without, bounds, FEW, seed)
    amplified = bench.request(TGAA, FEW, bounds, seed=seed)
    assert bench.unsupported(TGAA, amplified, bounds, FEW, seed) == ""


def test_a_row_without_enough_memory_says_so_and_the_bench_goes_on(bench):
    measurement = gpu_latency.Measurement(bench, math.inf, 1)
    row = measurement.rows[0]

    def too_large() -> None:
        raise torch.OutOfMemoryError("Tried to allocate 60.00 GiB")

    assert not measurement._safely([row], too_large)
    assert (row.status, row.reason) == ("out of memory", "Tried to allocate 60.00 GiB")
    assert not row.open and measurement.rows[1].open
    with pytest.raises(ZeroDivisionError):
        measurement._safely([row], lambda: 1 / 0)


def test_a_spent_budget_leaves_rows_unmeasured_and_says_so(bench):
    measurement = gpu_latency.Measurement(bench, 0.0, 3)
    assert list(measurement.run())[-1] == "warm"
    rows = [measurement.row_json(row) for row in measurement.rows]
    assert {row["status"] for row in rows} == {"not measured"} and all("budget" in row["reason"] for row in rows)


@pytest.mark.parametrize("share", gpu_latency.SHARES)
def test_masks_at_the_true_size_show_the_wanted_share(share):
    regions = gpu_latency.regions_of((21, 30, 52), share)
    assert float(regions.visible.float().mean()) == pytest.approx(share, abs=0.005)
    assert not regions.whole and not regions.empty


@pytest.mark.parametrize("model, billions", [("wan-1.3b", 1.42), ("wan-14b", 14.29), ("hunyuan-1.5", 8.33)])
def test_the_true_sizes_are_those_the_host_knows(comfy_host, model, billions):
    import comfy.model_detection

    size = gpu_latency.SIZES[model, "full"]
    config = comfy.model_detection.model_config_from_unet_config(dict(size.config))
    network = config.get_model({}, "", device=torch.device("meta")).diffusion_model
    weights = network.state_dict()
    assert sum(w.numel() for w in weights.values()) / 1e9 == pytest.approx(billions, abs=0.01)
    # What the host would say of a checkpoint with these tensors.
    detected = comfy.model_detection.detect_unet_config(weights, "")
    assert {name: detected.get(name, value) for name, value in size.config.items()} == size.config
    _, t, h, w = size.latent
    assert (4 * (t - 1) + 1, h * size.cell, w * size.cell) == (81, 480, 832)


def test_intervals_are_students():
    estimate = gpu_latency.Estimate.of([1.0, 2.0, 3.0])
    assert (estimate.n, estimate.mean) == (3, 2.0)
    assert estimate.interval == pytest.approx(4.303 / 3**0.5)
    assert gpu_latency.Estimate.of([1.0]).interval is None
    assert (estimate + estimate.times(2)).interval == pytest.approx(5**0.5 * 4.303 / 3**0.5)


def test_a_cold_request_never_reads(bench):
    assert bench.plan(COLD, FEW).reads is False
