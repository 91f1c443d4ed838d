"""Intervals of what follows from a fit, such as N*(C) or wasted dollars, by any of the methods.

What the methods are and how often they hold the truth: `analysis.uncertainty` and benchmarks/README.md.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.estimator import Fit
from analysis.isoflop import group_budgets
from analysis.quantity import Quantity
from analysis.table import Table
from analysis.uncertainty import SCHEMES, clusters, confidence_intervals, default_scheme
from scaling.errors import UserError


@dataclass(frozen=True)
class Interval:
    """One quantity of a fitted law and its interval, in the unit that its name says."""

    quantity: str
    value: float
    low: float
    high: float
    level: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def intervals(
    fit: Fit,
    quantities: Sequence[Quantity],
    method: str | None = None,
    *,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """The interval of each quantity (`analysis.quantity`), from the rows that `analysis.fit` fitted.

    method: "weights" or "pairs" (bootstraps of runs), "stratified" (within IsoFLOP budgets), "clustered" (by the
    table's column `group`), "delta" or "profile"; None: clustered where the table has groups, else what covers best for
    the loss that was fitted. resamples, seed: of a bootstrap. Raises UserError for a method that is unknown or does not
    apply: to a table without budgets or groups, or to a quantity that is at its extreme or infinite.
    """
    if fit.rows is None:
        raise UserError("fit: was made from bare columns, without the table: use analysis.fit")
    if not 0 < level < 1:
        raise UserError(f"level = {level}: must lie between 0 and 1; 0.9 is usual")
    table, form = fit.rows.table, fit.estimator.form
    if method is None:
        method = default_scheme(fit.estimator.loss) if clusters(table) is None else "clustered"
    try:
        found = confidence_intervals(
            fit.rows.inputs(form),
            table.column(form.target),
            fit,
            quantities,
            weights=fit.rows.weights,
            method=method,
            groups=_groups(table, method),
            level=level,
            resamples=resamples,
            seed=seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    how = SCHEMES.get(method, method)
    return tuple(
        Interval(quantity.name, float(quantity.of(fit.law)), *found[quantity.name], level, how)
        for quantity in quantities
    )


def _groups(table: Table, method: str) -> list[np.ndarray] | None:
    """Rows of each budget or cluster, for the schemes that draw within or by them."""
    if method == "clustered":
        return clusters(table)
    budgets = group_budgets(table) if method == "stratified" else None
    return None if budgets is None else [rows for _, rows in budgets]
