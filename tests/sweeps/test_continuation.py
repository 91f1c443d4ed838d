"""--continue-design: a sweep gets its next cells, trains them and loses nothing; the held-out run stays out."""

import csv
import json
import os
import shutil

import pytest
from sweep_lab import Lab, grid_values

from scaling.cli_options import console
from scaling.errors import UserError
from sweeps.continuation import DESIGN_FILE, Wish, read_rounds
from sweeps.launch import LaunchOptions, prepare
from sweeps.plan import read_plan

FLOPS = 2.2e9


def results(sweep_dir):
    return {path.parent.name: path.read_bytes() for path in sweep_dir.glob("*/result.json")}


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def rows(sweep_dir):
    with open(sweep_dir / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def continued(trained, tmp_path_factory):
    """The tiny sweep after one round, launched as a user does it; with what was there before, and what was said."""
    made = Lab(tmp_path_factory.mktemp("continued"), trained.corpus)
    shutil.copytree(trained.directory / "runs", made.directory / "runs")
    made.grid = made.write_grid(grid_values())
    made.sweep_dir = made.directory / "runs" / "tiny"
    made.before, untouched = results(made.sweep_dir), files(made.directory)
    arguments = ("--grid", made.grid, "--continue-design", "--target", 1e11, "--flops", FLOPS)
    made.dry = made.launch(*arguments, "--dry-run")
    made.changed_by_dry_run = {path for path, time in files(made.directory).items() if untouched.get(path) != time}
    made.run = made.launch(*arguments, "--json")
    assert made.run.returncode == 0, made.run.stderr
    return made


@pytest.fixture
def copied(continued, tmp_path, monkeypatch):
    """A copy of it that a test may change, and the options of a launch in it."""
    sweep_dir = shutil.copytree(continued.sweep_dir, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)

    def prepared(wish=Wish(kind="flops", budget=FLOPS), grid=continued.grid):
        options = LaunchOptions(
            grid=str(grid), data=str(continued.corpus.path), sweep_dir=sweep_dir, executor="local", continue_design=wish
        )
        return prepare(options, console(False))

    return sweep_dir, prepared


def test_a_dry_run_shows_the_cells_and_what_they_buy_and_changes_nothing(continued):
    assert continued.dry.returncode == 0, continued.dry.stderr
    buys = ("round 1", "held-out", "what it buys", "of N*", "assumed: noise", "FLOPs")
    for said in (*buys, "tiny, profile laptop", "cells have been trained already"):
        assert said in continued.dry.stdout, continued.dry.stdout
    assert not continued.changed_by_dry_run


def test_new_cells_are_trained_and_every_file_agrees(continued):
    sweep_dir, after = continued.sweep_dir, results(continued.sweep_dir)
    assert {run: after[run] for run in continued.before} == continued.before, "nothing measured is touched"
    (round_,) = read_rounds(sweep_dir)
    added = len(round_.cells)
    assert added >= 3 and len(after) == 6 + added
    table, plan = rows(sweep_dir), read_plan(sweep_dir)
    assert [row["run_id"] for row in table] == [cell.run_id for cell in plan.cells] and set(after) == {
        cell.run_id for cell in plan.cells
    }
    assert [row["role"] for row in table] == ["grid"] * 6 + [cell.role for cell in round_.cells]
    assert {row["status"] for row in table} == {"finished"} and len({row["cell"] for row in table}) == 6 + added
    assert sum(float(row["flops"]) for row in table[6:]) <= 1.01 * FLOPS
    grid_sizes = {row["params"] for row in table[:6]}
    assert {row["params"] for row in table[6:]} <= grid_sizes, "models of the grid's family"
    assert round_.design["target_flops"] == 1e11 and round_.design["budget"]["kind"] == "flops"


def test_the_held_out_run_is_predicted_by_the_others_and_fitted_by_none(continued):
    law = json.loads((continued.sweep_dir / "law.json").read_text())
    held = [row for row in rows(continued.sweep_dir) if row["role"] == "held-out"]
    (found,) = law["held_out"]
    assert law["n_points"] == len(rows(continued.sweep_dir)) - 1
    assert found["run_id"] == held[0]["run_id"] and found["measured"] == float(held[0]["loss"])
    assert found["predicted"]["value"] == pytest.approx(found["measured"], rel=0.5)
    assert "held out, N" in continued.run.stderr and f"{100 * found['error']:+.2f} %" in continued.run.stderr
    report = (continued.sweep_dir / "report.html").read_text()
    assert "Held out of the fit" in report and "to be predicted by the law of the others" in report


def test_a_plain_launch_keeps_the_added_cells_and_trains_nothing(continued, lab):
    shutil.copytree(continued.directory / "runs", lab.directory / "runs")
    before = results(lab.directory / "runs" / "tiny")
    again = lab.launch("--grid", lab.write_grid(grid_values()))
    assert again.returncode == 0, again.stderr
    assert results(lab.directory / "runs" / "tiny") == before
    assert "not in this plan" not in again.stdout and "held out, N" in again.stdout


def test_a_second_round_learns_from_the_first_and_from_its_held_out_run(copied):
    sweep_dir, prepared = copied
    first, second = prepared().rounds
    assert first == read_rounds(sweep_dir)[0]
    assert second.design["runs_known"] == 6 + len(first.cells)
    roles = [cell.role for cell in prepared().plan.cells]
    assert roles.count("released") == 1 and roles.count("held-out") == 1 and roles.index("released") < 13
    ids = [cell.run_id for cell in prepared().plan.cells]
    assert len(set(ids)) == len(ids), "what ran before comes again with another seed only"


def test_defaults_are_ten_times_the_largest_and_what_the_sweep_cost(copied):
    _, prepared = copied
    design = prepared(Wish()).rounds[-1].design
    largest = max(cell.flops for cell in prepared(None).plan.cells)
    assert design["target_flops"] == pytest.approx(10 * largest, rel=0.01)
    assert design["budget"]["kind"] == "gpu_hours" and "1 x what the" in design["budget"]["source"]
    assert design["budget"]["spent"] <= design["budget"]["amount"]


def test_a_round_that_is_not_finished_goes_on_and_no_other_is_added(copied, capsys):
    sweep_dir, prepared = copied
    victim = read_plan(sweep_dir).cells[-1]
    shutil.rmtree(sweep_dir / victim.run_id)
    found = prepared()
    assert found.rounds == read_rounds(sweep_dir) and victim.run_id in {cell.run_id for cell in found.plan.cells}
    assert "1 of" in capsys.readouterr().out


def test_a_cell_that_diverged_is_not_proposed_again(copied):
    sweep_dir, prepared = copied
    cells = read_plan(sweep_dir).cells
    first = {(cell.flops_budget, cell.hidden_size) for cell in prepared().plan.cells[len(cells) :]}
    victims = [cell for cell in cells if (cell.flops_budget, cell.hidden_size) in first][:1]
    for cell in victims:
        path = sweep_dir / cell.run_id / "result.json"
        os.chmod(path, 0o644)
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "diverged", "evaluation": None}))
    assert victims
    new = {(cell.flops_budget, cell.hidden_size) for cell in prepared().plan.cells[len(cells) :]}
    assert not new & {(cell.flops_budget, cell.hidden_size) for cell in victims}


def test_rounds_of_another_profile_are_left_alone(copied, tmp_path):
    sweep_dir, prepared = copied
    values = grid_values()
    values["profiles"] = {"other": values["profiles"]["laptop"]}
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps(values))
    found = prepared(None, other)
    assert len(found.plan.cells) == 6 and found.rounds == read_rounds(sweep_dir)


def test_mistakes_are_one_line(copied):
    sweep_dir, prepared = copied
    for wish, said in (
        (Wish(target=10.0), "--target 10: below the smallest run"),
        (Wish(kind="flops", budget=1e8), "raise it"),
    ):
        with pytest.raises(UserError, match=said):
            prepared(wish)
    (sweep_dir / DESIGN_FILE).write_text('{"rounds": [{}]}')
    with pytest.raises(UserError, match="design.json"):
        prepared(None)
    (sweep_dir / DESIGN_FILE).unlink()
    for path in sweep_dir.glob("*/result.json"):
        path.unlink()
    with pytest.raises(UserError, match="launch the grid without it first"):
        prepared()
