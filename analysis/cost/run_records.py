"""Finished runs as (setup, seconds of a step): from our own records, or from a table of measured runs."""

from pathlib import Path

from analysis.cost.architecture import architecture_of
from analysis.cost.devices import Device, find_device
from analysis.cost.measured import describe, measurements, read_rows
from analysis.cost.measured_bounds import implausible
from analysis.cost.measured_cells import NotExpressible, Row
from analysis.cost.setup import Setup
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.record import read_record

Runs = list[tuple[Setup, float]]


def read_runs(source: Path, group: str | None = None) -> tuple[Runs, list[dict[str, str]]]:
    """(runs with a step time, rows or runs that cannot be expressed with the reason) of a CSV file or a sweep.

    group: only the rows of that group. A step time that no run can have had is refused as well (measured_bounds).
    Raises UserError when the source cannot be read.
    """
    return _of_sweep(source) if source.is_dir() else _of_table(source, group)


def _of_table(path: Path, group: str | None) -> tuple[Runs, list[dict[str, str]]]:
    rows = [row for row in read_rows(path) if group is None or row.get("group") == group]
    if group is not None and not rows:
        raise UserError(f"--group {group}: {path} has no rows of it")
    runs, refused = [], []
    for row in rows:
        try:
            run = _timed(row)
        except NotExpressible as error:
            refused.append({"id": row["id"], "reason": str(error)})
        else:
            runs += [] if run is None else [run]
    return runs, refused


def _timed(row: Row) -> tuple[Setup, float] | None:
    """The setup of a row and its step time; None where none was measured. Raises NotExpressible, which says why not."""
    measured = measurements(row)
    if measured.no_step:
        raise NotExpressible(measured.no_step)
    if measured.step_seconds is None:
        return None
    setup = describe(row).setup
    if problem := implausible(setup, measured.step_seconds):
        raise NotExpressible(problem)
    return setup, measured.step_seconds


def _of_sweep(directory: Path) -> tuple[Runs, list[dict[str, str]]]:
    runs, refused = [], []
    for path in sorted(directory.glob("*/result.json")):
        record = read_record(path.parent)
        if record is None or record.status != "finished" or record.speed.seconds <= 0:
            continue
        device = find_device(record.speed.device)
        if device is None:
            reason = f"device {record.speed.device}: not in the table of devices; --gpu cpu measures a CPU on the spot"
            refused.append({"id": record.run_id, "reason": reason})
            continue
        run = (setup_of_run(record.config, device), record.speed.seconds / record.config.train_steps)
        if problem := implausible(*run):
            refused.append({"id": record.run_id, "reason": problem})
        else:
            runs.append(run)
    return runs, refused


def setup_of_run(config: RunConfig, device: Device) -> Setup:
    """The setup of one of our own runs. Its kernels are not compiled and its overlap is that of eager code."""
    layout, execution = config.parallel, config.execution
    interleaved = layout.pipeline_schedule == "interleaved1f1b"
    return Setup(
        model=architecture_of(config.model, "model"),
        device=device,
        num_gpus=layout.world_size,
        seq_length=config.data.seq_length,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        tensor_parallel_size=layout.tensor_parallel_size,
        pipeline_parallel_size=layout.pipeline_parallel_size,
        virtual_pipeline_parallel_size=layout.stages_per_rank if interleaved else 1,
        context_parallel_size=layout.context_parallel_size,
        sequence_parallel=layout.sequence_parallel is not False,
        pipeline_schedule=layout.pipeline_schedule,
        sharding="zero3" if layout.uses_fsdp2 else "zero1",
        recompute_granularity=execution.recompute_granularity,
        precision="fp32" if execution.dtype in ("float32", "float64") else "bf16",
        flash_attention=config.model.position_embedding != "relative",
        stack="fsdp_eager",
    )
