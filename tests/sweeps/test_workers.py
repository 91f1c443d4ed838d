import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sweep_lab import grid_values

from scaling.errors import UserError
from sweeps.executor import make_executor
from sweeps.grid import Grid
from sweeps.machine import Gpu, Machine
from sweeps.supervise import _wanted
from sweeps.workers import choose_workers, device_bytes, visible_devices

LAPTOP = Machine("host", "A CPU", 8, "affinity mask", 2**34, (), "no driver", False, "no sbatch on PATH")
ON_GPU = replace(LAPTOP, gpus=(Gpu("NVIDIA H100 80GB HBM3", 2**36),) * 2)
ON_SLURM = replace(LAPTOP, slurm=True, slurm_reason="partition batch up")
PROFILE = Grid.model_validate(grid_values()).profiles["laptop"]
GPU_PROFILE = PROFILE.model_copy(update={"gpu": "NVIDIA H100 80GB HBM3"})


def test_a_worker_on_every_core_and_never_more_than_cells():
    workers = choose_workers(LAPTOP, PROFILE, 40)
    assert (workers.executor, workers.count, workers.num_threads, workers.device) == ("local", 8, 1, "cpu")
    assert choose_workers(LAPTOP, PROFILE, 3).count == 3
    assert choose_workers(LAPTOP, PROFILE, 40, num_threads=3).count == 2


def test_more_threads_than_cores_are_refused():
    with pytest.raises(UserError, match="--workers 4 x --threads 3 = 12 threads.* 8 cores"):
        choose_workers(LAPTOP, PROFILE, 40, count=4, num_threads=3)
    with pytest.raises(UserError, match="--workers 1 x --threads 9 = 9"):
        choose_workers(LAPTOP, PROFILE, 40, num_threads=9)


def test_a_worker_on_every_gpu_sees_only_its_own(monkeypatch):
    workers = choose_workers(ON_GPU, GPU_PROFILE, 40)
    assert (workers.count, workers.num_threads, workers.device, workers.devices_each) == (2, 4, "cuda", 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices(workers, ON_GPU) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_devices(workers, ON_GPU) == ("3", "5")
    with pytest.raises(UserError, match="--workers 3: there are 2 GPUs"):
        choose_workers(ON_GPU, GPU_PROFILE, 40, count=3)


def test_a_cpu_profile_leaves_gpus_alone():
    workers = choose_workers(ON_GPU, PROFILE, 40)
    assert workers.device == "cpu" and visible_devices(workers, ON_GPU) == ()


def test_slurm_is_used_where_it_is_unless_told_otherwise():
    workers = choose_workers(ON_SLURM, GPU_PROFILE, 40, slurm={"gpus_per_node": 1, "cpus_per_task": 6})
    assert (workers.executor, workers.num_threads, workers.device) == ("slurm", 6, "cuda")
    assert choose_workers(ON_SLURM, PROFILE, 40).device == "cpu"
    assert choose_workers(ON_SLURM, PROFILE, 40, executor="local").executor == "local"


def test_a_worker_of_several_processes_takes_a_slot_and_a_gpu_for_each(monkeypatch):
    on_eight = replace(LAPTOP, gpus=(Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30),) * 8, cores=64)
    workers = choose_workers(on_eight, GPU_PROFILE, 40, ranks=4)
    assert (workers.count, workers.slots, workers.num_threads, workers.ranks_per_node) == (2, 8, 8, 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices(workers, on_eight) == tuple("01234567")
    assert device_bytes(on_eight, GPU_PROFILE, workers) == 80 * 2**30
    with pytest.raises(UserError, match="--workers 3: there are 8 GPUs, 4 for each worker: ask for at most 2"):
        choose_workers(on_eight, GPU_PROFILE, 40, count=3, ranks=4)
    with pytest.raises(UserError, match="ranks_per_cell = 16: there are 8 GPUs"):
        choose_workers(on_eight, GPU_PROFILE, 40, ranks=16)


def test_processes_count_against_the_cores_of_a_laptop():
    workers = choose_workers(LAPTOP, PROFILE, 40, ranks=2)
    assert (workers.count, workers.slots) == (4, 8)
    assert device_bytes(LAPTOP, PROFILE, workers) == LAPTOP.memory_bytes // 8
    with pytest.raises(UserError, match="--workers 4 x --threads 2 x 2 processes a cell = 16 threads.* 8 cores"):
        choose_workers(LAPTOP, PROFILE, 40, count=4, num_threads=2, ranks=2)
    assert choose_workers(LAPTOP, PROFILE, 40, ranks=16).count == 1, "one cell of more ranks than cores may be tried"


def test_the_widest_workers_start_first_and_fill_the_slots():
    def status(open_cells, workers):
        cells = [SimpleNamespace(state="pending", ranks=ranks) for ranks in open_cells]
        return SimpleNamespace(cells=cells, workers=workers)

    assert _wanted(status([1, 1, 1, 4], []), [], 6) == [(4, 1), (1, 2)]
    assert _wanted(status([1, 4], [{"ranks": 4, "run_id": "x"}]), [], 6) == [(1, 1)]
    assert _wanted(status([1, 4], [{"ranks": 4, "run_id": None}]), [1], 8) == [], (
        "idle and starting ones will take them"
    )
    assert _wanted(status([2, 2], []), [2], 4) == [(2, 1)]
    assert _wanted(status([1, 1], [{"run_id": "x"}]), [], 2) == [(1, 1)], "a worker of an older launch has one process"


@pytest.mark.parametrize(
    ("ranks", "per_node", "nodes", "tasks"), [(1, 8, 1, 1), (4, 8, 1, 4), (16, 8, 2, 8), (12, 8, 2, 6), (3, 2, 3, 1)]
)
def test_a_slurm_job_has_a_task_for_each_rank(tmp_path, monkeypatch, ranks, per_node, nodes, tasks):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    slurm = {"gpus_per_node": 1, "mem_gb": 10, "cpus_per_task": 6, "partition": "gpu"}
    executor = make_executor(
        "slurm", tmp_path, num_threads=6, num_gpus=0, slurm=slurm, ranks=ranks, ranks_per_node=per_node
    )
    asked = executor._executor.parameters
    assert (asked["nodes"], asked["ntasks_per_node"], asked["cpus_per_task"]) == (nodes, tasks, 6)
    assert (asked["gpus_per_node"], asked["mem"], asked["partition"]) == (tasks, f"{10 * tasks}GB", "gpu")
