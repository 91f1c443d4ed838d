"""Backtest: leave out the largest budgets, fit the rest, predict what was left out, and score it.

In sample every form looks right; what is wanted of a law is the next budget. So the form is chosen by what each would
have predicted for budgets that are known by now: see `analysis.choice`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.estimator import Estimator
from analysis.forecasts import (
    all_recipes,
    budgets_of,
    make_forecasts,
    near_minima,
    surface_recipes,
    with_budgets,
)
from analysis.frontier import Minimum, parabola_minima
from analysis.table import Table

#: Budgets that are left to the fits: a surface needs two, and a parabola of its own to judge by.
MIN_FITTED = 3
#: Without budgets, runs in the order of 6ND are left out by this share at a time; with fewer runs there is no backtest.
_SHARE, _MIN_RUNS = 0.1, 20
#: How far back the choice of form looks: budgets left out in turn, each predicted from those below it.
DEPTH = 3


@dataclass(frozen=True)
class Score:
    """What one form predicted for one budget that it had not seen; fields in the table's units.

    num_held_out: how many budgets were left out, this one included. fitted_flops: the largest that was fitted.
    params, loss: predicted. measured_params, measured_loss: the vertex of the parabola through the runs near the
    minimum; params nan when the minimum is at the edge of the sizes, loss then the lowest measured. Without IsoFLOP
    budgets it is a tenth of the runs that is predicted, loss is their geometric mean, and there are no minima (nan).
    log_params_error = ln(predicted/measured); loss_error = the same of the loss, so 0.01 is 1 % too high.
    """

    form: str
    num_held_out: int
    fitted_flops: float
    held_out_flops: float
    params: float
    tokens: float
    loss: float
    measured_params: float
    measured_loss: float
    steps: int = 1
    """1 for the smallest budget left out, 2 for the one after it."""

    @property
    def log_params_error(self) -> float:
        return _log_ratio(self.params, self.measured_params)

    @property
    def loss_error(self) -> float:
        return _log_ratio(self.loss, self.measured_loss)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `forms` of law.json."""
        return {**asdict(self), "log_params_error": self.log_params_error, "loss_error": self.loss_error}


def backtest(table: Table, estimator: Estimator = Estimator(), depth: int = DEPTH) -> list[Score]:
    """Leave out the 1, 2, ... `depth` largest IsoFLOP budgets and predict the first two of them with every form.

    Surfaces are fitted by `estimator` (whose form is ignored) to all runs of the budgets kept, with the table's column
    `weight` if it has one. At least three budgets are kept. A table without budgets of equal FLOPs is cut into tenths
    by 6ND instead, and surfaces alone predict the mean loss of the runs in each. [] when there are too few of either.
    """
    groups = budgets_of(table)
    if not groups:
        return _backtest_losses(table, estimator, depth)
    scores = []
    for left_out in range(1, min(depth, len(groups) - MIN_FITTED) + 1):
        fitted, held_out = groups[:-left_out], groups[-left_out:]
        forecasts = make_forecasts(with_budgets(table, fitted), estimator, all_recipes())
        for steps, (flops, rows) in enumerate(held_out[:2], start=1):
            measured = measured_minimum(with_budgets(table, [(flops, rows)]))
            for form, forecast in forecasts.items():
                best = forecast.optimum(flops)
                scores.append(
                    Score(
                        *(form, left_out, fitted[-1][0], flops),
                        *(float(value) for value in best),
                        *(measured.params, measured.loss, steps),
                    )
                )
    return scores


def _backtest_losses(table: Table, estimator: Estimator, depth: int) -> list[Score]:
    compute = 6.0 * table.params * table.tokens
    slices = np.array_split(np.argsort(compute, kind="stable"), round(1 / _SHARE))
    scores = []
    for left_out in range(1, depth + 1 if len(table) >= _MIN_RUNS else 1):
        kept, held_out = np.concatenate(slices[:-left_out]), table.take(slices[-left_out])
        for form, forecast in make_forecasts(table.take(kept), estimator, surface_recipes()).items():
            predicted = forecast.law.loss(held_out.params, held_out.tokens)
            scores.append(
                Score(
                    *(form, left_out, float(compute[kept].max()), _geometric_mean(compute[slices[-left_out]])),
                    *(np.nan, np.nan, _geometric_mean(predicted)),
                    *(np.nan, _geometric_mean(held_out.loss)),
                )
            )
    return scores


def loss_errors(scores: Sequence[Score]) -> dict[str, float]:
    """Form -> root mean square of ln(predicted/measured) of the loss at the next budget."""
    squares: dict[str, list[float]] = {}
    for score in scores:
        if score.steps == 1:
            squares.setdefault(score.form, []).append(score.loss_error**2)
    return {form: float(np.sqrt(np.mean(values))) for form, values in squares.items()}


def _log_ratio(predicted: float, measured: float) -> float:
    with np.errstate(divide="ignore"):  # a form that has degenerated predicts zero, and is infinitely wrong
        return float(np.log(predicted) - np.log(measured))


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def measured_minimum(table: Table) -> Minimum:
    """N* and L* of the one budget in a table: what forecasts are scored against."""
    found = parabola_minima(near_minima(table))
    if found and found[0].interior:
        return found[0]
    lowest = table.loss.argmin()
    return Minimum(table.flops[lowest], np.nan, np.nan, float(table.loss[lowest]), False)
