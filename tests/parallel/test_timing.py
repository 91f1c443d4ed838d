"""The split of a step's time: arithmetic on given seconds, and real ranks of which one is slow."""

import itertools
import time
from types import SimpleNamespace

import torch

from parallel.mesh import Axis
from parallel.timing import StepTimer, split_step
from tests.distributed import run_distributed


def test_what_the_least_blocked_rank_has_too_is_communication():
    total = torch.tensor([[5.0, 4.0], [5.0, 4.0]], dtype=torch.float64)
    blocked = torch.tensor([[1.0, 3.0], [4.0, 2.0]], dtype=torch.float64)  # rank 0 is last in step 0, rank 1 in step 1
    split = split_step(total, blocked)
    assert split == {"compute_seconds": 2.0, "communication_seconds": 1.5, "waiting_seconds": 1.0}
    assert sum(split.values()) == 4.5


def test_nested_contexts_count_once_and_only_steps_count(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    timer = StepTimer(torch.device("cpu"))
    with timer.communication():
        pass  # outside a step: a checkpoint
    timer.begin_step()  # 2
    with timer.communication():  # 3 to 4: the inner one does not look at the clock
        with timer.communication():
            pass
    timer.end_step()  # 5
    assert timer.split(Axis()) == {"compute_seconds": 2.0, "communication_seconds": 1.0, "waiting_seconds": 0.0}
    assert timer.split(Axis())["compute_seconds"] is None, "an interval without steps"


def test_a_gpu_gives_null_with_the_reason():
    timer = StepTimer(torch.device("cuda"))
    timer.begin_step()
    timer.end_step()
    assert set(timer.split(Axis()).values()) == {None} and "cuda" in timer.reason


def _two_steps(clocks):
    import torch.distributed as dist

    from parallel import timing

    rank = dist.get_rank()
    seconds = iter(clocks[rank])
    timing.time = SimpleNamespace(perf_counter=lambda: next(seconds))
    timer, world = StepTimer(torch.device("cpu")), Axis(rank, 2, (0, 1), dist.group.WORLD)
    for _ in range(2):
        timer.begin_step()
        with timer.communication():
            dist.all_reduce(torch.ones(1))
        timer.end_step()
    return timer.split(world)


def test_ranks_compare_their_seconds_and_agree():
    quick = [0, 1, 5, 6, 10, 11, 15, 16]  # of 6 s in a step, computes 2 and is blocked for 4
    slow = [0, 4, 5, 6, 10, 14, 15, 16]  # computes 5, and the movement of the data takes 1
    split = {"compute_seconds": 3.5, "communication_seconds": 1.0, "waiting_seconds": 1.5}
    assert run_distributed(_two_steps, 2, (quick, slow)) == [split, split]
