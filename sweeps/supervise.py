"""Keep the workers of a sweep going until no cell is left to train.

The sweep's directory says what has been achieved; Submitit's jobs only say whether a process is
still there. A worker that ends early is replaced while there are cells that it could train.
"""

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import submitit

from sweeps import executor as submission
from sweeps.attempts import ATTEMPTS_FILE, OUT_OF_MEMORY, read_lines
from sweeps.plan import Plan
from sweeps.status import CellStatus, StatusReader, SweepStatus, read_workers
from sweeps.worker import Assignment, work

#: So many workers in a row that end before they try a cell, or cells that fail alike before any
#: succeeds, are no accident.
CIRCUIT_BREAKER = 3

_POLL_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Outcome:
    """How the supervision ended."""

    status: SweepStatus
    interrupted: bool = False  #: a stop was asked for
    trouble: str | None = None  #: why cells that could be trained were not


def supervise(
    plan: Plan,
    assignment: Assignment,
    executor: Callable[[int], submitit.AutoExecutor],
    should_stop: Callable[[], bool],
    show: Callable[[SweepStatus], None],
) -> Outcome:
    """Train the plan's cells with at most `assignment.slots` processes, until none can be trained any more.

    A worker has as many processes as its cells' layouts have ranks; `executor` gives one for jobs of that size.
    Workers that an earlier launch left behind count. `show` is called with every status that is read.
    When it fails itself (a full disk, a scheduler that refuses), workers are asked to stop.
    """
    jobs: list[Any] = []
    try:
        return _watch(plan, assignment, executor, should_stop, show, jobs)
    except BaseException:
        submission.stop(jobs, read_workers(assignment.sweep_dir))
        raise


def _watch(
    plan: Plan,
    assignment: Assignment,
    executor: Callable[[int], submitit.AutoExecutor],
    should_stop: Callable[[], bool],
    show: Callable[[SweepStatus], None],
    jobs: list[Any],
) -> Outcome:
    """The loop of `supervise`; keeps in `jobs` those of its Submitit jobs that have not ended."""
    reader = StatusReader(assignment.sweep_dir, assignment.launch)
    barren: list[Any] = []  # the latest jobs in a row that ended before they tried a cell
    settled_before: set[str] | None = None
    while True:
        alive = submission.alive(jobs)
        status = reader.read(plan)
        show(status)
        if settled_before is None:
            settled_before = {cell.run_id for cell in status.cells if cell.state in ("finished", "diverged", "failed")}
        if ended := [job for job in jobs if job not in alive]:
            tried = _jobs_that_tried(plan, assignment)
            for job in ended:
                barren = [] if str(job.job_id) in tried else [*barren, job]
        jobs[:] = alive

        open_cells = _open(status)
        starting = _starting(jobs, status)
        present = len(status.workers) + len(starting)
        if should_stop():
            return Outcome(_stop(reader, plan, jobs, show), interrupted=True)
        if (failure := common_failure(status.cells, settled_before)) and open_cells:
            trouble = f"the first cells all failed alike, so the others were not tried: {failure}"
            return Outcome(_stop(reader, plan, jobs, show), trouble=trouble)
        if not present and not open_cells:
            return Outcome(status)
        if len(barren) >= CIRCUIT_BREAKER:
            if not present:
                words = submission.last_words(barren[-1])
                trouble = f"{len(barren)} workers in a row ended before they tried a cell; the last one said: {words}"
                return Outcome(status, trouble=trouble)
        else:
            for ranks, count in _wanted(status, [job.num_tasks for job in starting], assignment.slots):
                jobs += submission.start(executor(ranks), count, work, replace(assignment, ranks=ranks))
        _pause(should_stop)


def _open(status: SweepStatus) -> list[CellStatus]:
    return [cell for cell in status.cells if cell.state in ("pending", "interrupted")]


def _wanted(status: SweepStatus, starting: list[int], slots: int) -> list[tuple[int, int]]:
    """(processes of a worker, how many such workers to start): the widest first, as long as slots are free.

    `starting` are the sizes of the workers that were started and hold no slot yet.
    """
    free = slots - sum(worker.get("ranks", 1) for worker in status.workers) - sum(starting)
    idle = [worker.get("ranks", 1) for worker in status.workers if worker.get("run_id") is None]
    needed = Counter(cell.ranks for cell in _open(status)) - Counter(starting) - Counter(idle)
    wanted = []
    for ranks, count in sorted(needed.items(), reverse=True):
        count = min(count, free // ranks)
        if count > 0:
            wanted.append((ranks, count))
            free -= count * ranks
    return wanted


def common_failure(cells: list[CellStatus], settled_before: set[str]) -> str | None:
    """The reason that all failed cells share, when enough failed and none has succeeded in this launch.

    `settled_before` are the run ids that were finished, diverged or damaged when it began.
    """
    settled = [cell for cell in cells if cell.run_id not in settled_before]
    # That one cell needs too much memory says nothing about a smaller one.
    failed = [c for c in settled if c.state == "failed" and not (c.reason or "").startswith(OUT_OF_MEMORY)]
    succeeded = any(cell.state in ("finished", "diverged") for cell in settled)
    # Numbers and run ids differ from cell to cell where the cause is one.
    kinds = {re.sub(r"\b[0-9a-f]{16}\b|\d+", "#", cell.reason or "") for cell in failed}
    if len(failed) < CIRCUIT_BREAKER or succeeded or len(kinds) > 1:
        return None
    return failed[0].reason


def _pause(should_stop: Callable[[], bool]) -> None:
    """Wait for the next look at the sweep, or until a stop is asked for."""
    end = time.monotonic() + _POLL_SECONDS
    while time.monotonic() < end and not should_stop():
        time.sleep(0.05)


def _starting(jobs: list[Any], status: SweepStatus) -> list[Any]:
    """Jobs of ours that do not hold a slot yet."""
    holding = {worker.get("job") for worker in status.workers}
    return [job for job in jobs if str(job.job_id) not in holding]


def _jobs_that_tried(plan: Plan, assignment: Assignment) -> set[str]:
    """Submitit ids of this launch's jobs that began at least one cell."""
    return {
        str(line.get("job"))
        for cell in plan.cells
        for line in read_lines(assignment.sweep_dir / cell.run_id / ATTEMPTS_FILE)
        if line.get("launch") == assignment.launch
    }


def _stop(reader: StatusReader, plan: Plan, jobs: list[Any], show: Callable[[SweepStatus], None]) -> SweepStatus:
    """Ask every worker to save a checkpoint and end, and wait until all have."""
    asked = float("-inf")
    while True:
        jobs = submission.alive(jobs)
        status = reader.read(plan)
        show(status)
        if not jobs and not status.workers:
            return status
        if time.monotonic() - asked >= _ASK_AGAIN_SECONDS:  # one that was just starting may not have heard it
            asked = time.monotonic()
            submission.stop(jobs, status.workers)
        time.sleep(0.1)
