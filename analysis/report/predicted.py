"""The report's comparison of the plan's predictions, made before the runs, with what the runs measured."""

from analysis import formatting
from analysis.prediction_errors import PredictionErrors, prediction_errors
from analysis.report.tables import Column, Row, Table, number, words
from analysis.runs import Rows

_WHAT = {
    "time": "Time in the training loop",
    "memory": "Peak memory of a process",
    "energy": "Energy, by the GPUs' counters",
}


def predicted_table(rows: Rows) -> Table | None:
    """Errors and coverage of each quantity that was predicted and measured; None without any."""
    body = [
        Row(
            [
                words(_WHAT[errors.quantity]),
                number(errors.runs, formatting.whole),
                number(errors.median_error, formatting.percent),
                number(errors.bias, lambda bias: f"{100 * bias:+.0f}\N{NO-BREAK SPACE}%"),
                number(errors.coverage, lambda _, errors=errors: f"{errors.within} of {errors.runs}"),
            ]
        )
        for errors in prediction_errors(rows)
    ]
    columns = [
        Column(""),
        Column("Runs", "finished"),
        Column("Median error", "|measured / predicted - 1|"),
        Column("Bias", "median of measured / predicted - 1"),
        Column("Within", "90 % interval"),
    ]
    caption = "A run's prediction is that of the plan under which it began, and knows no result of this sweep."
    return Table("Predicted and measured", caption, columns, body) if body else None


def outside_text(rows: Rows) -> list[str]:
    """The runs that were off by more than their interval, a sentence for each quantity that has some."""
    return [_sentence(errors) for errors in prediction_errors(rows) if errors.outside]


def _sentence(errors: PredictionErrors) -> str:
    named = ", ".join(f"{cell} ({formatting.significant(ratio)} times)" for cell, ratio in errors.outside)
    return f"Outside of the interval of {errors.quantity}, measured over predicted: {named}."
