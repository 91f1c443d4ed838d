"""The table a fit reads: equal-length columns of finished runs, checked value by value.

Column names are the project's own (see COLUMNS); a table with other names is mapped by `columns`. Which are needed
depends on the form that is fitted: its inputs and its target. Nothing is coerced or
dropped silently: a value that cannot be used is a UserError naming column and row, and a run that is
left out is listed with its reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.table_files import plain_list, read_columns
from scaling.errors import UserError

#: Measurements, in the units that `analysis.law` gives them.
NUMERIC = (
    *("params", "tokens", "loss", "flops", "flops_budget"),
    *("unique_tokens", "error", "learning_rate", "batch_size", "weight"),
)
#: Columns a fit can use.
COLUMNS = (*NUMERIC, "group", "run_id", "role", "status", "reason", "schedule_finished")
#: Of these each has a column of its own.
_MEASURED = tuple(name for name in NUMERIC if name not in ("flops", "flops_budget"))
#: Less than one of these in a row means that the column counts in a larger unit, and 6ND would be wrong.
_COUNTS = ("params", "tokens", "unique_tokens")
#: Used when they are there, without being asked for: they identify and qualify a run, and measure nothing.
_IMPLIED = ("flops_budget", "run_id", "role", "status", "reason", "schedule_finished")
#: What a table calls the run that a row is of, where it has no run_id.
_RUN_NAMES = ("run", "run_name")
#: Columns that say what the numbers of a run mean; read when they are there, to see that all runs agree.
CONVENTION_COLUMNS = (
    *("corpus", "corpus_fingerprint", "dataset", "tokenizer", "vocab_size", "seq_length", "context_length"),
    *("validation_set", "loss_unit", "params_convention", "flops_convention", "objective", "architecture"),
    *("schedule", "experiment"),
)
#: Status of a run left out because its learning-rate schedule did not run to the end.
MID_SCHEDULE = "mid-schedule"
#: Read from a table in the project's own names; others only when the form needs them or `columns` names them.
_USUAL = ("params", "tokens", "loss", "flops", "weight", "group", *_IMPLIED)
#: The role of a run that the fit must not see, because it is there to be predicted.
HELD_OUT = "held-out"
_STATUSES = ("finished", "diverged", "failed", "running", "pending", "interrupted")

#: What a surface reads and predicts.
SURFACE_INPUTS, SURFACE_TARGET = ("params", "tokens"), "loss"
#: One more than the parameters of the surface.
MIN_ROWS = 6
#: A power law with a constant needs three distinct values of its variable.
MIN_DISTINCT = 3
#: Numbers of runs lie far inside; beyond, products overflow.
_SMALLEST, _LARGEST = 1e-60, 1e60
#: Runs whose 6ND all lie within this factor are one budget.
_ONE_BUDGET = 1.12


@dataclass(frozen=True)
class Table:
    """Runs to fit, n of them.

    values: numeric column -> [n], float64 (6 x params x tokens overflows int64 from 9.2e18); flops are the given
    column, else 6 x params x tokens where both are there.
    group: what belongs together when runs are resampled in clusters, or None.
    conventions: column of CONVENTION_COLUMNS -> its words, [n], "" where a cell is empty.
    excluded: {"run_id", "reason", "status"} of each run left out, with its numbers where the status is HELD_OUT.
    columns: project's name -> name in the source.
    """

    values: Mapping[str, np.ndarray]
    run_id: tuple[str, ...]
    excluded: tuple[dict[str, Any], ...]
    columns: dict[str, str]
    source: str
    group: tuple[str, ...] | None = None
    conventions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run_id)

    def column(self, name: str) -> np.ndarray:
        """A numeric column, [n]. Raises UserError when the table has none of this name."""
        if name not in self.values:
            raise UserError(f"{self.source}: no column for {name}: map it, as in --columns {name}=COL")
        return self.values[name]

    @property
    def params(self) -> np.ndarray:
        return self.column("params")

    @property
    def tokens(self) -> np.ndarray:
        return self.column("tokens")

    @property
    def loss(self) -> np.ndarray:
        return self.column("loss")

    @property
    def flops(self) -> np.ndarray:
        return self.column("flops")

    @property
    def flops_budget(self) -> np.ndarray | None:
        """The IsoFLOP group each run was planned in, nan where that is empty; None without such a column."""
        return self.values.get("flops_budget")

    def take(self, rows: np.ndarray) -> "Table":
        """The same table with these rows only (indices, or a mask [n])."""
        rows = np.arange(len(self))[rows]
        return replace(
            self,
            values={name: column[rows] for name, column in self.values.items()},
            run_id=tuple(self.run_id[i] for i in rows),
            group=None if self.group is None else tuple(self.group[i] for i in rows),
            conventions={name: tuple(words[i] for i in rows) for name, words in self.conventions.items()},
        )


def parse_columns(text: str, needed: Sequence[str] = (*SURFACE_INPUTS, SURFACE_TARGET)) -> dict[str, str]:
    """The mapping in `params=COL,tokens=COL,loss=COL[,flops=COL,budget=COL,...]`.

    `budget` is short for `flops_budget`. Raises UserError for an unknown name, one given twice, or one of `needed`
    missing (flops may be: they follow from params and tokens).
    """
    mapping: dict[str, str] = {}
    for item in text.split(","):
        name, equals, column = (part.strip() for part in item.partition("="))
        name = "flops_budget" if name == "budget" else name
        if not equals or not column or name not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise UserError(f"--columns {item.strip()!r}: must look like params=COL, with one of {known} on the left")
        if name in mapping:
            raise UserError(f"--columns {item.strip()!r}: {name} is given twice; keep one")
        mapping[name] = column
    missing = [name for name in _needed(needed, mapping) if name not in mapping]
    if missing:
        remedy = ",".join(f"{name}=COL" for name in missing)
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"--columns {text!r}: {' and '.join(missing)} {are} missing; add {remedy}")
    return mapping


def read_table(path: str | Path, columns: Mapping[str, str] | None = None, **needs: Any) -> Table:
    """The runs in a CSV, TSV or Parquet file.

    `columns` maps project names to the file's; None means that they are the same. `needs` are those of `build_table`.
    Raises UserError when the file cannot be read, a column is missing, a value is not a positive number, or too few
    rows remain.
    """
    return build_table(read_columns(Path(path)), columns, str(path), **needs)


def build_table(
    values: Any,
    columns: Mapping[str, str] | None = None,
    source: str = "table",
    *,
    inputs: Sequence[str] = SURFACE_INPUTS,
    target: str = SURFACE_TARGET,
    min_rows: int = MIN_ROWS,
) -> Table:
    """A checked Table from a mapping of columns or a pandas DataFrame; errors as in `read_table`.

    inputs, target: what a form reads and predicts. min_rows: one more than its parameters.
    """
    present = [str(name) for name in values.keys()]
    needed = (*inputs, target)
    columns = _resolve(present, dict(columns) if columns is not None else None, values, source, needed)
    data = {name: plain_list(values[column]) for name, column in columns.items()}
    lengths = {name: len(column) for name, column in data.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{source}: columns differ in length {lengths}: give one value per run in each")
    count = lengths[target]
    ids = [str(value) for value in data["run_id"]] if "run_id" in data else [f"row {i + 1}" for i in range(count)]

    kept, excluded = [], []
    for i in range(count):
        left_out = _why_left_out(data, i)
        if left_out is None:
            kept.append(i)
        else:
            excluded.append({"run_id": ids[i], **left_out})

    def numbers(name: str) -> np.ndarray:
        cells = ((data[name][i], i + 1) for i in kept)
        return np.array(
            [
                np.nan if name == "flops_budget" and _is_empty(value) else _positive(value, columns[name], row, source)
                for value, row in cells
            ],
            np.float64,
        )

    measured = {name: numbers(name) for name in NUMERIC if name in data}
    for name in filter(measured.__contains__, _COUNTS):
        least = min(measured[name], default=1.0)
        if least < 1:
            raise UserError(
                f"{source}: column {columns[name]!r} goes down to {least:g}, and {name} are counted in ones, not in "
                "millions or billions: multiply the column"
            )
    if "params" in measured and "tokens" in measured:
        measured.setdefault("flops", 6.0 * measured["params"] * measured["tokens"])
    if len(kept) < min_rows:
        but = f" ({len(excluded)} more are left out: {excluded[0]['reason']})" if excluded else ""
        raise UserError(f"{source}: {len(kept)} finished runs{but}; a fit needs at least {min_rows}: add runs")
    _check_spread(measured, inputs, target, columns, source)
    return Table(
        values=measured,
        run_id=tuple(ids[i] for i in kept),
        excluded=tuple(excluded),
        columns=columns,
        source=source,
        group=tuple(str(data["group"][i]) for i in kept) if "group" in data else None,
        conventions=_words(values, kept),
    )


def _words(values: Any, kept: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """The columns of a source that name conventions, of the rows that are kept."""
    found = {}
    for column in values.keys():
        name = str(column).strip().lower()
        if name in CONVENTION_COLUMNS:
            cells = plain_list(values[column])
            found[name] = tuple("" if _is_empty(cells[i]) else str(cells[i]).strip() for i in kept)
    return found


def _check_spread(
    measured: Mapping[str, np.ndarray], inputs: Sequence[str], target: str, columns: Mapping[str, str], source: str
) -> None:
    """Raises UserError when the columns do not vary enough to show a law."""
    for name in inputs:
        distinct = len(np.unique(measured[name]))
        if distinct < MIN_DISTINCT and name != "unique_tokens":
            raise UserError(
                f"{source}: column {columns.get(name, name)!r} has {distinct} distinct value(s); a law needs at least "
                f"{MIN_DISTINCT} to separate its power from the constant: add runs of other sizes"
            )
    value = measured[target]
    if np.ptp(value) == 0:
        raise UserError(
            f"{source}: column {columns[target]!r} is {value[0]:g} in every row, so no law can be seen in it: "
            f"give the {target} of each run"
        )
    if target == "loss" and "params" in inputs and "tokens" in inputs:
        log_compute = np.log(measured["params"]) + np.log(measured["tokens"])
        if np.ptp(log_compute) <= np.log(_ONE_BUDGET):
            raise UserError(
                f"{source}: all runs spend one compute budget, {6 * np.exp(log_compute.mean()):.2e} FLOPs, which "
                "cannot tell size from data: add runs at another budget"
            )


def _needed(needed: Sequence[str], available: Sequence[str] | Mapping[str, str]) -> tuple[str, ...]:
    """The needed columns, with params and tokens in place of flops that are not there."""
    parts = (("params", "tokens") if name == "flops" and "flops" not in available else (name,) for name in needed)
    return tuple(name for part in parts for name in part)


def _resolve(
    present: list[str], columns: dict[str, str] | None, values: Any, source: str, needed: Sequence[str]
) -> dict[str, str]:
    """Project's name -> column of the source, for every column that will be used."""
    own_names = columns is None
    if own_names:
        columns = {name: name for name in dict.fromkeys((*_USUAL, *needed)) if name in present}
    users: dict[str, str] = {}
    for name in filter(columns.__contains__, _MEASURED):
        other = users.setdefault(columns[name], name)
        if other != name:
            raise UserError(f"{source}: column {columns[name]!r} is given for {other} and for {name}: correct one")
    for name in (*_needed(needed, columns), *columns):
        column = columns.get(name, name)
        if column not in present:
            # Whoever gives columns at all gives every one that is needed.
            given = ",".join(f"{n}={n if n in present else 'COL'}" for n in _needed(needed, columns))
            remedy = f"map it, as in --columns {given}" if own_names else "correct the name"
            raise UserError(f"{source}: no column {column!r} (for {name}); present are {', '.join(present)}: {remedy}")
    if not own_names:
        for name in _IMPLIED:
            if name not in present or name in columns:
                continue
            # A foreign table may mean something else by "status"; it is taken unasked when a word of it is ours.
            ours = name != "status" or any(_status(value) in _STATUSES for value in plain_list(values["status"]))
            if ours:
                columns[name] = name
    if "run_id" not in columns:
        columns |= {"run_id": name for name in _RUN_NAMES[::-1] if name in present}
    return columns


def _why_left_out(data: Mapping[str, Sequence[Any]], i: int) -> dict[str, Any] | None:
    """Status and reason when run i is not to be fitted, else None."""
    status = _status(data["status"][i]) if "status" in data else "finished"
    if status != "finished":
        why = "" if "reason" not in data or _is_empty(data["reason"][i]) else f": {data['reason'][i]}"
        return {"status": status or "empty", "reason": f"status {status or 'empty'}{why}"}
    if "schedule_finished" in data and str(data["schedule_finished"][i]).strip().lower() in ("false", "0", "0.0"):
        return {"status": MID_SCHEDULE, "reason": "its learning-rate schedule did not run to the end"}
    if "role" in data and str(data["role"][i]).strip().lower() == HELD_OUT:
        numbers = {name: data[name][i] for name in NUMERIC if name in data}
        return {"status": HELD_OUT, "reason": "held out, to be predicted by the law of the others", **numbers}
    return None


def _status(value: Any) -> str:
    """A status as the project writes it; "" for an empty cell."""
    return "" if _is_empty(value) else str(value).strip().lower()


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: None, blank text, or the NaN that pandas puts there."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _positive(value: Any, column: str, row: int, source: str) -> float:
    where = f"{source}: column {column!r}, data row {row} = {_short(repr(value))}"
    if _is_empty(value):
        raise UserError(f"{source}: column {column!r}, data row {row} is empty: fill it in or remove the row")
    try:
        number = float(value)
    except (TypeError, ValueError):
        remedy = "write it as 1.4e9 or 1400000000, with a decimal point, or remove the row"
        raise UserError(f"{where} is not a number: {remedy}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where} is not finite: correct it, or remove the row if the run diverged")
    if number <= 0:
        raise UserError(f"{where} must be above zero (its logarithm is fitted): correct it or remove the row")
    if not _SMALLEST < number < _LARGEST:
        raise UserError(f"{where} is no size, loss or compute that can be: correct it or remove the row")
    return number


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
