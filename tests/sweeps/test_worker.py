"""What a worker does when memory runs out, with the real trainer and an allocator that fails on cue."""

import json
import os

import pytest
import torch

import scaling.train
from scaling.config import RunConfig
from scaling.record import read_record
from sweeps.attempts import OUT_OF_MEMORY, read_attempts
from sweeps.ladder import roomier, settings
from sweeps.plan import PLAN_FILE, read_plan
from sweeps.records import collect
from sweeps.status import read_status
from sweeps.worker import Assignment, work

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.fixture
def one_cell(trained, tmp_path, monkeypatch):
    """A sweep of one untrained cell, and the environment of a local Submitit job."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ |= {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "1", "SUBMITIT_FOLDER": str(tmp_path)}
    plan = json.loads((trained.directory / "runs" / "tiny" / PLAN_FILE).read_text())
    plan["cells"] = plan["cells"][:1]
    (tmp_path / PLAN_FILE).write_text(json.dumps(plan))
    return tmp_path


def assign(sweep_dir, corpus, launch="a") -> Assignment:
    return Assignment(sweep_dir, corpus.path, launch=launch, slots=1, num_threads=1)


def short_of_memory(monkeypatch, error: Exception, enough) -> None:
    """Every run whose config is not `enough` fails with `error`."""
    train = scaling.train.train

    def fail_or_train(config: RunConfig, *arguments, **options):
        if not enough(config):
            raise error
        return train(config, *arguments, **options)

    monkeypatch.setattr(scaling.train, "train", fail_or_train)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_MESSAGE), MemoryError("too much")]
)
def test_a_cell_that_runs_out_of_memory_finishes_under_a_roomier_layout(one_cell, corpus, monkeypatch, error):
    (cell,) = read_plan(one_cell).cells
    final = roomier(cell.config, 1)
    short_of_memory(monkeypatch, error, lambda config: settings(config) == settings(final))
    assert work(assign(one_cell, corpus)) == [cell.run_id, cell.run_id]
    record = read_record(one_cell / cell.run_id)
    assert record.status == "finished" and record.run_id == cell.run_id
    assert record.config == final, "the record carries the layout that finished"
    first, failed, second, _ = read_attempts(one_cell / cell.run_id)
    assert first["layout"] == failed["layout"] == settings(cell.config)
    assert failed["outcome"] == OUT_OF_MEMORY and failed["roomier"] == second["layout"] == settings(final)
    assert second["because"] == f"out of memory under {settings(cell.config)}"
    (row,) = collect(one_cell).rows
    assert (row["layout"], row["ranks"], row["status"]) == ("single", 1, "finished")


def test_a_cell_that_no_layout_can_hold_is_given_up_after_a_few(one_cell, corpus, monkeypatch):
    (cell,) = read_plan(one_cell).cells
    short_of_memory(monkeypatch, MemoryError("too much"), lambda config: False)
    tries = work(assign(one_cell, corpus))
    assert 2 <= len(tries) <= 4
    (status,) = read_status(one_cell).cells
    assert status.state == "failed" and status.reason.startswith(OUT_OF_MEMORY) and "MemoryError" in status.reason
    layouts = [line["layout"] for line in read_attempts(one_cell / cell.run_id) if line["event"] == "start"]
    assert len(set(layouts)) == len(layouts), "none is tried twice"
    assert work(assign(one_cell, corpus, "b"))[0] == cell.run_id, "the next launch tries again"


def test_another_error_is_no_lack_of_memory(one_cell, corpus, monkeypatch):
    short_of_memory(monkeypatch, RuntimeError("shapes cannot be multiplied"), lambda config: False)
    assert len(work(assign(one_cell, corpus))) == 1
    (status,) = read_status(one_cell).cells
    assert status.state == "failed" and "shapes cannot be multiplied" in status.reason
