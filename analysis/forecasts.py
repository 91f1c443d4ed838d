"""Every way of predicting N*(C) and L*(C) of a budget that nobody has trained yet, from the runs there are.

Surfaces are fitted to all runs as they stand. Beyond the data these err by percents (the reference surface predicts
losses 2 to 3 % too high), so there are more that keep to what was measured last and near the minima: Approach 2 through
all budgets or the last four, and the gamma form through the runs near the minima, shifted to meet the last of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from analysis.estimator import Estimator, fit_law
from analysis.frontier import Minimum, fit_frontier, parabola_minima, spline_minima
from analysis.isoflop import MIN_SIZES, group_budgets
from analysis.law import Allocation
from analysis.laws import FORMS, Surface
from analysis.surfaces import GammaLaw
from analysis.table import Table
from scaling.errors import UserError

#: Runs within this share of their budget's lowest loss are near its minimum: a parabola fits there, and not far beyond.
NEAR = 0.10
#: Fewer sizes do not outvote the noise of a parabola; then the nearest this many are taken.
_SIZES_NEAR, _SIZES_TAKEN = 4, 5
#: The budgets that "approach2_recent" goes through: as many as E + k C^-gamma and one more.
_RECENT = 4


class Forecast(Protocol):
    """What predicts the best split of a compute budget."""

    def optimum(self, flops: Any) -> Allocation:
        """N*, D*, L* at `flops`, as the table counts them."""
        ...


@dataclass(frozen=True)
class FittedSurface:
    """A surface in the table's own FLOPs, and shifted to meet a measured minimum.

    flops_ratio: 6ND per FLOP of the table. params_factor, loss_factor: measured over fitted, where it meets.
    """

    law: Surface
    flops_ratio: float
    params_factor: float = 1.0
    loss_factor: float = 1.0

    def optimum(self, flops: Any) -> Allocation:
        best = self.law.optimum(np.asarray(flops, np.float64) * self.flops_ratio)
        return Allocation(
            best.params * self.params_factor, best.tokens / self.params_factor, best.loss * self.loss_factor
        )


def near_minima(table: Table) -> Table:
    """The runs within 10 % of their budget's lowest loss, or of the five sizes around it where these are more."""
    keep = [_near(table, rows) for _, rows in budgets_of(table)]
    return table.take(np.sort(np.concatenate(keep)))


def _near(table: Table, rows: np.ndarray) -> np.ndarray:
    size, loss = np.log(table.params[rows]), table.loss[rows]
    sizes, best = np.unique(size), size[loss.argmin()]
    # With the sizes on either side of the lowest, whatever their loss: a minimum must be seen from both.
    at = int(np.searchsorted(sizes, best))
    low, high = sizes[max(at - 1, 0)], sizes[min(at + 1, len(sizes) - 1)]
    near = (loss <= (1 + NEAR) * loss.min()) | ((size >= low) & (size <= high))
    if len(np.unique(size[near])) < _SIZES_NEAR:
        near |= np.abs(size - best) <= np.sort(np.abs(sizes - best))[:_SIZES_TAKEN][-1]
    return rows[near]


def budgets_of(table: Table) -> list[tuple[float, np.ndarray]]:
    """(FLOPs, rows) of the IsoFLOP budgets with three sizes or more, ascending; [] without any."""
    groups = group_budgets(table) or []
    return [(flops, rows) for flops, rows in groups if len(np.unique(table.params[rows])) >= MIN_SIZES]


def with_budgets(table: Table, groups: list[tuple[float, np.ndarray]]) -> Table:
    """The runs of these budgets, each named in the column `flops_budget`, so that any part falls into the same."""
    column = np.full(len(table), np.nan)
    for flops, rows in groups:
        column[rows] = flops
    return replace(table, values={**table.values, "flops_budget": column}).take(~np.isnan(column))


def flops_ratio(table: Table) -> float:
    """6ND per FLOP as the table counts them, of the runs with the most compute: nearest to what comes next."""
    last = table.flops >= 0.5 * table.flops.max()
    return float(np.median(6.0 * table.params[last] * table.tokens[last] / table.flops[last]))


def _fitted(form: type[Surface], table: Table, estimator: Estimator) -> FittedSurface:
    weights = table.values.get("weight")
    if weights is not None:
        weights = weights / weights.mean()
    law = fit_law((table.params, table.tokens), table.loss, replace(estimator, form=form), weights).law
    return FittedSurface(law, flops_ratio(table))


def _gamma_near(table: Table, estimator: Estimator) -> Forecast:
    near = near_minima(table)
    fitted = _fitted(GammaLaw, near, estimator)
    last = _interior(parabola_minima(near))[-1]
    best = fitted.optimum(last.flops)
    if not 0 < best.params < np.inf:
        raise UserError("gamma_near: the surface near the minima has no optimum of its own: use approach2")
    return replace(fitted, params_factor=float(last.params / best.params), loss_factor=float(last.loss / best.loss))


def _approach2(table: Table, estimator: Estimator) -> Forecast:
    return fit_frontier(_interior(parabola_minima(near_minima(table))))


def _approach2_recent(table: Table, estimator: Estimator) -> Forecast:
    minima = _interior(parabola_minima(near_minima(table)))
    if len(minima) <= _RECENT:
        raise UserError(f"approach2_recent: {len(minima)} minima are no more than it would keep: use approach2")
    return fit_frontier(minima[-_RECENT:])


def _approach2_akima(table: Table, estimator: Estimator) -> Forecast:
    return fit_frontier(_interior(spline_minima(near_minima(table))))


def _interior(minima: list[Minimum]) -> list[Minimum]:
    kept = [minimum for minimum in minima if minimum.interior]
    if len(kept) < 2:
        raise UserError(f"{len(kept)} budgets have a minimum inside their sizes: Approach 2 needs 2: train wider sizes")
    return kept


def surface_recipes() -> dict[str, Callable[[Table, Estimator], FittedSurface]]:
    """Name -> what fits the surface to a table, of every surface in FORMS as it is now."""
    return {name: partial(_fitted, form) for name, form in FORMS.items() if issubclass(form, Surface)}


def all_recipes() -> dict[str, Callable[[Table, Estimator], Forecast]]:
    """The same with those that need IsoFLOP budgets; each raises UserError where it does not apply."""
    others = {"approach2": _approach2, "approach2_recent": _approach2_recent, "approach2_akima": _approach2_akima}
    return {**surface_recipes(), "gamma_near": _gamma_near, **others}


def make_forecasts(
    table: Table, estimator: Estimator, recipes: Mapping[str, Callable[[Table, Estimator], Any]]
) -> dict[str, Any]:
    """Every forecast of `recipes` (all, or those of surfaces without budgets) that these runs allow."""
    made = {}
    for name, make in recipes.items():
        try:
            made[name] = make(table, estimator)
        except UserError:  # too few runs or minima for this one; the table of scores then lacks it
            continue
    return made
