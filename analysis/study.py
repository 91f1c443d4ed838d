"""A table of runs to a law with intervals and warnings: the whole analysis in one call."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.estimator import Estimator, fit_law, refit
from analysis.findings import (
    Finding,
    agreement_findings,
    budget_findings,
    fit_findings,
    range_findings,
    table_findings,
)
from analysis.isoflop import fit_budget, group_budgets, regress
from analysis.laws import Law
from analysis.table import Table, build_table, parse_columns, read_table
from analysis.uncertainty import Bootstrap, draw, isoflop_intervals
from scaling.errors import UserError

#: What the columns of this project's own tables mean.
OWN_CONVENTIONS = {
    "params": "all parameters, embeddings included",
    "flops": "6 x params x tokens",
    "loss": "validation, nats per token",
}
_OPTIMUM_POINTS = 25


def fit_table(path: str | Path, columns: Mapping[str, str] | str | None = None, **settings: Any) -> dict[str, Any]:
    """`analyse` for a CSV or Parquet file.

    `columns` maps this project's names to the file's, as a mapping or as the text of `--columns`; None means that
    they are the same. `settings` are those of `analyse`. Raises UserError for a bad mapping, file or value.
    """
    return analyse(read_table(path, parse_columns(columns) if isinstance(columns, str) else columns), **settings)


def analyse(
    table: Any,
    *,
    delta: float = 1e-3,
    resamples: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    extrapolation: float = 10.0,
) -> dict[str, Any]:
    """Fit the surface and Approach 2 to a table of runs; the result is the content of `law.json`.

    table: a Table, a DataFrame or a mapping of equal-length columns (see `analysis.table`).
    delta: of the Huber loss on log loss. resamples, level, seed: of the bootstrap intervals.
    extrapolation: optima are given from the smallest compute in the table to this factor beyond the largest.

    Returns plain JSON data; what is undefined is null, never NaN. Raises UserError for a table or a setting that
    cannot be used.
    """
    _check_settings(delta, resamples, level, seed, extrapolation)
    if not isinstance(table, Table):
        table = build_table(table)
    estimator = Estimator(delta=delta)
    groups = group_budgets(table)
    bootstrap = draw(len(table), None if groups is None else [rows for _, rows in groups], resamples, level, seed)

    inputs = (table.params, table.tokens)
    fit = fit_law(inputs, table.loss, estimator)
    laws = refit(inputs, table.loss, bootstrap.counts, fit)
    intervals = {name: bootstrap.interval(values) for name, values in laws.parameters().items()}
    intervals |= {"a": bootstrap.interval(laws.a), "b": bootstrap.interval(laws.b)}

    findings = table_findings(table) + fit_findings(fit, table) + range_findings(extrapolation)
    isoflop, isoflop_warnings = _isoflop(table, groups, bootstrap, intervals["a"])
    return plain(
        {
            "form": fit.law.form,
            "n_points": len(table),
            "objective": fit.objective,
            "r_squared_log_loss": fit.r_squared_log_loss,
            "parameters": fit.law.parameters(),
            "exponents": {"a": fit.law.a, "b": fit.law.b},
            "intervals": {"level": level, "method": bootstrap.method, "resamples": resamples, **intervals},
            "isoflop": isoflop,
            "optimum": _optimum(fit.law, laws, table, bootstrap, extrapolation),
            "conventions": _conventions(table),
            "warnings": [finding.to_dict() for finding in findings + isoflop_warnings],
            "excluded": [{"run_id": run["run_id"], "reason": run["reason"]} for run in table.excluded],
            "diagnostics": {
                "converged": fit.converged,
                "gradient_norm": fit.gradient_norm,
                "condition_number": fit.condition_number,
                "num_starts": fit.num_starts,
                "num_starts_at_best": fit.num_starts_at_best,
            },
            "settings": {
                "loss": "huber on log loss",
                "delta": delta,
                "starts": "variable projection over a grid of exponents",
                "num_starts": estimator.num_starts,
                "seed": seed,
                "extrapolation": extrapolation,
                "columns": table.columns,
                "source": table.source,
            },
        }
    )


def _check_settings(delta: float, resamples: int, level: float, seed: int, extrapolation: float) -> None:
    checks = (
        ("delta", delta, delta > 0, "must be above zero; 1e-3 is usual"),
        ("resamples", resamples, resamples >= 10, "must be at least 10; 1000 is usual"),
        ("level", level, 0 < level < 1, "must lie between 0 and 1; 0.9 is usual"),
        ("seed", seed, seed >= 0, "must be zero or above"),
        ("extrapolation", extrapolation, 1 <= extrapolation < math.inf, "must be 1 or above; 10 is usual"),
    )
    for name, value, good, remedy in checks:
        if not good:
            raise UserError(f"{name} = {value}: {remedy}")


def _isoflop(
    table: Table,
    groups: list[tuple[float, np.ndarray]] | None,
    bootstrap: Bootstrap,
    surface_a: tuple[float, float],
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The `isoflop` section of law.json (None without any parabola) and its findings."""
    if groups is None:
        return None, budget_findings(None, [])
    fitted = [fit_budget(table, flops, rows) for flops, rows in groups]
    budgets = [budget for budget in fitted if budget is not None]
    findings = budget_findings(budgets, [flops for (flops, _), budget in zip(groups, fitted) if budget is None])
    if not budgets:
        return None, findings
    used = [budget for budget in budgets if budget.interior]
    exponents = regress(*(np.log([getattr(b, name) for b in used]) for name in ("flops", "params_opt", "tokens_opt")))
    intervals = isoflop_intervals(table, budgets, bootstrap)
    section = {
        "budgets": [
            {
                "flops": budget.flops,
                "n_points": len(budget.rows),
                "params_opt": budget.params_opt,
                "tokens_opt": budget.tokens_opt,
                "loss_opt": budget.loss_opt,
                "params_interval": interval,
                "interior": budget.interior,
                "coefficients": budget.coefficients,
            }
            for budget, interval in zip(budgets, intervals.params_opt, strict=True)
        ],
        "exponents": {"a": exponents.a, "b": exponents.b},
        "coefficients": {"params": exponents.params_coefficient, "tokens": exponents.tokens_coefficient},
        "intervals": {"a": intervals.a, "b": intervals.b},
    }
    return section, findings + agreement_findings(surface_a, intervals.a)


def _optimum(law: Law, laws: Law, table: Table, bootstrap: Bootstrap, extrapolation: float) -> list[dict[str, Any]]:
    """N*(C), D*(C), L*(C) of the surface with their bands, over a geometric range of C = 6ND."""
    compute = 6.0 * table.params * table.tokens
    flops = np.geomspace(compute.min(), compute.max() * extrapolation, _OPTIMUM_POINTS)
    columns = {}
    # Each field of `laws` is [R]; against compute [m, 1] the samples come out [m, R].
    points, samples = law.optimum(flops), laws.optimum(flops[:, None])
    for name, value, drawn in zip(points._fields, points, samples, strict=True):
        columns[name] = (value, *bootstrap.band(drawn.T))
    return [
        {
            "flops": flops[i],
            "decades_beyond_data": max(0.0, math.log10(flops[i] / compute.max())),
            **{name: {"value": v[i], "low": low[i], "high": high[i]} for name, (v, low, high) in columns.items()},
        }
        for i in range(len(flops))
    ]


def _conventions(table: Table) -> dict[str, str]:
    """What params, flops and loss mean: known for our own columns, else only which column they are."""
    return {
        name: meaning if table.columns.get(name, name) == name else f"column {table.columns[name]!r} of {table.source}"
        for name, meaning in OWN_CONVENTIONS.items()
    }


def plain(value: Any) -> Any:
    """JSON data: numpy scalars and tuples become Python's, numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
