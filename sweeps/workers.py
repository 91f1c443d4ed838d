"""How many workers, with how many threads, on which devices: the choice and its reason."""

import os
from typing import Any, Literal

from analysis.cost.devices import find_device
from scaling.errors import UserError
from sweeps.grid import Profile
from sweeps.machine import Machine
from sweeps.plan import Workers

#: Jobs at once on a cluster, unless the user says otherwise.
_SLURM_WORKERS = 8


def choose_workers(
    machine: Machine,
    profile: Profile,
    num_cells: int,
    *,
    executor: Literal["auto", "local", "slurm"] = "auto",
    count: int | None = None,
    num_threads: int | None = None,
    slurm: dict[str, Any] | None = None,
    ranks: int = 1,
) -> Workers:
    """Spread `num_cells` cells over the machine. What is None is chosen; `slurm` are Submitit parameters.

    On a CPU one worker a core: cells are too small to gain from threads. `ranks` is how many processes train the
    widest cell. Raises UserError when the demand would keep more cores or GPUs busy than there are.
    """
    if executor == "slurm" or (executor == "auto" and machine.slurm):
        return _on_slurm(profile, num_cells, count, num_threads, slurm or {}, machine, ranks)
    if profile.gpu is not None:
        return _on_gpus(machine, profile, num_cells, count, num_threads, ranks)
    threads = num_threads or 1
    fits = max(machine.cores // (threads * ranks), 1)
    workers = min(count or fits, num_cells)
    _refuse_oversubscription(machine, workers, threads, ranks)
    each = "1 thread" if threads == 1 else f"{threads} threads"
    each = each if ranks == 1 else f"up to {ranks} processes of {each}"
    return Workers(
        executor="local",
        count=workers,
        num_threads=threads,
        device="cpu",
        reason=f"{machine.cores} cores, {each} a cell: small cells side by side are faster than one on all cores",
        ranks_per_cell=ranks,
        ranks_per_node=ranks,
    )


def _on_gpus(
    machine: Machine, profile: Profile, num_cells: int, count: int | None, num_threads: int | None, ranks: int
) -> Workers:
    gpus = len(machine.gpus)
    if gpus and ranks > gpus:
        raise UserError(
            f"ranks_per_cell = {ranks}: there are {gpus} GPUs, one for each process: ask for at most {gpus}"
        )
    fits = max(gpus // ranks, 1)
    if count is not None and count > fits:
        each = "one for each worker" if ranks == 1 else f"{ranks} for each worker"
        raise UserError(f"--workers {count}: there are {gpus} GPUs, {each}: ask for at most {fits}")
    workers = min(count or fits, num_cells)
    threads = num_threads or max(1, machine.cores // (workers * ranks))
    _refuse_oversubscription(machine, workers, threads, ranks)
    each = "one worker for each GPU" if ranks == 1 else f"up to {ranks} GPUs for each worker"
    return Workers(
        executor="local",
        count=workers,
        num_threads=threads,
        device="cuda",
        reason=f"{each}: {machine.device_name}" if gpus else f"no GPU here; priced on one {profile.gpu}",
        ranks_per_cell=ranks,
        ranks_per_node=ranks,
    )


def _on_slurm(
    profile: Profile,
    num_cells: int,
    count: int | None,
    num_threads: int | None,
    slurm: dict[str, Any],
    machine: Machine,
    ranks: int,
) -> Workers:
    gpus = any(slurm.get(name) for name in ("gpus_per_node", "gpus_per_task", "num_gpus", "gres"))
    return Workers(
        executor="slurm",
        count=min(count or _SLURM_WORKERS, num_cells),
        num_threads=num_threads or slurm.get("cpus_per_task") or 1,
        device="cuda" if gpus else "cpu",
        reason=f"SLURM jobs that take one cell after another; {machine.slurm_reason}",
        ranks_per_cell=ranks,
        ranks_per_node=profile.ranks_per_node,
    )


def _refuse_oversubscription(machine: Machine, workers: int, threads: int, ranks: int) -> None:
    if workers * threads > 1 and workers * threads * ranks > machine.cores:
        processes = "" if ranks == 1 else f" x {ranks} processes a cell"
        raise UserError(
            f"--workers {workers} x --threads {threads}{processes} = {workers * threads * ranks} threads, but there "
            f"are "
            f"{machine.cores} cores ({machine.cores_reason}): lower one of them"
        )


def device_bytes(machine: Machine, profile: Profile, workers: Workers) -> int | None:
    """Memory of one process's device: as the profile says, or of this machine's GPUs, or a share of its memory.

    Where the GPUs are elsewhere, of the one that the profile names; None where it names none that is known.
    """
    if profile.device_memory_gib is not None and workers.device == "cuda":
        return int(profile.device_memory_gib * 2**30)
    if workers.device == "cuda" and (workers.executor == "slurm" or not machine.gpus):
        named = find_device(profile.gpu or "")
        return None if named is None else int(named.memory_bytes)
    if workers.executor == "slurm":
        return None
    if workers.device == "cuda":
        return min((gpu.memory_bytes for gpu in machine.gpus if gpu.memory_bytes is not None), default=None)
    return machine.memory_bytes and machine.memory_bytes // workers.slots


def visible_devices(workers: Workers, machine: Machine) -> tuple[str, ...]:
    """The GPU of each local worker slot, for CUDA_VISIBLE_DEVICES; empty when SLURM sets it, or no GPU is used."""
    if workers.executor == "slurm" or workers.device != "cuda":
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(len(machine.gpus))]
    return tuple(name.strip() for name in names[: workers.slots])
