"""Predictions held against measurements: errors, coverage, and the runs that missed."""

import pytest

from analysis.prediction_errors import prediction_errors


def row(cell: str, measured: float | None, predicted: float | None = 100.0, factor: float = 1.5, status="finished"):
    bounds = (None, None) if predicted is None else (predicted / factor, predicted * factor)
    names = ("predicted_seconds", "predicted_seconds_low", "predicted_seconds_high")
    return {"cell": cell, "status": status, "seconds": measured} | dict(zip(names, (predicted, *bounds), strict=True))


def test_median_error_bias_and_coverage_are_those_of_the_finished_runs():
    rows = [row("a", 110.0), row("b", 130.0), row("c", 90.0), row("late", 900.0, status="diverged"), row("open", None)]
    (time,) = prediction_errors(rows)
    assert (time.quantity, time.runs, time.within, time.outside) == ("time", 3, 3, ())
    assert time.median_error == pytest.approx(0.1) and time.bias == pytest.approx(0.1)
    assert time.coverage == 1


def test_runs_outside_of_their_interval_are_named_the_farthest_off_first():
    (time,) = prediction_errors([row("slow", 160.0), row("fine", 100.0), row("fast", 20.0), row("slower", 300.0)])
    assert time.within == 1
    assert time.outside == (("fast", 0.2), ("slower", 3.0), ("slow", 1.6))


def test_each_quantity_has_its_own_entry_and_what_was_not_predicted_has_none():
    energy = {"energy_joules": 10.0, "predicted_energy_joules": 20.0}
    energy |= {"predicted_energy_joules_low": 15.0, "predicted_energy_joules_high": 25.0}
    found = prediction_errors([row("a", 100.0) | energy, row("b", 100.0, predicted=None)])
    assert [(errors.quantity, errors.runs, errors.within) for errors in found] == [("time", 1, 1), ("energy", 1, 0)]
    assert prediction_errors([row("a", 100.0, predicted=None)]) == prediction_errors([]) == []
