"""The latency bench, scaled down on the CPU: a run that computes something else than its case says is seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import latency, models
from benchmarks.gpu.latency import COLD, EARLY_MASKS, EARLY_START, FEW, LOOK_AMPLIFIED, LOOKS, PLAIN, Case
from chorus.comfy.techniques import amplify, look_and_join, resume, selective

LOOK = LOOKS[0.25]


@pytest.fixture(scope="module")
def bench(comfy_host, tmp_path_factory):
    """A small Wan with a source in its cache."""
    with models.caches_in(tmp_path_factory.mktemp("caches")):
        made = latency.Bench(models.SIZES["wan-1.3b", "small"], torch.device("cpu"), torch.float32)
        made.remember_source(FEW)
        yield made


def sample(bench, case: Case, without: str = "", **changed):
    """What `case` measures. Stores nothing.

    without: a stage that its plan lacks; changed: stages with other settings.
    """
    plan = bench.plan(case, FEW)
    kept = {name: asked for name, asked in plan.stages.items() if name != without}
    return bench.request(case, FEW, plan=replace(plan, writes=False, stages=kept | changed))


@pytest.mark.parametrize("case", [PLAIN, COLD, LOOK, LOOKS[0.5], LOOK_AMPLIFIED, EARLY_START, EARLY_MASKS])
def test_what_does_as_its_case_says_has_no_fault(bench, case):
    measured = bench.request(case, FEW)
    assert bench.fault(case, FEW, measured) == ""


def test_masks_that_are_not_applied_are_seen(bench):
    looked = sample(bench, LOOK, without=selective.NAME)
    assert "the masks" in bench.fault(LOOK, FEW, looked)
    assert "the masks are not those of the case" in bench.fault(LOOK, FEW, replace(looked, kinds="FS-F"))
    early = sample(bench, EARLY_MASKS, without=selective.NAME)
    assert bench.fault(EARLY_MASKS, FEW, early) == "the steps were -FFF, not -FSF"


def test_other_masks_than_the_case_has_are_seen(bench):
    others = bench.plan(LOOKS[0.1], FEW).stages[selective.NAME]
    for case in (LOOK, EARLY_MASKS):
        measured = sample(bench, case, **{selective.NAME: others})
        assert "?" in measured.kinds and "neither all tokens nor the 0.2500" in bench.fault(case, FEW, measured)


def test_an_early_start_in_the_place_of_a_look_is_seen(bench):
    settings = replace(bench.plan(LOOK, FEW).stages[resume.NAME], method=latency.EARLY)
    assert "are not those of the case" in bench.fault(LOOK, FEW, sample(bench, LOOK, **{resume.NAME: settings}))


def test_a_look_that_saves_nothing_and_selective_steps_that_are_full_are_seen(bench):
    measured = sample(bench, LOOK)
    assert "nothing saved" in bench.fault(LOOK, FEW, replace(measured, kinds="FFFF"))
    assert "no selective step" in bench.fault(LOOK, FEW, replace(measured, kinds="F-FF"))


def test_a_miss_is_no_hit(bench):
    assert bench.fault(EARLY_START, FEW, sample(bench, EARLY_START, without=resume.NAME)).startswith("no hit: ")


def test_amplification_changes_the_picture(bench):
    with_it, without = sample(bench, LOOK_AMPLIFIED), sample(bench, LOOK_AMPLIFIED, without=amplify.NAME)
    assert not torch.equal(with_it.latent, without.latent)
    assert torch.equal(without.latent, sample(bench, LOOK).latent)


def test_keys_and_values_that_do_not_fit_show_in_the_course(bench, monkeypatch):
    monkeypatch.setattr(look_and_join, "MEMORY", 0.0)
    measured = bench.request(LOOK, FEW)
    assert "S" not in measured.kinds and measured.equivalents == measured.kinds.count("F") == 3
    assert bench.fault(LOOK, FEW, measured) == ""


def test_a_size_with_a_limit_of_its_own_changes_it_for_its_requests_only(bench, monkeypatch):
    monkeypatch.setattr(bench, "size", replace(bench.size, memory=0.0))
    own = look_and_join.MEMORY
    assert bench.request(LOOK, FEW).equivalents == 3.0
    assert own == look_and_join.MEMORY
    assert bench.request(replace(LOOK, memory="default"), FEW).equivalents == 2.25


def test_a_report_that_tells_another_amount_is_seen(bench):
    measured = sample(bench, EARLY_START)
    assert bench.fault(EARLY_START, FEW, measured) == ""
    wrong = replace(measured, report=replace(measured.report, step_equivalents=2.5))
    assert "the report says 2.5" in bench.fault(EARLY_START, FEW, wrong)


def test_a_latent_that_is_not_finite_is_seen(bench):
    measured = bench.request(PLAIN, FEW)
    assert bench.fault(PLAIN, FEW, replace(measured, latent=measured.latent * math.nan)) == "the latent is not finite"


def test_a_row_without_enough_memory_says_so_and_the_bench_goes_on(bench):
    measurement = latency.Measurement(bench, "wan-1.3b", FEW, math.inf, 1)
    row = measurement.rows[0]

    def too_large() -> None:
        raise torch.OutOfMemoryError("Tried to allocate 60.00 GiB")

    assert not measurement._safely([row], too_large)
    assert (row.status, row.reason) == ("out of memory", "Tried to allocate 60.00 GiB")
    assert not row.open and measurement.rows[1].open
    with pytest.raises(ZeroDivisionError):
        measurement._safely([row], lambda: 1 / 0)


def test_a_spent_budget_leaves_rows_unmeasured_and_says_so(bench):
    measurement = latency.Measurement(bench, "wan-1.3b", FEW, 0.0, 3)
    assert list(measurement.run()) == ["the source is stored"]
    rows = [measurement.row_json(row) for row in measurement.rows]
    assert {row["status"] for row in rows} == {"not measured"} and all("budget" in row["reason"] for row in rows)


@pytest.mark.parametrize("share", latency.SHARES)
def test_masks_at_the_true_size_show_the_wanted_share(share):
    regions = models.regions_around((21, 30, 52), share)
    assert float(regions.visible.float().mean()) == pytest.approx(share, abs=0.005)
    assert not regions.whole and not regions.empty


@pytest.mark.parametrize("model, billions", [("wan-1.3b", 1.42), ("wan-14b", 14.29), ("hunyuan-1.5", 8.33)])
def test_the_true_sizes_are_those_the_host_knows(comfy_host, model, billions):
    import comfy.model_detection

    size = models.SIZES[model, "full"]
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
    estimate = latency.Estimate.of([1.0, 2.0, 3.0])
    assert (estimate.n, estimate.mean) == (3, 2.0)
    assert estimate.interval == pytest.approx(4.303 / 3**0.5)
    assert latency.Estimate.of([1.0]).interval is None


def test_a_cold_request_never_reads(bench):
    assert bench.plan(COLD, FEW).reads is False
