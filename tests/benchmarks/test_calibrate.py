"""The calibration that ships is what the committed results make of it."""

import json

import numpy as np
import pytest

from benchmarks import calibrate, report
from benchmarks.prompts import vidprom


def row(saved, place, alignment, details=0.0):
    """A row of `tuning`, with what the calibration reads of it."""
    means = {"alignment loss": {"mean": alignment}, "details loss": {"mean": details}}
    return {"steps": 20, "saved": saved, "state taken at": place, **means}


def test_the_committed_calibration_follows_from_the_committed_results():
    known = json.loads(calibrate.CALIBRATION.read_text(encoding="utf-8"))
    assert calibrate.from_results(report.RESULTS, known) == known
    assert calibrate.CALIBRATION.read_text(encoding="utf-8") == calibrate.shown(known)


def test_the_latest_harmless_place_is_taken():
    rows = [row(k, "fewer steps", 0.0) for k in (5, 10)]
    rows += [row(5, "0.05", 0.0), row(10, "0.05", 0.004), row(5, "0.1", 0.0), row(10, "0.1", 0.005)]
    rows += [row(5, "0.2", 0.0), row(10, "0.2", 0.006), row(5, "at K1", 0.0), row(10, "at K1", 0.0)]
    assert calibrate._start(rows) == 0.1
    rows.append(row(10, "0.15", 0.3))  # harmful between harmless ones: chance made the later one look good
    rows.append(row(10, "0.3", 0.0))
    assert calibrate._start(rows) == 0.1


def test_no_harmless_place_is_an_error():
    with pytest.raises(ValueError, match="sample earlier ones"):
        calibrate._start([row(5, "fewer steps", 0.0), row(5, "0.05", 0.1)])


def test_steps_are_saved_until_the_allowed_details_are_lost():
    lost = {5: 0.05, 10: 0.15}
    assert calibrate._saving(20, lost, 0.05) == pytest.approx(5 / 20)
    assert calibrate._saving(20, lost, 0.10) == pytest.approx(7.5 / 20)
    assert calibrate._saving(20, lost, 0.5) == pytest.approx(10 / 20)
    assert calibrate._saving(20, {5: 0.2, 10: 0.1}, 0.1) == pytest.approx(2.5 / 20)  # losses never fall with saving


@pytest.mark.parametrize(("steps", "wanted"), [(4, 0.34), (20, 0.5), (50, 0.6)])
def test_hits_save_as_much_as_wanted_on_the_mean(steps, wanted):
    low, high = calibrate._map(steps, wanted, 0.9, 0.6)
    assert 0 <= low <= high <= 0.9
    scores = vidprom()(np.random.default_rng(1).random(20_000))
    hits = scores[scores >= 0.6]
    saved = np.floor((low + (high - low) * (hits - 0.6) / 0.4) * steps + 1e-6) / steps
    assert saved.mean() == pytest.approx(wanted, abs=0.02)
