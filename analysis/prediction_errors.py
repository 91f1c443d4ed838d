"""Predictions made before the runs against measurements: how far off they were, and whether the intervals held."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.formatting import is_number

#: Quantity -> the column that holds it; before it stands predicted_, and after that _low and _high for the interval.
COLUMNS = {"time": "seconds", "memory": "peak_memory_bytes", "energy": "energy_joules"}


@dataclass(frozen=True)
class PredictionErrors:
    """One quantity over the finished runs that have both numbers."""

    quantity: str
    runs: int
    #: Median of |measured / predicted - 1|, and of measured / predicted - 1: a positive bias is more than predicted.
    median_error: float
    bias: float
    #: Runs whose measurement lies in the 90 % interval.
    within: int
    #: (cell, measured / predicted) of the others, the farthest off first.
    outside: tuple[tuple[str, float], ...]

    @property
    def coverage(self) -> float:
        """Share of the runs within their interval."""
        return self.within / self.runs


def prediction_errors(rows: Iterable[Mapping[str, Any]]) -> list[PredictionErrors]:
    """For each quantity that was predicted and measured, from rows of a sweep's table (sweeps/records.py)."""
    finished = [row for row in rows if row.get("status", "finished") == "finished"]
    found = (_of_quantity(name, column, finished) for name, column in COLUMNS.items())
    return [errors for errors in found if errors is not None]


def _of_quantity(name: str, column: str, rows: list[Mapping[str, Any]]) -> PredictionErrors | None:
    predicted = f"predicted_{column}"
    columns = (column, predicted, f"{predicted}_low", f"{predicted}_high")
    runs = [row for row in rows if all(is_number(row.get(part)) and row[part] > 0 for part in columns)]
    if not runs:
        return None
    ratios = [row[column] / row[predicted] for row in runs]
    outside = [
        (str(row.get("cell") or row.get("run_id")), ratio)
        for row, ratio in zip(runs, ratios, strict=True)
        if not row[f"{predicted}_low"] <= row[column] <= row[f"{predicted}_high"]
    ]
    return PredictionErrors(
        quantity=name,
        runs=len(runs),
        median_error=statistics.median(abs(ratio - 1) for ratio in ratios),
        bias=statistics.median(ratios) - 1,
        within=len(runs) - len(outside),
        outside=tuple(sorted(outside, key=lambda pair: -max(pair[1], 1 / pair[1]))),
    )
