"""What one job does: claim the sweep's cells one after another, the longest first, until none is left.

Cells are small, and starting a process with torch costs seconds, so one worker trains many cells. A
worker needs no launcher: it goes on when the launcher dies, and the next launcher joins it.

A worker has as many processes as the layouts of its cells have ranks. All train; rank 0 claims cells and writes what
became of them. A worker of several processes ends with the first cell that fails, since the ranks may then stand at
different points; the launcher starts another.
Imported without torch; torch comes in after the threads are set.
"""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import submitit

from scaling.config import RunConfig
from scaling.record import RESULT_FILE
from scaling.signals import stop_requests
from sweeps.attempts import OUT_OF_MEMORY, end_attempt, given_up, read_attempts, start_attempt
from sweeps.ladder import layout_to_try, roomier, settings
from sweeps.locks import FileLock, acquire, acquire_several
from sweeps.plan import PlannedCell, read_plan
from sweeps.team import Team, team_of

ERROR_FILE = "error.log"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: Exit code of a process whose cell failed while others were at work on it.
_EXIT_FAILED = 1


@dataclass(frozen=True)
class Assignment:
    """What a worker is told; the cells it reads from the sweep's plan, before each claim."""

    sweep_dir: Path
    corpus_dir: Path
    launch: str  #: names the launch that started the worker
    slots: int  #: at most this many processes on the sweep at once, whoever started them
    num_threads: int  #: CPU threads of each
    ranks: int = 1  #: processes of this worker: it trains the cells whose layout has so many ranks
    ranks_per_node: int = 1  #: tensor-parallel ranks stay within a node
    devices: tuple[str, ...] = ()  #: one for each slot, for CUDA_VISIBLE_DEVICES; empty: leave it as it is


def slot_paths(sweep_dir: Path, slots: int) -> list[Path]:
    """The lock files of a sweep's worker slots."""
    return [sweep_dir / "workers" / f"{slot}.lock" for slot in range(slots)]


def work(assignment: Assignment) -> list[str]:
    """Train cells until none is left or a stop is asked for (SIGTERM or SIGUSR2). Returns their run ids."""
    # Submitit's own handlers leave at any bytecode; the trainer leaves between two steps.
    with stop_requests((signal.SIGTERM, signal.SIGUSR2)) as stop:
        return _work(assignment, stop)


def _work(assignment: Assignment, stop: Callable[[], bool]) -> list[str]:
    environment = submitit.JobEnvironment()
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(assignment.num_threads)
    me = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "executor": environment.cluster,
        "job": environment.job_id,
        "launch": assignment.launch,
        "ranks": environment.num_tasks,
        "started_at": _now(),
    }
    with team_of(environment, assignment.sweep_dir / "submitit") as team:
        paths = slot_paths(assignment.sweep_dir, assignment.slots)
        contents = [{**me, "rank": rank, "run_id": None} for rank in range(team.size)]
        slots = acquire_several(paths, contents) if team.rank == 0 else None
        taken = team.share(slots and [paths.index(slot.path) for slot in slots])
        if taken is None:
            return []
        if assignment.devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(assignment.devices[index] for index in taken)
        import scaling.train  # noqa: F401  torch reads the variables above when it comes in, before a cell is claimed

        team.connect()
        tried = _train_cells(assignment, team, slots and slots[0], me, stop)
        for slot in slots or []:
            slot.release()
        return tried


def _train_cells(
    assignment: Assignment, team: Team, slot: FileLock | None, me: dict[str, Any], stop: Callable[[], bool]
) -> list[str]:
    """Train what rank 0 claims, cell after cell; returns the run ids. `slot` is rank 0's first, where it says which."""
    tried: list[str] = []
    while True:
        claim = claim_next(assignment, me) if team.rank == 0 and not stop() else None
        task = team.share(claim and _begin(claim[0], assignment, me))
        if task is None:
            return tried
        tried.append(task["run_id"])
        try:
            if slot:
                slot.write({**me, "rank": 0, "run_id": task["run_id"]})
            go_on = train_cell(task, assignment, team, stop)
        finally:
            if slot and claim:
                slot.write({**me, "rank": 0, "run_id": None})
                claim[1].release()
        if not go_on:
            return tried


def claim_next(assignment: Assignment, me: dict[str, Any]) -> tuple[PlannedCell, FileLock] | None:
    """The longest cell of this worker's size that is neither finished nor held nor given up, with its lock."""
    for cell in sorted(read_plan(assignment.sweep_dir).cells, key=lambda cell: -cell.seconds):
        run_dir = assignment.sweep_dir / cell.run_id
        if cell.ranks != assignment.ranks or (run_dir / RESULT_FILE).exists():
            continue
        lock = acquire(run_dir / "lock", me)
        if lock is None:
            continue
        # Only now is it certain that nobody else works on the cell.
        if not (run_dir / RESULT_FILE).exists() and given_up(read_attempts(run_dir), assignment.launch) is None:
            return cell, lock
        lock.release()
    return None


def _begin(cell: PlannedCell, assignment: Assignment, me: dict[str, Any]) -> dict[str, Any]:
    """Record a new attempt; returns what every rank must know of it, as plain data."""
    run_dir = assignment.sweep_dir / cell.run_id
    attempts = read_attempts(run_dir)
    config, because = layout_to_try(cell.config, attempts, assignment.launch, assignment.ranks_per_node)
    fallback = {} if because is None else {"planned_layout": settings(cell.config), "because": because}
    details = {**me, "started_at": _now(), "layout": settings(config), **fallback}
    attempt = start_attempt(run_dir, **details)
    return {"run_id": cell.run_id, "attempt": attempt, "config": config.model_dump(mode="json")}


def train_cell(task: dict[str, Any], assignment: Assignment, team: Team, stop: Callable[[], bool]) -> bool:
    """Train one cell and record how it ended; False when this worker is to train no further cell.

    Every rank calls it. Of several, one whose cell fails ends here and now.
    """
    from scaling.train import Interrupted, train

    config, run_dir = RunConfig.model_validate(task["config"]), assignment.sweep_dir / task["run_id"]
    error_file = run_dir / (ERROR_FILE if team.rank == 0 else f"error.rank-{team.rank}.log")
    details: dict[str, Any] = {}
    try:
        outcome = train(config, run_dir, assignment.corpus_dir, should_stop=stop).status
        error_file.unlink(missing_ok=True)
    except Interrupted:
        outcome = "interrupted"
    except Exception as error:
        outcome = "error"
        details["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        if _out_of_memory(error):
            other = roomier(config, assignment.ranks_per_node)
            outcome = OUT_OF_MEMORY
            details |= {"layout": settings(config), "roomier": other and settings(other)}
        with suppress(OSError):  # a full disk, perhaps, which is then the error itself
            error_file.write_text(traceback.format_exc(), encoding="utf-8")
    failed = "error" in details
    if team.rank == 0 or failed:
        end_attempt(run_dir, task["attempt"], assignment.launch, outcome, team.rank, ended_at=_now(), **details)
    if failed and team.size > 1:
        os._exit(_EXIT_FAILED)  # an orderly end would wait for ranks that will not answer
    return outcome != "interrupted" and (not failed or _cuda_works())


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of a GPU or of the machine: torch has an exception for the former alone."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _cuda_works() -> bool:
    """False after an error that no later CUDA call of this process survives (an illegal access, say)."""
    import torch

    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
