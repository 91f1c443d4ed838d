"""The compute-optimal frontier N*(C), D*(C), L*(C) through minima: Approaches 1 and 2 of Hoffmann et al. 2022.

Approach 1 takes the minima from the envelope of training curves, Approach 2 from IsoFLOP curves (each by a parabola
or by an Akima spline). Both draw straight lines through ln N* and ln D* against ln C, and L* = E + k C^-gamma.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.akima import akima_minima
from analysis.compute_law import ComputeLaw
from analysis.estimator import Estimator, fit_law
from analysis.isoflop import MIN_SIZES, fit_budget, group_budgets, log_tokens_at, regress
from analysis.law import Allocation
from analysis.table import Table
from scaling.errors import UserError

#: Through two sizes that nearly agree a spline may plunge: what is this share below every run is no minimum.
_PLUNGE = 0.10


@dataclass(frozen=True)
class Minimum:
    """The best split of one compute budget. `interior`: not at the edge of the sizes that were tried."""

    flops: float
    params: float
    tokens: float
    loss: float
    interior: bool


@dataclass(frozen=True)
class FrontierLaw:
    """N*(C) = params_coefficient C^a, D*(C) = tokens_coefficient C^b, L*(C) = E + k C^-gamma."""

    params_coefficient: float
    a: float
    tokens_coefficient: float
    b: float
    E: float
    k: float
    gamma: float

    def optimum(self, flops: Any) -> Allocation:
        """The best split of `flops` and its loss; unlike a surface's, N* D* is what the minima make it."""
        flops = np.asarray(flops, np.float64)
        return Allocation(
            self.params_coefficient * flops**self.a,
            self.tokens_coefficient * flops**self.b,
            ComputeLaw(self.E, self.k, self.gamma).loss(flops),
        )

    def parameters(self) -> dict[str, float]:
        """The parameters by name."""
        return asdict(self)


def fit_frontier(minima: Sequence[Minimum], weights: Sequence[float] | None = None) -> FrontierLaw:
    """The frontier through minima, least squares in logarithms; weights are relative, such as 1/variance of ln N*.

    L*(C) needs four minima for its floor; with two or three E is 0. Raises UserError below two.
    """
    if len(minima) < 2:
        raise UserError(f"{len(minima)} usable minima: a frontier needs 2: train at more budgets, or wider sizes")
    flops, params, tokens, loss = (
        np.array([getattr(minimum, name) for minimum in minima]) for name in ("flops", "params", "tokens", "loss")
    )
    lines = regress(np.log(flops), np.log(params), np.log(tokens), weights)
    if len(minima) > 3:
        # The starts are a grid over its one exponent, so the best of them suffices: more moved no frontier.
        compute = fit_law((flops,), loss, Estimator(form=ComputeLaw, loss="log", num_starts=1), weights).law
    else:
        slope, intercept = np.polyfit(np.log(flops), np.log(loss), 1)
        compute = ComputeLaw(0.0, np.exp(intercept), -slope)
    return FrontierLaw(
        float(lines.params_coefficient),
        float(lines.a),
        float(lines.tokens_coefficient),
        float(lines.b),
        **{name: float(value) for name, value in compute.parameters().items()},
    )


def parabola_minima(table: Table) -> list[Minimum]:
    """Approach 2: the vertex of a parabola in ln N through each IsoFLOP budget that has one."""
    fitted = [fit_budget(table, flops, rows) for flops, rows in _budgets(table)]
    return [
        Minimum(budget.flops, budget.params_opt, budget.tokens_opt, budget.loss_opt, budget.interior)
        for budget in fitted
        if budget is not None and budget.coefficients[0] > 0
    ]


def spline_minima(table: Table) -> list[Minimum]:
    """Approach 2 as Porian et al. 2024 do it: the minimum of an Akima spline of ln loss in ln N at each budget.

    Runs of one size at one budget count as their mean. A budget is left out where the spline plunges 10 % below its
    lowest run.
    """
    minima = []
    for flops, rows in _budgets(table):
        x, group = np.unique(np.log(table.params[rows]), return_inverse=True)
        if len(x) < MIN_SIZES:
            continue
        y = np.bincount(group, np.log(table.loss[rows])) / np.bincount(group)
        position, value = (float(found[0]) for found in akima_minima(x, y[None]))
        if np.exp(value) <= (1 - _PLUNGE) * table.loss[rows].min():
            continue
        tokens = float(np.exp(log_tokens_at(table, rows, np.array([position]))[0]))
        interior = bool(x[0] < position < x[-1])
        minima.append(Minimum(flops, float(np.exp(position)), tokens, float(np.exp(value)), interior))
    return minima


def envelope_minima(
    run: Sequence[Any], params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, count: int = 200
) -> list[Minimum]:
    """Approach 1: the run with the lowest loss at each of `count` log-spaced computes, from training curves.

    run, params, tokens, loss: one row for each evaluation of a run, [n]; compute is 6ND. Between evaluations a curve
    is a straight line in logarithms; computes that fewer than two sizes cover are left out. The exponents depend on
    which curves are complete and on schedules, so this is the roughest of the approaches. Raises UserError when no
    compute is covered by two sizes.
    """
    params, tokens, loss = (np.asarray(column, np.float64) for column in (params, tokens, loss))
    log_c, log_l = np.log(6.0) + np.log(params) + np.log(tokens), np.log(loss)
    names, owner = np.unique(np.asarray(run), return_inverse=True)
    sizes = np.array([params[owner == i][0] for i in range(len(names))])
    grid = np.linspace(log_c.min(), log_c.max(), count)
    curves = np.full((len(names), count), np.inf)
    for i in range(len(names)):
        order = np.flatnonzero(owner == i)[np.argsort(log_c[owner == i])]
        inside = (grid >= log_c[order[0]]) & (grid <= log_c[order[-1]])
        curves[i, inside] = np.interp(grid[inside], log_c[order], log_l[order])
    minima = []
    for j in range(count):
        covered = np.isfinite(curves[:, j])
        if len(np.unique(sizes[covered])) < 2:
            continue
        best = sizes[curves[:, j].argmin()]
        interior = bool(sizes[covered].min() < best < sizes[covered].max())
        flops = float(np.exp(grid[j]))
        minima.append(Minimum(flops, float(best), flops / 6 / float(best), float(np.exp(curves[:, j].min())), interior))
    if not minima:
        raise UserError("training curves: no compute is covered by two sizes: give curves that overlap in 6ND")
    return minima


def _budgets(table: Table) -> list[tuple[float, np.ndarray]]:
    groups = group_budgets(table)
    if groups is None:
        raise UserError(
            f"{table.source}: the runs fall into no budgets of equal FLOPs: name the column of planned budgets, "
            "budget=COL, or use a surface"
        )
    return groups
