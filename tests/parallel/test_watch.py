"""Real processes with a gloo group, killed, suspended and broken on purpose."""

import json
import multiprocessing
import os
import platform
import re
import signal
import time
from datetime import timedelta

import pytest

from parallel.watch import EXIT_OTHER_RANK, Watch

WORLD = 3


class Stop(Exception):
    """All ranks were asked to stop."""


def _poll(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return value


def _store(rank, folder):
    import torch.distributed as dist

    port = folder / "port"
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        (folder / "scratch").write_text(str(store.port))
        (folder / "scratch").rename(port)
        return store
    _poll(port.exists, "rank 0's port")
    return dist.TCPStore("127.0.0.1", int(port.read_text()), is_master=False)


def _rank(rank, folder, patience, body):
    """One rank: all-reduces for ever, unless `body` ends them."""
    os.dup2(os.open(folder / f"{rank}.err", os.O_WRONLY | os.O_CREAT), 2)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = _store(rank, folder)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    with Watch(
        1000,
        rank=rank,
        world_size=WORLD,
        store=store,
        file=folder / "heartbeat.json",
        patience_seconds=patience,
        orderly=(Stop,),
    ) as watch:
        for step in range(1, 1_000_000):
            watch.step = step
            if body(rank, step, folder):
                break
            dist.all_reduce(torch.ones(1))
            if step == 5:
                (folder / f"{rank}.reached").touch()


def _for_ever(rank, step, folder):
    return False


def _first_raises(rank, step, folder):
    return _raise(rank, step, 0)


def _last_raises(rank, step, folder):
    return _raise(rank, step, WORLD - 1)


def _raise(rank, step, which):
    if rank == which and step == 7:
        raise ValueError("no such token\nand more lines")
    return False


def _end_one_by_one(rank, step, folder):
    """Rank 1 ends first; rank 2 hangs in the store for longer than the patience, and ends after rank 0's goodbye."""
    import torch.distributed as dist

    if step < 7:
        return False
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        seen = lambda: _heartbeat(folder)["ranks"]  # noqa: E731
        _poll(lambda: seen()["1"]["state"] == "finished", "the goodbye of rank 1")
        beat = seen()["2"]["beat"]
        _poll(lambda: seen()["2"]["beat"] > beat + 10, "ten beats of rank 2 without a step")
        store.set("go on", "")
    if rank == 2:
        store.wait(["go on"])
        _poll(lambda: _heartbeat(folder)["state"] == "finished", "the goodbye of rank 0")
    return True


def _asked_to_stop(rank, step, folder):
    if step == 7:
        raise Stop
    return False


def _heartbeat(folder):
    return json.loads((folder / "heartbeat.json").read_text())


@pytest.fixture
def job(tmp_path):
    """Starts the ranks; kills what is left of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed"])
    started = []

    def start(body, patience=2.0):
        for rank in range(WORLD):
            process = context.Process(target=_rank, args=(rank, tmp_path, patience, body), daemon=True)
            process.start()
            started.append(process)
        return started

    yield start
    for process in started:
        process.kill()


def _signal(job, folder, rank, signum):
    for other in range(WORLD):
        _poll((folder / f"{other}.reached").exists, f"step 5 of rank {other}")
    os.kill(job[rank].pid, signum)


def _exit_codes(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def _lines(folder, rank):
    return [line for line in (folder / f"{rank}.err").read_text().splitlines() if line.endswith("stops")]


def _assert_named(job, folder, lost, reason):
    """Every survivor has printed one line that names the rank, and has ended."""
    survivors = [rank for rank in range(WORLD) if rank != lost]
    assert _exit_codes([job[rank] for rank in survivors]) == [EXIT_OTHER_RANK] * len(survivors)
    for rank in survivors:
        (line,) = _lines(folder, rank)
        found = re.fullmatch(rf"rank {lost} on (\S+) \(pid (\d+)\) {reason}; rank {rank} stops", line)
        assert found, line
        assert found[1] == platform.node() and int(found[2]) == job[lost].pid and int(found[3]) >= 5


def test_a_killed_rank_is_named_by_the_others(job, tmp_path):
    ranks = job(_for_ever)
    _signal(ranks, tmp_path, 2, signal.SIGKILL)
    _assert_named(ranks, tmp_path, 2, r"was lost at step (\d+): no sign of life for 2 s")


def test_a_suspended_rank_is_named_although_the_others_hang_in_a_collective(job, tmp_path):
    ranks = job(_for_ever)
    _signal(ranks, tmp_path, 1, signal.SIGSTOP)
    _assert_named(ranks, tmp_path, 1, r"was lost at step (\d+): no sign of life for 2 s")
    os.kill(ranks[1].pid, signal.SIGCONT)
    assert _exit_codes([ranks[1]]) == [EXIT_OTHER_RANK], "it does not go on by itself when it wakes"


def test_killing_the_rank_that_holds_the_store(job, tmp_path):
    ranks = job(_for_ever)
    _signal(ranks, tmp_path, 0, signal.SIGKILL)
    _assert_named(ranks, tmp_path, 0, r"was lost at step (\d+): the store on its host is closed")


def test_suspending_the_rank_that_holds_the_store(job, tmp_path):
    ranks = job(_for_ever)
    _signal(ranks, tmp_path, 0, signal.SIGSTOP)
    _assert_named(ranks, tmp_path, 0, r"was lost at step (\d+): the store on its host has not answered for 2 s")


@pytest.mark.parametrize("rank, body", [(0, _first_raises), (WORLD - 1, _last_raises)])
def test_an_exception_is_told_to_the_others_at_once(job, tmp_path, rank, body):
    ranks = job(body, patience=600.0)
    _assert_named(ranks, tmp_path, rank, r"failed at step (\d+): ValueError: no such token")
    assert _exit_codes([ranks[rank]]) == [1]
    assert "ValueError: no such token" in (tmp_path / f"{rank}.err").read_text() and not _lines(tmp_path, rank)


def test_ranks_that_end_one_by_one_raise_no_alarm(job, tmp_path):
    assert _exit_codes(job(_end_one_by_one, patience=3.0)) == [0] * WORLD
    assert [_lines(tmp_path, rank) for rank in range(WORLD)] == [[]] * WORLD
    heartbeat = _heartbeat(tmp_path)
    assert heartbeat["state"] == "finished"
    assert [entry["state"] for entry in heartbeat["ranks"].values()] == ["finished"] * WORLD


def test_a_stop_that_was_asked_for_is_no_failure(job, tmp_path):
    assert _exit_codes(job(_asked_to_stop, patience=3.0)) == [1] * WORLD
    assert [_lines(tmp_path, rank) for rank in range(WORLD)] == [[]] * WORLD
    assert _heartbeat(tmp_path)["state"] == "stopped"


def test_one_process_keeps_a_heartbeat_file(tmp_path):
    path = tmp_path / "heartbeat.json"
    with Watch(40, file=path, patience_seconds=0.1) as watch:
        watch.step = 3
        _poll(lambda: path.exists() and json.loads(path.read_text())["step"] == 3, "the step in the file")
        running = json.loads(path.read_text())
        (rank_0,) = running["ranks"].values()
        assert (rank_0["host"], rank_0["pid"], rank_0["step"]) == (platform.node(), os.getpid(), 3)
        watch.step = 40
    ended = json.loads(path.read_text())
    assert (running["state"], running["train_steps"]) == ("running", 40)
    assert (ended["state"], ended["step"]) == ("finished", 40)
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_in_one_process_passes_and_is_marked(tmp_path):
    with pytest.raises(KeyError), Watch(40, file=tmp_path / "heartbeat.json"):
        raise KeyError("x")
    assert _heartbeat(tmp_path)["state"] == "failed"


def test_a_rank_that_never_comes_is_named(monkeypatch):
    import torch.distributed as dist

    from parallel import watch

    monkeypatch.setattr(watch, "_START_SECONDS", 0.1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(TimeoutError, match="rank 1, 2 did not start within 0.1 s"):
        Watch(40, world_size=WORLD, store=store).__enter__()
