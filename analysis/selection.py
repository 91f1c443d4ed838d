"""Which rows of a table are fitted, and how much each counts: settings that are reported with every fit.

Five of 245 runs move a published N* by 60 %, so nothing here happens unasked.

duplicates: "keep" every row; "drop" rows that repeat another's inputs and target to the last digit; "mean" replaces
    rows of the same inputs (seeds) by their geometric mean, which counts once.
outliers: "none"; "highest:K" leaves out the K rows with the highest target (Besiroglu et al. 2024, arXiv 2404.10102,
    leave out 5); "lowest:F" keeps the share F of rows with the lowest; "residual:Z" leaves out rows whose residual of
    the log from a first fit exceeds Z robust standard deviations (1.4826 times the median absolute residual).
weights: "equal"; "flops" or "sqrt_flops", growing with compute; "column": the table's `weight`. Scaled to mean 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from analysis.law import Law
from analysis.table import Table
from scaling.errors import UserError

DUPLICATES = ("keep", "drop", "mean")
WEIGHTS = ("equal", "flops", "sqrt_flops", "column")
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Selection:
    """Rows to fit with weights [n] of mean 1, and what was done to get there (plain data, as in `law.json`)."""

    table: Table
    weights: np.ndarray
    settings: dict[str, Any]

    def inputs(self, form: type[Law]) -> list[np.ndarray]:
        """The columns [n] that a form reads."""
        return [self.table.column(name) for name in form.inputs]


def select(
    table: Table,
    form: type[Law],
    residuals: Callable[[Table], np.ndarray],
    *,
    duplicates: str = "keep",
    outliers: str = "none",
    weights: str = "equal",
) -> Selection:
    """Apply the three rules, in this order. `residuals` fits rows and returns their residuals of the log, [n].

    Raises UserError for an unknown rule, or one that leaves too few rows for the form.
    """
    rule, number = _outlier_rule(outliers)
    if duplicates not in DUPLICATES:
        raise UserError(f"duplicates = {duplicates!r}: must be one of {', '.join(DUPLICATES)}")
    if weights not in WEIGHTS:
        raise UserError(f"weights = {weights!r}: must be one of {', '.join(WEIGHTS)}")
    distinct = merge_duplicates(table, (*form.inputs, form.target), duplicates)
    kept = distinct
    if rule != "none":
        kept = distinct.take(_kept(distinct, form, rule, number, residuals))
    needed = len(fields(form)) + 1
    if len(kept) < needed:
        raise UserError(
            f"{table.source}: {len(kept)} rows are left by duplicates = {duplicates}, outliers = {outliers}; "
            f"{form.form} needs at least {needed}: leave out fewer"
        )
    dropped = sorted(set(distinct.run_id) - set(kept.run_id))
    settings = {
        "duplicates": duplicates,
        "n_duplicates": len(table) - len(distinct),
        "outliers": outliers,
        "outlier_run_ids": dropped,
        "weights": weights,
    }
    return Selection(kept, _weights(kept, weights), settings)


def merge_duplicates(table: Table, names: tuple[str, ...], rule: str) -> Table:
    """The table without repeats, by the rule; `names` are the inputs and, last, the target."""
    if rule == "keep":
        return table
    same = np.stack([table.column(name) for name in (names if rule == "drop" else names[:-1])], 1)
    _, first, group = np.unique(same, axis=0, return_index=True, return_inverse=True)
    merged = table.take(np.sort(first))
    if rule == "drop":
        return merged
    means = np.exp(np.bincount(group.ravel(), np.log(table.column(names[-1]))) / np.bincount(group.ravel()))
    return replace(merged, values={**merged.values, names[-1]: means[np.argsort(first)]})


def _outlier_rule(text: str) -> tuple[str, float]:
    """Kind and number of an outlier rule."""
    rule, _, value = text.partition(":")
    try:
        number = float(value or "nan")
    except ValueError:
        number = float("nan")
    good = {
        "none": not value,
        "highest": number >= 0 and number % 1 == 0,
        "lowest": 0 < number <= 1,
        "residual": number > 0,
    }
    if not good.get(rule, False):
        raise UserError(f"outliers = {text!r}: must be none, highest:K (a count), lowest:F (a share) or residual:Z")
    return rule, number


def _kept(
    table: Table, form: type[Law], rule: str, number: float, residuals: Callable[[Table], np.ndarray]
) -> np.ndarray:
    """Indices of the rows that an outlier rule keeps, ascending."""
    order = np.argsort(table.column(form.target), kind="stable")
    if rule == "highest":
        return np.sort(order[: max(0, len(order) - int(number))])
    if rule == "lowest":
        return np.sort(order[: int(np.ceil(number * len(order)))])
    size = np.abs(residuals(table))
    return np.flatnonzero(size <= number * _MAD_TO_SIGMA * np.median(size))


def _weights(table: Table, rule: str) -> np.ndarray:
    if rule == "equal":
        return np.ones(len(table))
    weight = table.column("weight" if rule == "column" else "flops")
    weight = np.sqrt(weight) if rule == "sqrt_flops" else weight
    return weight / weight.mean()
