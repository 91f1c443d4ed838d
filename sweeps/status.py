"""Where a sweep stands, read from its directory alone. Writes nothing, so it works at any time.

A cell's state follows from its files and from who holds which lock: a valid result.json means
finished (or diverged), a worker that names the cell in its held slot means running.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from analysis.prediction_errors import PredictionErrors, prediction_errors
from scaling.errors import UserError
from scaling.record import RESULT_FILE, RunRecord, read_record
from sweeps.attempts import OUT_OF_MEMORY, given_up, last_error, lost_attempts, read_attempts
from sweeps.comparison import measured_columns, predicted_columns
from sweeps.ladder import settings
from sweeps.locks import holder
from sweeps.plan import Plan, PlannedCell, makespan, read_plan

State = Literal["finished", "diverged", "failed", "running", "interrupted", "pending"]
STATES: tuple[State, ...] = ("finished", "diverged", "failed", "running", "interrupted", "pending")

LAUNCHER_LOCK = "launcher.lock"

_TAIL_BYTES = 8192


@dataclass(frozen=True)
class CellStatus:
    """One cell: its state and the latest figures of its metrics.jsonl or result.json."""

    cell: str
    run_id: str
    state: State
    step: int
    train_steps: int
    loss: float | None  #: nats per token; validation once finished, else training
    tokens_per_second: float | None  #: mean so far
    seconds: float | None  #: training time so far, all attempts
    predicted_seconds: float
    attempts: int
    reason: str | None  #: why it failed or diverged, or what its latest attempts died of
    ranks: int  #: processes that train it
    layout: str  #: how it is spread over them: as it finished, or in the latest attempt, or as planned


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment."""

    sweep_dir: str
    launcher: dict[str, Any] | None  #: what the running launcher's lock says; None when none runs
    workers: list[dict[str, Any]]
    cells: list[CellStatus]
    seconds_left: float | None  #: at the speed measured so far; None while no worker runs
    counts: dict[str, int] = field(default_factory=dict)
    #: Predicted against measured of the finished cells, by quantity.
    predictions: list[PredictionErrors] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class StatusReader:
    """Reads a sweep's status again and again; results that were read once are remembered.

    With `launch`, a cell that failed in an earlier launch counts as pending, since this one tries it
    again, and a cell that this launch gave up counts as failed.
    """

    def __init__(self, sweep_dir: Path, launch: str | None = None) -> None:
        self.sweep_dir = sweep_dir
        self.launch = launch
        self._records: dict[str, RunRecord] = {}

    def read(self, plan: Plan) -> SweepStatus:
        """The status now. Raises UserError when the sweep's directory cannot be read."""
        workers = read_workers(self.sweep_dir)
        held = {worker.get("run_id") for worker in workers}
        cells = [self._cell(cell, cell.run_id in held) for cell in plan.cells]
        return SweepStatus(
            sweep_dir=str(self.sweep_dir),
            launcher=holder(self.sweep_dir / LAUNCHER_LOCK),
            workers=workers,
            cells=cells,
            seconds_left=_seconds_left(cells, sum(worker.get("ranks", 1) for worker in workers)),
            counts={state: sum(cell.state == state for cell in cells) for state in STATES},
            predictions=prediction_errors(self._compared(plan)),
        )

    def _compared(self, plan: Plan) -> Iterator[dict[str, Any]]:
        for cell in plan.cells:
            if (record := self._records.get(cell.run_id)) is not None and record.status == "finished":
                yield {"cell": cell.cell} | predicted_columns(cell.prediction) | measured_columns(record)

    def _cell(self, cell: PlannedCell, held: bool) -> CellStatus:
        run_dir = self.sweep_dir / cell.run_id
        try:
            record = self._record(cell.run_id)
        except UserError as error:
            return _status(cell, "failed", 0, reason=str(error))
        if record is not None:
            return _status(
                cell,
                record.status,
                record.attempts,
                step=record.tokens // record.config.tokens_per_step,
                loss=record.evaluation.loss if record.evaluation else None,
                tokens_per_second=record.speed.tokens_per_second,
                seconds=record.speed.seconds,
                reason=record.reason,
                layout=settings(record.config),
            )
        attempts = read_attempts(run_dir)
        starts = sum(line.get("event") == "start" for line in attempts)
        last = _last_step(run_dir / "metrics.jsonl")
        figures = {
            "step": int(last.get("step", 0)),
            "loss": last.get("loss"),
            "tokens_per_second": last["tokens"] / last["seconds"] if last.get("seconds") else None,
            "seconds": last.get("seconds"),
            "layout": next(
                (line["layout"] for line in reversed(attempts) if line.get("layout")), settings(cell.config)
            ),
        }
        if held:
            return _status(cell, "running", starts, **figures)
        error = given_up(attempts, self.launch) if self.launch else last_error(attempts)
        if error is not None:
            return _status(cell, "failed", starts, **figures, reason=error)
        if not starts:
            return _status(cell, "pending", starts, **figures)
        lost = lost_attempts(attempts)
        reason = f"its worker died {lost} times" if lost > 1 else None
        if attempts[-1].get("outcome") == OUT_OF_MEMORY:
            reason = f"{OUT_OF_MEMORY} under {attempts[-1].get('layout')}, next {attempts[-1].get('roomier')}"
        return _status(cell, "interrupted", starts, **figures, reason=reason)

    def _record(self, run_id: str) -> RunRecord | None:
        if run_id not in self._records:
            record = read_cell_record(self.sweep_dir, run_id)
            if record is None:
                return None
            self._records[run_id] = record
        return self._records[run_id]


def read_status(sweep_dir: Path) -> SweepStatus:
    """The status of a sweep now. Raises UserError when there is no sweep in that directory."""
    return StatusReader(sweep_dir).read(read_plan(sweep_dir))


def read_cell_record(sweep_dir: Path, run_id: str) -> RunRecord | None:
    """The record of one cell, None when there is none yet.

    Raises UserError when it is damaged, or the record of another run.
    """
    record = read_record(sweep_dir / run_id)
    if record is not None and record.config.run_id != run_id:
        raise UserError(
            f"{sweep_dir / run_id / RESULT_FILE}: run_id = {record.config.run_id} is another run's: "
            "restore the file or remove it to train the cell again"
        )
    return record


def read_workers(sweep_dir: Path) -> list[dict[str, Any]]:
    """What the held worker slots say about their holders (slot, ranks, pid, host, job, run_id ...).

    A worker of several ranks holds a slot for each, and is told once, by its first.
    """
    workers = []
    for path in sorted((sweep_dir / "workers").glob("*.lock"), key=lambda path: (len(path.stem), path.stem)):
        if (content := holder(path)) is not None and not content.get("rank"):
            workers.append({"slot": int(path.stem) if path.stem.isdigit() else path.stem, **content})
    return workers


def _status(cell: PlannedCell, state: State, attempts: int, **figures: Any) -> CellStatus:
    figures = {"step": 0, "loss": None, "tokens_per_second": None, "seconds": None, "reason": None, **figures}
    figures.setdefault("layout", settings(cell.config))
    return CellStatus(
        cell=cell.cell,
        run_id=cell.run_id,
        state=state,
        train_steps=cell.train_steps,
        predicted_seconds=cell.seconds,
        attempts=attempts,
        ranks=cell.ranks,
        **figures,
    )


def _last_step(path: Path) -> dict[str, Any]:
    """The last whole training line of a metrics.jsonl, read from its tail."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "loss" in value and isinstance(value.get("step"), int):
            return value
    return {}


def _seconds_left(cells: list[CellStatus], slots: int) -> float | None:
    """Time to the end with the workers in these slots: the plan's predictions, scaled by how they did so far."""
    known = [c for c in cells if c.state == "finished" and c.seconds]
    known = known or [c for c in cells if c.state == "running" and c.seconds and c.step >= c.train_steps / 20]
    predicted = sum(c.predicted_seconds * c.step / c.train_steps for c in known)
    scale = sum(c.seconds or 0.0 for c in known) / predicted if predicted else 1.0
    left = [
        (scale * c.predicted_seconds * (1 - c.step / c.train_steps), c.ranks)
        for c in cells
        if c.state in ("running", "interrupted", "pending")
    ]
    return makespan(left, slots) if left and slots else None
