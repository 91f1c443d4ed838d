"""What the plan predicted of a run and what its record measured, as columns of the sweep's table."""

from typing import Any

from analysis.prediction_errors import COLUMNS
from scaling.record import RunRecord
from sweeps.plan import Prediction


def predicted_columns(prediction: Prediction) -> dict[str, float | None]:
    """predicted_X, predicted_X_low and predicted_X_high of each quantity; None where it was not predicted."""
    intervals = {
        "time": prediction.training_seconds,
        "memory": prediction.peak_memory_bytes,
        "energy": prediction.energy_joules,
    }
    columns: dict[str, float | None] = {}
    for quantity, column in COLUMNS.items():
        interval = intervals[quantity]
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            columns[f"predicted_{column}{suffix}"] = None if interval is None else getattr(interval, end)
    return columns


def measured_columns(record: RunRecord) -> dict[str, Any]:
    """The same quantities as they were."""
    return {column: getattr(record.speed, column) for column in COLUMNS.values()}
