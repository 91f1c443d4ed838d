"""Bootstrap intervals: refit resampled runs, and read percentiles.

Which runs a resample holds, and how often, is a matter of the scheme:

"weights": every run gets a random weight, the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9). The default for
    Huber's loss, whose percentiles under "pairs" are a little wide: a fit that passes through some runs jumps when
    these are drawn twice or not at all. Too narrow for least squares.
"pairs": runs are drawn with replacement. The default for least squares.
"stratified": the same within each IsoFLOP budget, so that none is lost.
"clustered": whole clusters of runs are drawn, such as the checkpoints of one training run or the seeds of one cell; the
    only honest one when runs of a cluster share their error.

Wild bootstraps of residuals are not offered: with a Huber loss their nominal 90 % covers 73 to 82 %. How often each
scheme covers is in benchmarks/README.md. Model-form error is in none of them: see `analysis.choice`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.delta import covariance
from analysis.estimator import Fit, refit
from analysis.isoflop import Budget, group_budgets, log_tokens_at, parabolas, regress, vertices
from analysis.profile import profile
from analysis.quantity import Quantity
from analysis.table import Table
from scaling.errors import UserError

SCHEMES = {
    "pairs": "percentile, pairs bootstrap",
    "stratified": "percentile, pairs bootstrap stratified by budget",
    "weights": "percentile, Bayesian bootstrap of runs",
    "clustered": "percentile, bootstrap of clusters of runs",
}
METHODS = (*SCHEMES, "delta", "profile")
#: A percentile is reported only if the estimate exists in at least this share of the resamples.
_MIN_DEFINED = 0.5


@dataclass(frozen=True)
class Bootstrap:
    """Counts [R, n]: how often run i is in resample r (fractions, for random weights), and how they were drawn."""

    counts: np.ndarray
    method: str
    level: float

    def interval(self, samples: np.ndarray) -> tuple[float, float]:
        """Percentile interval of samples [R]; (nan, nan) when fewer than half of them are defined."""
        low, high = self.band(np.asarray(samples)[:, None])
        return float(low[0]), float(high[0])

    def band(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Percentile intervals of samples [R, m] -> low [m], high [m]. Infinite samples count, nan are left out."""
        defined = ~np.isnan(samples)
        enough = defined.mean(0) >= _MIN_DEFINED
        tail = (1 - self.level) / 2
        low, high = np.full(samples.shape[1], np.nan), np.full(samples.shape[1], np.nan)
        if enough.any():
            # The nearest order statistic: no arithmetic between samples, so an infinite one stays harmless.
            low[enough] = np.nanquantile(samples[:, enough], tail, axis=0, method="nearest")
            high[enough] = np.nanquantile(samples[:, enough], 1 - tail, axis=0, method="nearest")
        return low, high


def default_scheme(loss: str) -> str:
    """The bootstrap that covers best in simulation for a fit of this loss, of runs that are not clustered."""
    return "weights" if loss == "huber" else "pairs"


def clusters(table: Table) -> list[np.ndarray] | None:
    """Rows of each cluster that the column `group` of a table names; None without it, or if all share one."""
    if table.group is None or len(set(table.group)) < 2:
        return None
    owner = np.unique(table.group, return_inverse=True)[1]
    return [np.flatnonzero(owner == i) for i in range(owner.max() + 1)]


def choose_scheme(table: Table, loss: str, scheme: str | None = None) -> tuple[str, list[np.ndarray] | None]:
    """How to resample a table, and the groups of rows that this needs: budgets or clusters.

    scheme: one of SCHEMES, or None: whole clusters where the column `group` names them, else `default_scheme`.
    """
    together = clusters(table)
    if scheme is None:
        scheme = default_scheme(loss) if together is None else "clustered"
    if scheme == "stratified":
        return scheme, [rows for _, rows in group_budgets(table) or []] or None
    return scheme, together if scheme == "clustered" else None


def draw(
    num_rows: int,
    groups: Sequence[np.ndarray] | None,
    resamples: int,
    level: float,
    seed: int,
    scheme: str = "pairs",
) -> Bootstrap:
    """Counts for `resamples` bootstrap resamples of `num_rows` runs; the same seed draws the same.

    groups: indices of the rows of each budget or cluster; only "stratified" and "clustered" use them. Rows in no group
    are one stratum more, and a cluster each. Raises UserError for an unknown scheme, for one that has no groups, and
    for clusters fewer than two.
    """
    if scheme not in SCHEMES:
        raise UserError(f"scheme = {scheme!r}: no such bootstrap; known are {', '.join(SCHEMES)}")
    rng = np.random.default_rng(seed)
    if scheme == "weights":
        return Bootstrap(num_rows * rng.dirichlet(np.ones(num_rows), size=resamples), SCHEMES[scheme], level)
    if scheme == "pairs":
        return Bootstrap(_drawn(rng, num_rows, resamples), SCHEMES[scheme], level)
    if groups is None:
        remedy = "name the column of budgets" if scheme == "stratified" else "name the column of clusters, group=COL"
        raise UserError(f"scheme = {scheme!r}: the runs have no groups: {remedy}, or use 'pairs'")
    left = np.setdiff1d(np.arange(num_rows), np.concatenate(groups))
    counts = np.zeros((resamples, num_rows))
    if scheme == "stratified":
        for rows in (*groups, left):
            if len(rows):
                counts[:, rows] = _drawn(rng, len(rows), resamples)
    else:
        clusters = [*groups, *left[:, None]]
        if len(clusters) < 2:
            raise UserError(f"scheme = {scheme!r}: all runs are one cluster, which cannot be resampled: use 'pairs'")
        for rows, drawn in zip(clusters, _drawn(rng, len(clusters), resamples).T, strict=True):
            counts[:, rows] = drawn[:, None]
    return Bootstrap(counts, SCHEMES[scheme], level)


def _drawn(rng: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """How often each of `count` things is among as many draws with replacement, [R, count]."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def confidence_intervals(
    inputs: Sequence[Any],
    target: Any,
    fit: Fit,
    quantities: Sequence[Quantity],
    *,
    weights: Any = None,
    method: str | None = None,
    groups: Sequence[np.ndarray] | None = None,
    level: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> Mapping[str, tuple[float, float]]:
    """Name of each quantity -> its interval, by any of METHODS; None: `default_scheme` of the fit's loss.

    inputs, target, weights: the rows that `fit` is of, as for `fit_law`. groups, resamples, seed: as for `draw`, for a
    bootstrap. Raises UserError as `draw` does and for an unknown method, ValueError as `profile` and `covariance` do.
    """
    method = method or default_scheme(fit.estimator.loss)
    if method not in METHODS:
        raise UserError(f"method = {method!r}: no such interval; known are {', '.join(METHODS)}")
    if method == "delta":
        near = covariance(inputs, target, fit, weights)
        return {quantity.name: near.interval(quantity, level) for quantity in quantities}
    if method == "profile":
        profiles = [profile(inputs, target, fit, quantity, weights, level=level) for quantity in quantities]
        return {found.quantity.name: (found.low, found.high) for found in profiles}
    bootstrap = draw(len(np.asarray(target)), groups, resamples, level, seed, method)
    counts = bootstrap.counts if weights is None else bootstrap.counts * np.asarray(weights, np.float64)
    laws = refit(inputs, target, counts, fit)
    return {quantity.name: bootstrap.interval(quantity.of(laws)) for quantity in quantities}


@dataclass(frozen=True)
class IsoflopIntervals:
    """Intervals of Approach 2: the exponents, and N* of each budget."""

    a: tuple[float, float]
    b: tuple[float, float]
    params_opt: list[tuple[float, float]]


def isoflop_intervals(table: Table, budgets: list[Budget], bootstrap: Bootstrap) -> IsoflopIntervals:
    """Refit every parabola and the exponents in each resample.

    As in the estimate itself, a minimum counts only if it lies inside the sampled sizes, and a budget that is not
    interior in the data is not used for the exponents.
    """
    resamples = len(bootstrap.counts)
    log_params = np.full((resamples, len(budgets)), np.nan)
    log_tokens = np.full((resamples, len(budgets)), np.nan)
    for i, budget in enumerate(budgets):
        x = np.log(table.params[budget.rows])
        vertex = vertices(parabolas(x, table.loss[budget.rows], bootstrap.counts[:, budget.rows]))
        vertex[~((vertex > x.min()) & (vertex < x.max()))] = np.nan
        log_params[:, i] = vertex
        log_tokens[:, i] = log_tokens_at(table, budget.rows, vertex)
    interior = np.array([budget.interior for budget in budgets])
    log_flops = np.log([budget.flops for budget in budgets])
    exponents = regress(log_flops[interior], log_params[:, interior], log_tokens[:, interior])
    low, high = bootstrap.band(np.exp(log_params))
    return IsoflopIntervals(
        a=bootstrap.interval(exponents.a),
        b=bootstrap.interval(exponents.b),
        params_opt=list(zip(low.tolist(), high.tolist(), strict=True)),
    )
