"""Cells of several processes, as a user launches them: real jobs, real ranks."""

import csv
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


def test_a_team_that_loses_a_rank_or_is_stopped_goes_on_from_its_checkpoint(lab):
    sweep_dir = lab.directory / "runs" / "teams"
    path = lab.write_grid(grid("teams", {"*": {"data_parallel_size": 2}}, checkpoint_seconds=0.05))

    # Ctrl-C: all ranks save one checkpoint and end.
    launcher = lab.start("--grid", path)
    wait_for(lambda: list(sweep_dir.glob("*/checkpoints/step-*")))
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(timeout=60) == 130, lab.log()
    stopped = read_status(sweep_dir)
    assert stopped.counts["interrupted"] >= 1 and stopped.workers == []

    # One rank is killed: its team ends, and another takes over.
    launcher = lab.start("--grid", path)
    worker = wait_for(lambda: next((w for w in read_workers(sweep_dir) if w.get("run_id")), None))
    assert worker["ranks"] == 2 and len(read_workers(sweep_dir)) == 1, "two slots, one worker"
    os.kill(worker["pid"], signal.SIGKILL)
    assert launcher.wait(timeout=120) == 0, lab.log()
    assert read_status(sweep_dir).counts["finished"] == 4
    attempts = read_attempts(sweep_dir / worker["run_id"])
    assert attempts[-1]["outcome"] == "finished"
    assert {line["layout"] for line in attempts if line["event"] == "start"} == {"dp2 mb2"}
