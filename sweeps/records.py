"""The sweep's table: one row for each cell of the plan, derived from the run directories.

runs.csv and runs.parquet can be rebuilt at any time; nothing but result.json is a source.
"""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from scaling.errors import UserError
from scaling.record import RunRecord
from sweeps.comparison import measured_columns, predicted_columns
from sweeps.plan import PlannedCell, read_plan
from sweeps.status import StatusReader, read_cell_record

CSV_FILE = "runs.csv"
PARQUET_FILE = "runs.parquet"

#: Column -> its type and what it is. Losses are nats per token; params count embeddings unless they say otherwise.
COLUMNS: dict[str, tuple[type, str]] = {
    "run_id": (str, "hash of the science of the run"),
    "cell": (str, "short name in the plan"),
    "role": (str, "grid, or why a design added it: held-out (not fitted), top, chosen, released (held out before)"),
    "status": (str, "finished, diverged, failed, running, interrupted or pending; only finished runs are fitted"),
    "reason": (str, "why a run diverged or failed"),
    "schedule_finished": (bool, "whether the learning-rate schedule ran to its end"),
    "num_layers": (int, ""),
    "hidden_size": (int, ""),
    "num_attention_heads": (int, ""),
    "params": (int, "parameters with embeddings"),
    "params_non_embedding": (int, "parameters without embeddings"),
    "tokens": (int, "training tokens, repeats included"),
    "epochs": (float, "tokens / training tokens of the corpus"),
    "train_steps": (int, ""),
    "global_batch_size": (int, "sequences per step"),
    "seq_length": (int, "tokens per sequence"),
    "learning_rate": (float, "peak"),
    "flops_budget": (float, "6ND budget that the cell was planned for"),
    "flops": (float, "6 x params x tokens"),
    "flops_causal": (float, "matrix products + causal attention"),
    "flops_full": (float, "matrix products + full attention"),
    "flops_hardware": (float, "full + recomputation"),
    "loss": (float, "validation, nats per token"),
    "loss_stderr": (float, "standard error of loss over sequences"),
    "bits_per_byte": (float, "validation"),
    "train_loss": (float, "mean over the last 5 % of steps, nats per token"),
    "tokens_per_second": (float, "training tokens / seconds"),
    "seconds": (float, "wall time in the training loop, all attempts"),
    "predicted_seconds": (float, "the plan's prediction of seconds, made before the run began"),
    "predicted_seconds_low": (float, "of its 90 % interval"),
    "predicted_seconds_high": (float, "of its 90 % interval"),
    "device_hours": (float, "seconds x devices / 3600; a device is a GPU, or a CPU core on a CPU"),
    "mfu_causal": (float, "causal FLOP/s / peak"),
    "mfu_full": (float, "full FLOP/s / peak"),
    "peak_memory_bytes": (float, "highest resident set (CPU) or allocated memory (GPU) of a process"),
    "predicted_peak_memory_bytes": (float, "the plan's prediction of it"),
    "predicted_peak_memory_bytes_low": (float, "of its 90 % interval"),
    "predicted_peak_memory_bytes_high": (float, "of its 90 % interval"),
    "energy_joules": (float, "of the GPUs in the training loop, by their own counters"),
    "predicted_energy_joules": (float, "the plan's prediction of it"),
    "predicted_energy_joules_low": (float, "of its 90 % interval"),
    "predicted_energy_joules_high": (float, "of its 90 % interval"),
    "layout": (str, "how the run was spread over processes: sizes on each axis, or single"),
    "ranks": (int, "processes that trained it, of its last attempt"),
    "device": (str, ""),
    "dtype": (str, "of the matrix products"),
    "host": (str, ""),
    "attempts": (int, "processes that worked on the run"),
    "corpus": (str, ""),
    "corpus_fingerprint": (str, "sha256 of the tokens"),
    "started_at": (str, "ISO 8601, UTC"),
    "finished_at": (str, "ISO 8601, UTC"),
}


@dataclass(frozen=True)
class Table:
    """The rows of a sweep, and what is not among them."""

    rows: list[dict[str, Any]]
    damaged: list[str]  #: one line for each result.json that is there and cannot be used
    left_out: int  #: finished runs in the directory that the plan does not hold

    def columns(self) -> dict[str, list[Any]]:
        """The rows as equal-length columns."""
        return {name: [row[name] for row in self.rows] for name in COLUMNS}


def collect(sweep_dir: Path) -> Table:
    """Read every cell's record and rewrite runs.csv and runs.parquet.

    Raises UserError when there is no sweep in that directory.
    """
    plan = read_plan(sweep_dir)
    status = StatusReader(sweep_dir).read(plan)
    rows, damaged = [], []
    for cell, state in zip(plan.cells, status.cells, strict=True):
        try:
            record = read_cell_record(sweep_dir, cell.run_id)
        except UserError as error:
            record = None
            damaged.append(str(error))
        row = _planned(cell)
        row |= {
            "status": state.state,
            "reason": state.reason,
            "attempts": state.attempts,
            "layout": str(cell.config.parallel),
            "ranks": cell.ranks,
            "corpus": plan.corpus.name,
            "corpus_fingerprint": plan.corpus.fingerprint,
        }
        if record is not None:
            row |= _measured(record)
        rows.append({name: row.get(name) for name in COLUMNS})
    planned = {cell.run_id for cell in plan.cells}
    left_out = sum(path.parent.name not in planned for path in sweep_dir.glob("*/result.json"))
    _write_csv(sweep_dir / CSV_FILE, rows)
    _write_parquet(sweep_dir / PARQUET_FILE, rows)
    return Table(rows, damaged, left_out)


def _planned(cell: PlannedCell) -> dict[str, Any]:
    return cell.model_dump(exclude={"config", "prediction"}) | predicted_columns(cell.prediction)


def _measured(record: RunRecord) -> dict[str, Any]:
    evaluation, speed = record.evaluation, record.speed
    return {
        "reason": record.reason,
        "schedule_finished": record.schedule_finished,
        "params": record.parameters,
        "params_non_embedding": record.parameters_non_embedding,
        "tokens": record.tokens,
        "flops": record.flops.c_6nd,
        "flops_causal": record.flops.causal,
        "flops_full": record.flops.full,
        "flops_hardware": record.flops.hardware,
        "loss": evaluation.loss if evaluation else None,
        "loss_stderr": evaluation.loss_stderr if evaluation else None,
        "bits_per_byte": evaluation.bits_per_byte if evaluation else None,
        "train_loss": record.train_loss,
        "tokens_per_second": speed.tokens_per_second,
        **measured_columns(record),
        "device_hours": speed.device_hours,
        "mfu_causal": speed.mfu_causal,
        "mfu_full": speed.mfu_full,
        "layout": str(record.config.parallel),
        "ranks": record.config.parallel.world_size,
        "device": speed.device,
        "dtype": speed.dtype,
        "host": record.host,
        "attempts": record.attempts,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    def write(file: IO[bytes]) -> None:
        with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            writer = csv.DictWriter(text, fieldnames=list(COLUMNS), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)  # floats by repr: they read back to the same number

    _replace(path, write)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    fields = [
        pyarrow.field(name, types[kind], metadata={"description": text} if text else None)
        for name, (kind, text) in COLUMNS.items()
    ]
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(fields))
    _replace(path, lambda file: pyarrow.parquet.write_table(table, file))


def _replace(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file beside `path` and rename it into place: a reader sees the old one or the whole new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "wb") as file:
            write(file)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
