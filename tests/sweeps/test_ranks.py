"""Cells of several processes, as a user launches them: real jobs, real ranks."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
from sweep_lab import grid_values, wait_for

from sweeps.attempts import read_attempts
from sweeps.status import read_status, read_workers

LAYOUTS = {
    "*6e+07*h8": {"data_parallel_size": 2},
    "*6e+07*h16": {"tensor_parallel_size": 2},
    "*2e+08*h8": {"pipeline_parallel_size": 2},
}


def grid(name: str, parallel: dict, checkpoint_seconds: float = 20.0) -> dict:
    """Two budgets x two sizes of two layers and two heads, in float64: what is left of a difference is a mistake."""
    values = grid_values(name, checkpoint_seconds)
    laptop = values["profiles"]["laptop"]
    laptop["parallel"] = parallel
    laptop["execution"]["dtype"] = "float64"
    laptop["model"] = {"num_layers": 2, "num_attention_heads": 2}
    laptop["design"] |= {
        "flops_budgets": [6e7, 2e8],
        "sizes": [{"hidden_size": size} for size in (8, 16)],
        "sizes_per_budget": 2,
        "span": 1.6,
        "expected_optimum": {"coefficient": 5200, "exponent": 1e-9, "source": "test"},
    }
    return values


def table(sweep_dir: Path) -> dict[str, dict[str, str]]:
    with open(sweep_dir / "runs.csv", newline="") as file:
        return {row["run_id"]: row for row in csv.DictReader(file)}


def test_a_grid_under_mixed_layouts_yields_the_table_of_one_process(lab):
    for name, parallel in (("one", {}), ("mixed", LAYOUTS)):
        result = lab.launch("--grid", lab.write_grid(grid(name, parallel)))
        assert result.returncode == 0, result.stdout + result.stderr
    one, mixed = (table(lab.directory / "runs" / name) for name in ("one", "mixed"))
    assert len(one) == 4 and one.keys() == mixed.keys(), "the layout is no part of a run's identity"
    assert sorted(row["layout"] for row in mixed.values()) == ["dp2", "pp2", "single", "tp2"]
    assert {row["layout"] for row in one.values()} == {"single"}
    for run_id, row in one.items():
        for same in ("cell", "status", "params", "tokens", "train_steps", "flops", "learning_rate"):
            assert mixed[run_id][same] == row[same]
        for loss in ("loss", "loss_stderr", "bits_per_byte"):
            assert float(mixed[run_id][loss]) == pytest.approx(float(row[loss]), rel=1e-9)
    assert "dp2" in result.stdout and "pp2" in result.stdout, "plan and results show the layouts"


def test_a_team_that_loses_a_rank_is_replaced_and_one_that_is_stopped_saves_a_checkpoint(lab):
    sweep_dir = lab.directory / "runs" / "teams"
    values = grid("teams", {"*": {"data_parallel_size": 2}}, checkpoint_seconds=0.05)
    values["profiles"]["laptop"]["design"]["flops_budgets"] = [4e8, 8e8]
    launcher = lab.start("--grid", lab.write_grid(values))

    # Rank 0 is killed in the middle of a cell: the other rank ends too, and another team takes the cell over.
    wait_for(lambda: list(sweep_dir.glob("*/checkpoints/step-*")))
    (worker,) = read_workers(sweep_dir)
    assert worker["ranks"] == 2, "two slots, one worker"
    os.kill(worker["pid"], signal.SIGKILL)
    attempts = wait_for(lambda: finished_again(sweep_dir / worker["run_id"]))
    assert json.loads((sweep_dir / worker["run_id"] / "result.json").read_text())["attempts"] == 2
    assert attempts[0]["job"] != attempts[1]["job"]

    # Ctrl-C: all ranks save one checkpoint and end.
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(timeout=60) == 130, lab.log()
    stopped = read_status(sweep_dir)
    assert stopped.workers == [] and stopped.counts["failed"] == 0
    for cell in stopped.cells:
        if cell.state == "interrupted":
            assert read_attempts(sweep_dir / cell.run_id)[-1]["outcome"] == "interrupted"
            assert list((sweep_dir / cell.run_id / "checkpoints").glob("step-*"))


def finished_again(run_dir: Path) -> list[dict]:
    """The attempts of a cell, once the second one has finished it."""
    attempts = read_attempts(run_dir)
    return attempts if [line.get("outcome") for line in attempts] == [None, None, "finished"] else []
