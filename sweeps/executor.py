"""Submitit, behind four verbs: make an executor, start workers, see which are alive, stop them.

The same worker runs under Submitit's local executor and under SLURM. What a job achieved is never
asked of the scheduler; the sweep's directory says that.
"""

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import submitit
import yaml

from scaling.errors import UserError

ExecutorName = Literal["local", "slurm"]

#: Submitit's local executor kills a job after this many minutes; a worker has no limit of its own.
_LOCAL_MINUTES = 60 * 24 * 365
#: Parameters that count what a whole node gives.
_PER_NODE = {"gpus_per_node", "mem_gb"}


def parse_slurm_options(options: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` options as Submitit parameters; values are read as YAML.

    Raises UserError for an option of another form.
    """
    parameters = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not key or not equals:
            raise UserError(f"--slurm {option}: must look like partition=gpu or timeout_min=120")
        try:
            parameters[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--slurm {option}: {text!r} is not a YAML value: quote it") from None
    return parameters


def check_slurm(parameters: dict[str, Any]) -> None:
    """Raise UserError when there is no SLURM here, or Submitit does not know a parameter."""
    if shutil.which("srun") is None:
        raise UserError("--executor slurm: there is no srun command on this machine: use --executor local")
    known = submitit.SlurmExecutor._valid_parameters() | submitit.AutoExecutor._valid_parameters()
    for key, value in parameters.items():
        if key not in known:
            close = get_close_matches(key, known, n=3)
            meant = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(sorted(known))}"
            raise UserError(f"--slurm {key}={value}: Submitit has no such parameter; {meant}")


def make_executor(
    name: ExecutorName,
    sweep_dir: Path,
    *,
    num_threads: int,
    num_gpus: int,
    slurm: dict[str, Any],
    ranks: int = 1,
    ranks_per_node: int = 1,
) -> submitit.AutoExecutor:
    """An executor of jobs of `ranks` processes with `num_threads` cores each, which see `num_gpus` GPUs together.

    `slurm` holds Submitit parameters of the slurm executor (partition, account, timeout_min ...), which
    win over the defaults; what they ask for each node is for one process, and multiplied. Raises UserError
    for one that has a value of the wrong type.
    """
    executor = submitit.AutoExecutor(folder=sweep_dir / "submitit", cluster=name)
    shared = {"name": f"sweep-{sweep_dir.name}", "cpus_per_task": num_threads, "gpus_per_node": num_gpus or None}
    if name == "local":
        executor.update_parameters(**shared, tasks_per_node=ranks, timeout_min=_LOCAL_MINUTES)
        return executor
    nodes = next(nodes for nodes in range(math.ceil(ranks / ranks_per_node), ranks + 1) if ranks % nodes == 0)
    shared |= {"nodes": nodes, "tasks_per_node": ranks // nodes}
    # 120 s of notice before the time limit are enough for a checkpoint.
    parameters = {"timeout_min": 240, "signal_delay_s": 120, **slurm}
    for key in _PER_NODE & parameters.keys():
        if isinstance(parameters[key], (int, float)):
            parameters[key] *= ranks // nodes
    try:
        executor.update_parameters(**shared, **{f"slurm_{key}": value for key, value in parameters.items()})
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--slurm: {str(error).splitlines()[0]}: correct its value") from None
    return executor


def start(executor: submitit.AutoExecutor, count: int, function: Callable[[Any], Any], argument: Any) -> list[Any]:
    """Submit `count` jobs that call `function(argument)`; their Submitit jobs.

    Raises UserError when the scheduler refuses.
    """
    try:
        with _on_their_own(Path(executor.folder) / "controllers.log"), executor.batch():
            jobs = [executor.submit(function, argument) for _ in range(count)]
    except submitit.core.utils.FailedJobError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"sbatch refused the job ({lines[-1] if lines else error}): see --slurm") from None
    return jobs


def alive(jobs: list[Any]) -> list[Any]:
    """Those jobs that wait or run. SLURM's queue is asked, not its accounting, which many clusters lack."""
    local = [job for job in jobs if not isinstance(job, submitit.SlurmJob)]
    slurm = [job for job in jobs if isinstance(job, submitit.SlurmJob)]
    running = [job for job in local if not job.done()]
    if slurm:
        command = ["squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format", "%i"]
        queue = subprocess.run(command, capture_output=True, text=True)
        if queue.returncode:  # the controller does not answer: suppose the best
            return running + slurm
        queued = set(queue.stdout.split())
        running += [job for job in slurm if str(job.job_id) in queued]
    return running


def stop(jobs: list[Any], workers: list[dict[str, Any]]) -> None:
    """Ask workers to save a checkpoint and end: this launch's jobs, and workers found in the sweep's slots.

    `workers` is what the slots' locks say about their holders (pid, host, executor, job). May be repeated.
    """
    local = [int(job.job_id) for job in jobs if not isinstance(job, submitit.SlurmJob)]
    queued = {str(job.job_id) for job in jobs if isinstance(job, submitit.SlurmJob)}
    for worker in workers:
        if worker.get("executor") == "slurm":
            queued.add(str(worker.get("job")))
        elif worker.get("host") == socket.gethostname() and isinstance(worker.get("pid"), int):
            local.append(worker["pid"])
    for pid in local:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
    if queued and shutil.which("scancel"):
        subprocess.run(["scancel", *sorted(queued)], capture_output=True)


def last_words(job: Any) -> str:
    """The last line that a job wrote to its error log, and where that log is: the first process's that wrote one."""
    said = "it wrote nothing"
    for task in range(max(job.num_tasks, 1)):
        path = job.task(task).paths.stderr
        try:
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        if lines:
            said = lines[-1]
            break
    return f"{said} (log: {path})"


@contextmanager
def _on_their_own(log: Path) -> Iterator[None]:
    """Processes started in this context ignore Ctrl-C and hang-up, and hold no terminal or pipe of ours.

    Submitit's local jobs inherit signal dispositions and streams. A Ctrl-C reaches the whole
    foreground group, and would kill a worker in the middle of its checkpoint; and who reads our
    output through a pipe would wait for the workers of a launcher that is long dead.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGINT, signal.SIGHUP)}
    saved = [os.dup(descriptor) for descriptor in range(3)]
    nowhere, file = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for descriptor, target in enumerate((nowhere, file, file)):
            os.dup2(target, descriptor)
        yield
    finally:
        for descriptor, original in enumerate(saved):
            os.dup2(original, descriptor)
        for descriptor in (*saved, nowhere, file):
            os.close(descriptor)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
