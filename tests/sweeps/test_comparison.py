"""A real sweep's predictions beside what it measured: in table, status and report; kept when it goes on."""

import csv
import json
import shutil

import pytest
from sweep_lab import Lab, grid_values

from scaling.cli_options import console
from scaling.record import read_record
from sweeps.launch import LaunchOptions, prepare
from sweeps.plan import PLAN_FILE, read_plan
from sweeps.results import report_sweep
from sweeps.status import read_status


@pytest.fixture
def swept(trained, tmp_path, monkeypatch):
    """A copy of the finished tiny sweep, and what plans it again."""
    made = Lab(tmp_path, trained.corpus)
    made.sweep_dir = shutil.copytree(trained.directory / "runs" / "tiny", tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)

    def plan_again():
        grid = str(made.write_grid(grid_values()))
        return prepare(LaunchOptions(grid=grid, data=str(trained.corpus.path), executor="local"), console(False)).plan

    made.plan_again = plan_again
    return made


def test_the_table_has_predictions_with_bounds_beside_measurements(swept):
    plan = {cell.run_id: cell for cell in read_plan(swept.sweep_dir).cells}
    with open(swept.sweep_dir / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        prediction, speed = plan[row["run_id"]].prediction, read_record(swept.sweep_dir / row["run_id"]).speed
        assert float(row["predicted_seconds"]) == prediction.training_seconds.value
        assert float(row["predicted_seconds_high"]) == prediction.training_seconds.high
        assert float(row["predicted_peak_memory_bytes_low"]) == prediction.peak_memory_bytes.low
        assert (float(row["seconds"]), int(row["peak_memory_bytes"])) == (speed.seconds, speed.peak_memory_bytes)
        assert row["predicted_energy_joules"] == row["energy_joules"] == "", "a CPU's power is not known"


def test_status_and_report_say_how_well_the_sweep_was_predicted(swept):
    status = json.loads(json.dumps(read_status(swept.sweep_dir).to_json()))
    time, memory = status["predictions"]
    assert (time["quantity"], time["runs"], memory["quantity"], memory["runs"]) == ("time", 6, "memory", 6)
    assert time["within"] + len(time["outside"]) == 6 and time["median_error"] >= 0
    page = report_sweep(swept.sweep_dir).read_text()
    assert "Predicted and measured" in page and f"{time['within']} of 6" in page
    assert all(cell in page.split("Predicted and measured")[-1] for cell, _ in time["outside"])


def test_the_launch_says_it_too(trained):
    assert "time predicted before the runs: median error" in trained.progress
    assert "of 6 within the 90 % interval" in trained.progress


def test_a_sweep_that_goes_on_keeps_what_was_predicted_before_it_began(swept):
    path = swept.sweep_dir / PLAN_FILE
    plan = json.loads(path.read_text())
    begun, open_cell = plan["cells"][0], plan["cells"][1]
    for cell in (begun, open_cell):
        cell["prediction"]["seconds"] = {"value": 7777.0, "low": 7000.0, "high": 8000.0}
    path.write_text(json.dumps(plan))
    shutil.rmtree(swept.sweep_dir / open_cell["run_id"])
    again = {cell.run_id: cell for cell in swept.plan_again().cells}
    assert again[begun["run_id"]].seconds == 7777
    assert again[open_cell["run_id"]].seconds < 7000, "it has not begun: it is predicted anew"


def test_a_plan_of_another_version_is_no_obstacle_to_a_new_one(swept):
    (swept.sweep_dir / PLAN_FILE).write_text('{"plan_version": 1, "cells": []}')
    assert len(swept.plan_again().cells) == 6
