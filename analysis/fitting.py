"""`analysis.fit`: a table of runs to one fitted law."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.backtest import Score
from analysis.choice import Choice, choose_form
from analysis.estimator import Estimator, Fit, fit_law
from analysis.law import Law
from analysis.laws import ChinchillaLaw, find_form
from analysis.selection import Selection, select
from analysis.table import Table, build_table, parse_columns, read_table
from scaling.errors import UserError

#: The form that stands for the choice by backtest.
AUTO = "auto"


def fit(
    table: Any,
    form: str | type[Law] = "chinchilla",
    *,
    columns: Mapping[str, str] | str | None = None,
    loss: str = "huber",
    delta: float = 1e-3,
    held: Mapping[str, float] | None = None,
    duplicates: str = "keep",
    outliers: str = "none",
    weights: str = "equal",
) -> Fit:
    """Fit a form to a table of runs.

    table: a pandas DataFrame, a mapping of equal-length columns, a Table, or the path of a CSV, TSV or Parquet file.
    form: a name in `FORMS` such as "gamma", its equation, or the class; or "auto": the surface that predicts budgets
    left out best (see `choose_form`, which also averages all forms). columns: this project's names -> the table's,
    also as the text params=COL,tokens=COL,loss=COL; None: they are the same.
    loss, delta, held: see `Estimator`. duplicates, outliers, weights: see `analysis.selection`.

    Returns a Fit: `.law`, `.objective`, diagnostics, and in `.settings` everything that was asked for. Raises UserError
    for a table or a setting that cannot be used.
    """
    estimator = first_estimator(form, loss, delta, held)
    chosen = choose_rows(
        load_table(table, columns, estimator.form),
        estimator,
        duplicates=duplicates,
        outliers=outliers,
        weights=weights,
    )
    if form == AUTO:
        estimator, _ = choose_estimator(chosen, estimator)
    return fit_selection(chosen, estimator)


def first_estimator(form: Any, loss: str, delta: float, held: Mapping[str, float] | None) -> Estimator:
    """The estimator asked for; with form "auto" that of the reference surface, until the backtest has chosen."""
    if form == AUTO and held:
        raise UserError(f"held {next(iter(held))}: form = auto may choose a form without it; name the form")
    found = ChinchillaLaw if form == AUTO else find_form(form)
    return Estimator(form=found, loss=loss, delta=delta, held=dict(held or {}))


def weighted_table(chosen: Selection) -> Table:
    """The chosen rows with their weights as the column that a backtest reads."""
    return replace(chosen.table, values={**chosen.table.values, "weight": chosen.weights})


def choose_estimator(
    chosen: Selection, estimator: Estimator, scores: Sequence[Score] | None = None
) -> tuple[Estimator, Choice | None]:
    """The estimator with the surface that the backtest favours, and the whole choice; None when there can be none."""
    choice = choose_form(weighted_table(chosen), estimator, scores)
    return (estimator, None) if choice is None else (replace(estimator, form=find_form(choice.surface)), choice)


def load_table(table: Any, columns: Mapping[str, str] | str | None, form: type[Law]) -> Table:
    """The table of any kind that `fit` takes, checked for what a form needs. Raises UserError for a bad one."""
    if isinstance(table, Table):
        return table
    if isinstance(columns, str):
        columns = parse_columns(columns, (*form.inputs, form.target))
    needs = {"inputs": form.inputs, "target": form.target, "min_rows": len(fields(form)) + 1}
    if isinstance(table, (str, Path)):
        return read_table(table, columns, **needs)
    return build_table(table, columns, **needs)


def choose_rows(table: Table, estimator: Estimator, **rules: str) -> Selection:
    """The rows and weights that the rules of `analysis.selection` give; "residual:Z" makes a first fit."""

    def residuals(rows: Table) -> np.ndarray:
        columns = [rows.column(name) for name in estimator.form.inputs]
        target = rows.column(estimator.form.target)
        return np.log(fit_law(columns, target, estimator).law.predict(*columns)) - np.log(target)

    return select(table, estimator.form, residuals, **rules)


def fit_selection(chosen: Selection, estimator: Estimator) -> Fit:
    """The fit of chosen rows, with every setting in it."""
    target = chosen.table.column(estimator.form.target)
    fitted = fit_law(chosen.inputs(estimator.form), target, estimator, chosen.weights)
    return replace(fitted, settings={**estimator.settings(), **chosen.settings}, rows=chosen)
