"""The calibration that ships is what the committed results make of it."""

import json

import pytest

from benchmarks import calibrate, report
from benchmarks.tables import tuning


def row(saved, place, alignment, details=0.0):
    """A row of `tuning`, with what the calibration reads of it."""
    means = {"alignment loss": {"mean": alignment}, "details loss": {"mean": details}}
    return {"steps": 20, "saved": saved, "state taken at": place, **means}


def test_the_committed_calibration_follows_from_the_committed_results():
    known = json.loads(calibrate.CALIBRATION.read_text(encoding="utf-8"))
    assert calibrate.from_results(report.RESULTS, known) == known
    assert calibrate.CALIBRATION.read_text(encoding="utf-8") == calibrate.shown(known)


def test_the_harmless_place_that_keeps_most_details_is_taken():
    rows = [row(k, "fewer steps", 0.0) for k in (5, 10)]
    rows += [row(5, "0.05", 0.0, 0.1), row(10, "0.05", 0.004, 0.2), row(5, "0.1", 0.0, 0.1), row(10, "0.1", 0.005, 0.1)]
    rows += [row(5, "0.2", 0.0), row(10, "0.2", 0.006), row(5, "at K1", 0.0), row(10, "at K1", 0.0)]
    assert tuning.place(rows) == 0.1
    rows += [row(k, "0.3", 0.0) for k in (5, 10)]  # behind a harmful place: chance made it look good
    assert tuning.place(rows) == 0.1
    rows += [row(k, "0.02", 0.0, 0.05) for k in (5, 10)]
    assert tuning.place(rows) == 0.02


def test_no_harmless_place_is_an_error():
    with pytest.raises(ValueError, match="sample earlier ones"):
        tuning.place([row(5, "fewer steps", 0.0), row(5, "0.05", 0.1)])


def test_as_many_steps_are_saved_as_details_and_words_allow():
    rows = [row(5, "0.1", 0.0, 0.1), row(8, "0.1", 0.0, 0.2), row(10, "0.1", 0.0, 0.21), row(12, "0.2", 0.0, 0.0)]
    assert tuning.most_saved(rows, 0.1) == 8
    assert tuning.most_saved([{**r, "steps": 4} for r in rows], 0.1) == 10  # a distilled model may lose more of them
    assert tuning.most_saved([row(5, "0.1", 0.0), row(8, "0.1", 0.03)], 0.1) == 5
    with pytest.raises(ValueError, match="sample smaller ones"):
        tuning.most_saved([row(5, "0.1", 0.03)], 0.1)
