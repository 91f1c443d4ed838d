"""A table of runs to a law with intervals and warnings: the whole analysis in one call."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.backtest import Score, backtest, loss_errors
from analysis.choice import DEPTH, average_scores, size_resolution
from analysis.convention_findings import convention_findings, loss_findings
from analysis.estimator import refit
from analysis.findings import Finding
from analysis.fit_findings import (
    backtest_findings,
    forecast_findings,
    form_findings,
    optimum_findings,
    range_findings,
)
from analysis.fitting import (
    AUTO,
    choose_estimator,
    choose_rows,
    first_estimator,
    fit_selection,
    load_table,
    weighted_table,
)
from analysis.forecasts import budgets_of
from analysis.held_out import held_out_runs
from analysis.identifiability import identifiability_findings
from analysis.isoflop import fit_budget, group_budgets, regress
from analysis.isoflop_findings import agreement_findings, budget_findings
from analysis.laws import Law, Surface
from analysis.predictions import add_averages, optimum_rows, predict_average, predict_surface
from analysis.table import Table
from analysis.table_findings import table_findings
from analysis.uncertainty import Bootstrap, choose_scheme, draw, isoflop_intervals
from scaling.errors import UserError

#: What the columns of this project's own tables mean.
OWN_CONVENTIONS = {
    "params": "all parameters, embeddings included",
    "flops": "6 x params x tokens",
    "loss": "validation, nats per token",
}
_OPTIMUM_POINTS = 25


def fit_table(path: str | Path, columns: Mapping[str, str] | str | None = None, **settings: Any) -> dict[str, Any]:
    """`analyse` for a CSV, TSV or Parquet file; errors as there."""
    return analyse(path, columns=columns, **settings)


def analyse(
    table: Any,
    *,
    columns: Mapping[str, str] | str | None = None,
    form: str | type[Law] = "chinchilla",
    loss: str = "huber",
    delta: float = 1e-3,
    held: Mapping[str, float] | None = None,
    duplicates: str = "keep",
    outliers: str = "none",
    weights: str = "equal",
    scheme: str | None = None,
    resamples: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    extrapolation: float = 10.0,
    at_flops: Sequence[float] = (),
) -> dict[str, Any]:
    """Fit a form, and beside a surface Approach 2, to a table of runs; the result is the content of `law.json`.

    table, columns, form, loss, delta, held, duplicates, outliers, weights: as for `analysis.fit`.
    scheme: how runs are resampled, one of `analysis.uncertainty.SCHEMES`; None chooses (see `choose_scheme`).
    resamples, level, seed: of the bootstrap intervals.
    extrapolation: optima are given from the smallest compute in the table to this factor beyond the largest.
    at_flops: compute at which to predict the optimum as well, for a surface; counted as the column `flops` does (6ND
        without one).

    Returns plain JSON data; what is undefined is null, never NaN. Raises UserError for a table or a setting that
    cannot be used.
    """
    _check_settings(resamples, level, seed, extrapolation, at_flops)
    estimator = first_estimator(form, loss, delta, held)
    if len(at_flops) and not issubclass(estimator.form, Surface):
        raise UserError(f"at_flops = {at_flops[0]:g}: {estimator.form.name} has no optimum in N and D; use a surface")
    table = load_table(table, columns, estimator.form)
    chosen = choose_rows(table, estimator, duplicates=duplicates, outliers=outliers, weights=weights)
    runs = chosen.table
    scores = backtest(weighted_table(chosen), estimator, DEPTH + 1) if issubclass(estimator.form, Surface) else []
    choice = None
    if form == AUTO:
        estimator, choice = choose_estimator(chosen, estimator, scores)
    fit = fit_selection(chosen, estimator)
    groups = group_budgets(runs) if issubclass(estimator.form, Surface) else None
    scheme, together = choose_scheme(runs, estimator.loss, scheme)
    bootstrap = draw(len(runs), together, resamples, level, seed, scheme)
    inputs, target = chosen.inputs(estimator.form), runs.column(estimator.form.target)
    laws = refit(inputs, target, bootstrap.counts * chosen.weights, fit)
    intervals = {name: bootstrap.interval(values) for name, values in laws.parameters().items()}
    findings = table_findings(table, estimator.form) + convention_findings(table) + loss_findings(fit, runs)
    findings += form_findings(fit, inputs) + identifiability_findings(fit, inputs, target, chosen.weights)
    about: dict[str, Any] = {"exponents": {}, "isoflop": None, "optimum": [], "predictions": []}
    if isinstance(fit.law, Surface):
        intervals |= {"a": bootstrap.interval(laws.a), "b": bootstrap.interval(laws.b)}
        # Parabolas are least squares, whatever the surface is fitted by, and random weights too narrow for these.
        pairs = draw(len(runs), together, resamples, level, seed, "pairs" if scheme == "weights" else scheme)
        isoflop, isoflop_warnings = _isoflop(runs, groups, pairs, intervals["a"])
        findings += optimum_findings(fit, runs) + range_findings(extrapolation)
        findings += isoflop_warnings
        if choice is None:
            findings += backtest_findings(estimator.form.name, loss_errors(scores))
        findings += forecast_findings(at_flops, float(runs.flops.min()), float(runs.flops.max()))
        compute = 6.0 * runs.params * runs.tokens
        covered = np.geomspace(compute.min(), compute.max() * extrapolation, _OPTIMUM_POINTS)
        about = {
            "exponents": {"a": fit.law.a, "b": fit.law.b},
            "isoflop": isoflop,
            "optimum": optimum_rows(fit.law, laws, covered, compute.max(), bootstrap),
        }
        if choice is not None and choice.forecasts:
            add_averages(about["optimum"], choice, runs, level)
            about["predictions"] = predict_average(choice, at_flops, runs, level)
        else:
            about["predictions"] = predict_surface(fit.law, laws, at_flops, runs, scores, bootstrap)
    return plain(
        {
            "form": fit.law.form,
            "method": estimator.method,
            "n_points": len(runs),
            "objective": fit.objective,
            "r_squared_log_loss": fit.r_squared_log_loss,
            "parameters": fit.law.parameters(),
            "exponents": about["exponents"],
            "intervals": {"level": level, "method": bootstrap.method, "resamples": resamples, **intervals},
            "isoflop": about["isoflop"],
            "optimum": about["optimum"],
            "predictions": about["predictions"],
            "forms": _forms(runs, scores, level),
            "choice": None if choice is None else choice.to_dict(),
            "held_out": held_out_runs(table, fit.law, laws, bootstrap.interval),
            "conventions": _conventions(table),
            "warnings": [finding.to_dict() for finding in findings],
            "excluded": [{"run_id": run["run_id"], "reason": run["reason"]} for run in table.excluded],
            "diagnostics": {
                "converged": fit.converged,
                "gradient_norm": fit.gradient_norm,
                "condition_number": fit.condition_number,
                "num_starts": fit.num_starts,
                "num_starts_at_best": fit.num_starts_at_best,
            },
            "settings": {
                **fit.settings,
                "starts": "variable projection over a grid of exponents",
                "scheme": scheme,
                "seed": seed,
                "extrapolation": extrapolation,
                "columns": table.columns,
                "source": table.source,
            },
        }
    )


def _check_settings(resamples: int, level: float, seed: int, extrapolation: float, at_flops: Sequence[float]) -> None:
    checks = (
        ("resamples", resamples, resamples >= 10, "must be at least 10; 1000 is usual"),
        ("level", level, 0 < level < 1, "must lie between 0 and 1; 0.9 is usual"),
        ("seed", seed, seed >= 0, "must be zero or above"),
        ("extrapolation", extrapolation, 1 <= extrapolation < math.inf, "must be 1 or above; 10 is usual"),
        *(("at_flops", flops, 0 < flops < math.inf, "must be above zero; 1e21, say") for flops in at_flops),
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
        "intervals": {"method": bootstrap.method, "a": intervals.a, "b": intervals.b},
    }
    return section, findings + agreement_findings(surface_a, intervals.a)


def _forms(runs: Table, scores: Sequence[Score], level: float) -> list[dict[str, Any]]:
    """The backtest table: every form, and with IsoFLOP budgets their average, at every budget left out."""
    averages = average_scores(scores, size_resolution(runs), level) if scores and budgets_of(runs) else []
    return [score.to_dict() for score in (*scores, *(score for score, _ in averages))]


def _conventions(table: Table) -> dict[str, str]:
    """What params, flops and loss mean: known for our own columns, else only which column they are."""
    return {
        name: meaning if table.columns.get(name, name) == name else f"column {table.columns[name]!r} of {table.source}"
        for name, meaning in OWN_CONVENTIONS.items()
        if name in table.values
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
