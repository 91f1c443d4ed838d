"""RunRecord: what one finished (or failed) run yields; the contents of `result.json`.

Every convention is spelled out in the field's name or description, so that a table of records
can be read years later. Written once, atomically, last.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaling.config import RunConfig, explain
from scaling.errors import UserError

RECORD_VERSION = 1
RESULT_FILE = "result.json"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Flops(_Section):
    """Training FLOPs of the whole run, forward and backward, under four named conventions."""

    c_6nd: float = Field(description="6 x parameters with embeddings x tokens")
    causal: float = Field(description="matrix products of the modules + causal (half) attention")
    full: float = Field(description="matrix products of the modules + full (non-causal) attention")
    hardware: float = Field(description="full, plus what activation recomputation did again")


class Evaluation(_Section):
    """Loss over the fixed held-out set, summed over all of its tokens."""

    loss: float = Field(description="mean, nats per token")
    loss_stderr: float = Field(description="standard error of the mean over sequences, nats per token")
    bits_per_byte: float | None = Field(description="mean, bits per byte of text; null when the byte count is unknown")
    tokens: int = Field(description="tokens predicted")


class Speed(_Section):
    """How fast, on what."""

    device: str
    dtype: str
    dtype_reason: str
    num_threads: int | None
    seconds: float = Field(description="wall time in the training loop, all attempts")
    tokens_per_second: float = Field(description="training tokens / seconds")
    mfu_causal: float | None = Field(description="causal FLOPs / s / peak; null without a peak")
    mfu_full: float | None
    peak_flops: float | None = Field(description="dense peak or measured matmul rate used, FLOP/s")
    peak_flops_source: str | None
    peak_memory_bytes: int | None = Field(description="highest resident set (CPU) or allocated memory (GPU)")
    energy_joules: float | None
    energy_source: str | None = Field(description="where the energy comes from, or why it is null")
    device_hours: float = Field(description="seconds x devices / 3600; a device is a GPU, or a CPU core on a CPU")
    power_watts_mean: float | None = Field(None, description="rank 0's GPU, sampled every second of the last attempt")
    power_watts_max: float | None = None
    gpu_utilization_percent: float | None = Field(None, description="mean share of time in which a kernel ran")
    gpu_memory_used_bytes: int | None = Field(None, description="highest sampled, all processes on rank 0's GPU")
    nvml: str | None = Field(None, description="NVML, or why the GPU's fields are null")
    host_peak_memory_bytes: int | None = Field(None, description="highest resident set of rank 0's process")
    host_available_memory_bytes: int | None = Field(None, description="on rank 0's host at the end of the run")
    compute_seconds: float | None = Field(None, description="per step, mean of the ranks: not blocked by others")
    communication_seconds: float | None = Field(None, description="per step: blocked, like the least blocked rank")
    waiting_seconds: float | None = Field(None, description="per step: blocked longer than that; a lower bound")
    step_split: str | None = Field(None, description="why the three are null")


class RunRecord(_Section):
    """One run, as the fits and the report read it."""

    record_version: int = RECORD_VERSION
    run_id: str
    status: Literal["finished", "diverged", "failed"]
    reason: str | None = Field(None, description="why a run diverged or failed")
    schedule_finished: bool = Field(description="whether the learning-rate schedule ran to its end")
    config: RunConfig
    parameters: int = Field(description="all parameters, embeddings included, tied weights counted once")
    parameters_non_embedding: int = Field(
        description="without token and position embeddings and without an untied output layer"
    )
    parameters_active: int = Field(description="used for each token; equal to `parameters` for a dense model")
    tokens: int = Field(description="training tokens seen, repeats included")
    flops: Flops
    train_loss: float | None = Field(description="mean over the last 5 % of steps, nats per token")
    evaluation: Evaluation | None = Field(description="null unless finished")
    speed: Speed
    kernels: dict[str, Any] = Field(
        default_factory=dict, description="operation -> {backend, max_relative_error, reason, refused}"
    )
    versions: dict[str, str] = Field(default_factory=dict)
    host: str
    attempts: int = Field(1, description="processes that worked on this run; above 1 it was resumed")
    started_at: str = Field(description="ISO 8601, UTC")
    finished_at: str


def write_json_atomically(path: Path, value: Any) -> None:
    """Write JSON beside `path`, flush it to disk, and rename it into place.

    A reader sees the old file or the whole new one. Raises OSError (a full disk, say); then `path`
    is as it was.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_record(run_dir: Path, record: RunRecord) -> None:
    """Write `result.json` of a run directory; refuses to overwrite one that is there."""
    path = run_dir / RESULT_FILE
    if path.exists():
        raise UserError(f"{path}: already there, and a result is never overwritten: remove it by hand to run again")
    write_json_atomically(path, record.model_dump(mode="json"))


def read_record(run_dir: Path) -> RunRecord | None:
    """The record of a run directory, None when there is none yet.

    Raises UserError when `result.json` is there but not a valid record.
    """
    path = run_dir / RESULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it or remove it to train the cell again") from None
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{explain(error, str(path))}; restore the file or remove it to train the cell again") from None
