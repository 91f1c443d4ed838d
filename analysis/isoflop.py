"""Approach 2 of Hoffmann et al. 2022 (section 3.2): the minimum of each IsoFLOP curve, and its growth with compute.

For each budget C, loss is a parabola in ln N; its vertex is N*(C), and D*(C) is the number of tokens
that runs of that size got. Straight lines through ln N* and ln D* against ln C give the exponents a and b.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.table import Table

#: Without a budget column, runs whose FLOPs lie within this factor of their neighbour's share a budget ...
_NEIGHBOUR = 1.12
#: ... provided that the groups stand apart: the narrowest gap is this many times the widest group (in ln FLOPs).
_APART = 2.0
#: A parabola has three coefficients.
MIN_SIZES = 3


@dataclass(frozen=True)
class Budget:
    """One IsoFLOP curve and its parabola, loss = c2 x^2 + c1 x + c0 with x = ln params.

    rows: indices of its runs in the table. params_opt, tokens_opt, loss_opt describe the vertex; nan
    when the curvature is not positive. `interior` is true when the vertex is a minimum inside the sampled
    sizes and the lowest measured loss is at neither end.
    """

    flops: float
    rows: np.ndarray
    coefficients: tuple[float, float, float]
    params_opt: float
    tokens_opt: float
    loss_opt: float
    params_range: tuple[float, float]
    lowest: float
    """Size of the run with the lowest loss."""
    interior: bool


@dataclass(frozen=True)
class Exponents:
    """N* = k_N C^a and D* = k_D C^b through the minima of the budgets; arrays [R] for resamples."""

    a: float
    b: float
    params_coefficient: float
    tokens_coefficient: float


def group_budgets(table: Table) -> list[tuple[float, np.ndarray]] | None:
    """(FLOPs, indices of rows) of each IsoFLOP budget, ascending; None when the runs fall into no budgets.

    Uses the column `flops_budget` when there is one, else runs whose FLOPs nearly agree.
    """
    if table.flops_budget is not None and not np.isnan(table.flops_budget).all():
        planned = np.unique(table.flops_budget[~np.isnan(table.flops_budget)])
        return [(float(flops), np.flatnonzero(table.flops_budget == flops)) for flops in planned]
    order = np.argsort(table.flops, kind="stable")
    log_flops = np.log(table.flops[order])
    gaps = np.diff(log_flops)
    cuts = np.flatnonzero(gaps > np.log(_NEIGHBOUR))
    groups = [np.sort(rows) for rows in np.split(order, cuts + 1)]
    widest = max(np.ptp(np.log(table.flops[rows])) for rows in groups)
    narrowest_gap = gaps[cuts].min(initial=np.inf)
    on_curves = sum(len(rows) for rows in groups if len(np.unique(table.params[rows])) >= MIN_SIZES)
    # Scattered runs also fall into accidental clumps; a design shows as clear gaps, and most runs lie on curves.
    if widest > np.log(_NEIGHBOUR) or narrowest_gap < _APART * widest or 2 * on_curves < len(table):
        return None
    return [(float(np.exp(np.log(table.flops[rows]).mean())), rows) for rows in groups]


def parabolas(x: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares parabolas: x [n], loss [n], weights [R, n] -> coefficients c2, c1, c0 [R, 3].

    nan where fewer than three distinct x carry weight.
    """
    centre, scale = x.mean(), max(np.ptp(x) / 2, np.finfo(float).tiny)
    z = (x - centre) / scale
    powers = z ** np.arange(5)[:, None]
    moments = weights @ powers.T
    gram = moments[:, np.add.outer(np.arange(3), np.arange(3))]
    rhs = (weights * loss) @ powers[:3].T
    distinct = np.unique(x, return_inverse=True)[1]
    carried = np.stack([weights[:, distinct == i].sum(1) > 0 for i in range(distinct.max() + 1)], 1).sum(1)
    usable = carried >= MIN_SIZES
    solution = np.full((len(weights), 3), np.nan)
    solution[usable] = np.linalg.solve(gram[usable], rhs[usable][..., None])[..., 0]
    d0, d1, d2 = solution.T
    c2 = d2 / scale**2
    c1 = d1 / scale - 2 * c2 * centre
    return np.stack([c2, c1, d0 - d1 * centre / scale + c2 * centre**2], 1)


def vertices(coefficients: np.ndarray) -> np.ndarray:
    """ln N at the minimum of each parabola [R, 3] -> [R]; nan where the curvature is not positive."""
    c2, c1, _ = coefficients.T
    rising = c2 > 0
    return np.where(rising, -c1 / (2 * np.where(rising, c2, 1.0)), np.nan)


def fit_budget(table: Table, flops: float, rows: np.ndarray) -> Budget | None:
    """The parabola of one budget; None with fewer than three distinct sizes."""
    x, loss = np.log(table.params[rows]), table.loss[rows]
    if len(np.unique(x)) < MIN_SIZES:
        return None
    coefficients = parabolas(x, loss, np.ones((1, len(rows))))
    vertex = float(vertices(coefficients)[0])
    lowest = x[np.argmin(loss)]
    c2, c1, c0 = (float(c) for c in coefficients[0])
    return Budget(
        flops=flops,
        rows=rows,
        coefficients=(c2, c1, c0),
        params_opt=float(np.exp(vertex)),
        tokens_opt=float(np.exp(log_tokens_at(table, rows, np.array([vertex]))[0])),
        loss_opt=c0 - c1**2 / (4 * c2) if c2 > 0 else float("nan"),
        params_range=(float(np.exp(x.min())), float(np.exp(x.max()))),
        lowest=float(np.exp(lowest)),
        interior=bool(x.min() < vertex < x.max() and x.min() < lowest < x.max()),
    )


def log_tokens_at(table: Table, rows: np.ndarray, log_params: np.ndarray) -> np.ndarray:
    """ln D that this budget buys at ln N: the line through its runs (slope -1 when FLOPs are 6ND exactly)."""
    x, y = np.log(table.params[rows]), np.log(table.tokens[rows])
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return y.mean() + slope * (log_params - x.mean())


def regress(
    log_flops: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray, weights: Sequence[float] | None = None
) -> Exponents:
    """Least-squares lines of ln N* and ln D* on ln C.

    log_flops [k]; log_params, log_tokens [k] or [R, k], nan where a budget has no minimum; weights [k], equal by
    default. Fewer than two minima give nan.
    """
    weight = np.ones(len(log_flops)) if weights is None else np.asarray(weights, np.float64)
    a, params_coefficient = _line(log_flops, log_params, weight)
    b, tokens_coefficient = _line(log_flops, log_tokens, weight)
    return Exponents(a, b, params_coefficient, tokens_coefficient)


def _line(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and exp(intercept) along the last axis, ignoring nan in y."""
    known = np.isfinite(y)
    weight = known * weight
    total = weight.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean_x = (weight * x).sum(-1) / total
        mean_y = (weight * np.where(known, y, 0)).sum(-1) / total
        dx = np.where(known, x - np.expand_dims(mean_x, -1), 0)
        spread = (weight * dx**2).sum(-1)
        slope = (weight * dx * np.where(known, y, 0)).sum(-1) / np.where(known.sum(-1) >= 2, spread, np.nan)
        return slope, np.exp(mean_y - slope * mean_x)
