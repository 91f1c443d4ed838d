import json
import os
import shutil

import pytest

from scaling.errors import UserError
from sweeps.attempts import end_attempt, start_attempt
from sweeps.locks import acquire
from sweeps.plan import read_plan
from sweeps.status import StatusReader, read_status, read_workers
from sweeps.supervise import common_failure
from sweeps.worker import Assignment, claim_next, slot_paths


@pytest.fixture
def begun(trained, tmp_path):
    """A sweep with its plan and one finished cell; the other five are to be trained."""
    source = trained.directory / "runs" / "tiny"
    finished, *rest = [cell.run_id for cell in read_plan(source).cells]
    sweep_dir = tmp_path / "tiny"
    sweep_dir.mkdir()
    shutil.copy(source / "plan.json", sweep_dir)
    shutil.copytree(source / finished, sweep_dir / finished)
    for run_id in rest:
        (sweep_dir / run_id).mkdir()
    return sweep_dir


def states(sweep_dir, launch=None):
    return [cell.state for cell in StatusReader(sweep_dir, launch).read(read_plan(sweep_dir)).cells]


def test_each_state_follows_from_files_and_locks(begun):
    cells = read_plan(begun).cells
    start_attempt(begun / cells[1].run_id, launch="a")
    start_attempt(begun / cells[2].run_id, launch="a")
    end_attempt(begun / cells[2].run_id, 1, "a", "error", error="ValueError: no")
    running = begun / cells[3].run_id
    start_attempt(running, launch="a")
    lines = [
        {"step": 1, "tokens": 128, "loss": 5.5, "seconds": 0.5},
        {"step": 2, "tokens": 256, "loss": 5.25, "seconds": 1.0},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 3, "lo'
    (running / "metrics.jsonl").write_text(text)
    slot = acquire(slot_paths(begun, 2)[0], {"pid": os.getpid(), "host": "here", "run_id": cells[3].run_id})

    status = read_status(begun)
    assert [cell.state for cell in status.cells] == [
        "finished",
        "interrupted",
        "failed",
        "running",
        "pending",
        "pending",
    ]
    assert status.cells[2].reason == "ValueError: no"
    assert (status.cells[3].step, status.cells[3].loss, status.cells[3].tokens_per_second) == (2, 5.25, 256)
    assert [worker["pid"] for worker in status.workers] == [os.getpid()]
    assert status.seconds_left > 0
    assert json.dumps(status.to_json(), allow_nan=False)
    slot.release()
    assert states(begun)[3] == "interrupted", "its worker has gone"


def test_a_failure_of_an_earlier_launch_is_pending_work_for_this_one(begun):
    run_id = read_plan(begun).cells[1].run_id
    start_attempt(begun / run_id, launch="a")
    end_attempt(begun / run_id, 1, "a", "error", error="ValueError: no")
    assert states(begun, "a")[1] == "failed" and states(begun)[1] == "failed"
    assert states(begun, "b")[1] == "interrupted"


def test_reading_a_status_writes_nothing(begun):
    def listing():
        return sorted((str(path), path.stat().st_mtime_ns) for path in begun.rglob("*"))

    before = listing()
    read_status(begun)
    assert listing() == before


def test_status_of_no_sweep(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        read_status(tmp_path)
    assert read_workers(tmp_path) == []


def test_claims_take_the_longest_cell_that_is_free_and_worth_trying(begun):
    by_time = sorted(read_plan(begun).cells, key=lambda cell: -cell.seconds)
    finished = next(cell for cell in by_time if (begun / cell.run_id / "result.json").exists())
    open_cells = [cell.run_id for cell in by_time if cell is not finished]
    for _ in range(3):
        start_attempt(begun / open_cells[1], launch="a")  # three workers died on it
    workers = {name: Assignment(begun, begun, launch=name, slots=1, num_threads=1) for name in "ab"}
    claims = []
    while (claim := claim_next(workers["a"], {"pid": 1})) is not None:
        claims.append(claim)
    assert [cell.run_id for cell, _ in claims] == [open_cells[0], *open_cells[2:]]
    for _, lock in claims:
        lock.release()
    assert claim_next(workers["b"], {"pid": 1})[0].run_id == open_cells[0]


def test_cells_that_all_fail_alike_stop_the_launch(begun):
    def cells(reasons, finished=0):
        shown = read_status(begun).cells
        from dataclasses import replace

        failed = [replace(shown[1], run_id=f"{i:016x}", state="failed", reason=r) for i, r in enumerate(reasons)]
        return failed + [replace(shown[0], run_id=f"done{i}") for i in range(finished)]

    alike = [f"OSError: run {i:016x}: step {i}" for i in range(3)]
    assert common_failure(cells(alike), set()) == alike[0]
    assert common_failure(cells(alike[:2]), set()) is None, "two may be chance"
    assert common_failure(cells([*alike[:2], "ValueError"]), set()) is None
    assert common_failure(cells(alike, finished=1), set()) is None, "something works"
    assert common_failure(cells(alike, finished=1), {"done0"}) == alike[0], "that was before"
    assert common_failure(cells(alike), {f"{0:016x}"}) is None, "damaged before this launch began"
