"""Findings: what a reader must know before believing a fit. Typed, with numbers and a remedy.

A finding never stops an analysis (a bad table does, as a UserError). It goes to the terminal, into `law.json`
under `warnings`, and into the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from analysis.estimator import Fit
from analysis.isoflop import Budget
from analysis.table import Table


class Code(StrEnum):
    """Every kind of finding."""

    AT_EDGE = "AT_EDGE"
    NON_POSITIVE_CURVATURE = "NON_POSITIVE_CURVATURE"
    TOO_FEW_BUDGETS = "TOO_FEW_BUDGETS"
    TOO_FEW_POINTS = "TOO_FEW_POINTS"
    NO_BUDGETS = "NO_BUDGETS"
    AT_BOUND = "AT_BOUND"
    NOT_CONVERGED = "NOT_CONVERGED"
    LOW_R_SQUARED = "LOW_R_SQUARED"
    EXTRAPOLATION = "EXTRAPOLATION"
    APPROACHES_DISAGREE = "APPROACHES_DISAGREE"
    FORM_FAILS_BACKTEST = "FORM_FAILS_BACKTEST"
    DUPLICATE_POINTS = "DUPLICATE_POINTS"
    FLOPS_NOT_6ND = "FLOPS_NOT_6ND"
    DIVERGED_RUNS_EXCLUDED = "DIVERGED_RUNS_EXCLUDED"
    UNFINISHED_RUNS_EXCLUDED = "UNFINISHED_RUNS_EXCLUDED"


@dataclass(frozen=True)
class Finding:
    """One finding: a code for programs, a sentence with the remedy for people, the numbers for both."""

    code: Code
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """{"code", "message", ...numbers}, as in `law.json`."""
        return {"code": str(self.code), "message": self.message, **self.numbers}


#: Three runs per parameter of the surface.
_FEW_POINTS = 15
#: A line through fewer minima leaves next to nothing to judge it by.
_FEW_BUDGETS = 4
#: A parabola through fewer sizes leaves next to nothing to judge it by.
_FEW_SIZES = 5
_GOOD_R_SQUARED = 0.98
#: Relative difference of a FLOPs column from 6ND that rounding explains.
_FLOPS_ROUNDING = 0.02
#: A form is the wrong one when its loss at the next budget is off by more than this, and by twice another form's error.
_BACKTEST_ERROR, _BACKTEST_RATIO = 0.01, 2.0
#: An optimum this little outside the sampled sizes is as good as inside.
_NEAR_DECADES = 0.1


def table_findings(table: Table) -> list[Finding]:
    """What the runs themselves show: exclusions, duplicates, conventions, too few of them."""
    found = []
    diverged = [run for run in table.excluded if run["status"] == "diverged"]
    others = [run for run in table.excluded if run["status"] != "diverged"]
    if diverged:
        found.append(
            Finding(
                Code.DIVERGED_RUNS_EXCLUDED,
                f"{len(diverged)} diverged run(s) are left out of the fit, first {diverged[0]['run_id']}: lower the "
                "learning rate or lengthen the warm-up of these cells and train them again",
                {"n_runs": len(diverged), "run_ids": [run["run_id"] for run in diverged]},
            )
        )
    if others:
        found.append(
            Finding(
                Code.UNFINISHED_RUNS_EXCLUDED,
                f"{len(others)} run(s) that did not finish are left out of the fit, first {others[0]['run_id']} "
                f"({others[0]['reason']}): finish them and fit again",
                {"n_runs": len(others), "run_ids": [run["run_id"] for run in others]},
            )
        )
    if len(table) < _FEW_POINTS:
        found.append(
            Finding(
                Code.TOO_FEW_POINTS,
                f"{len(table)} runs for a surface with five parameters: intervals are wide and may be too "
                f"narrow still; use at least {_FEW_POINTS}",
                {"n_points": len(table), "recommended": _FEW_POINTS},
            )
        )
    distinct = len(np.unique(np.stack([table.params, table.tokens, table.loss], 1), axis=0))
    if distinct < len(table):
        found.append(
            Finding(
                Code.DUPLICATE_POINTS,
                f"{len(table) - distinct} run(s) repeat the params, tokens and loss of another to the last digit and "
                "each counts as a run of its own: if one run is listed twice, remove the copy",
                {"n_duplicates": len(table) - distinct},
            )
        )
    ratio = table.flops / (6.0 * table.params * table.tokens)
    if np.abs(np.log(ratio)).max() > _FLOPS_ROUNDING:
        found.append(
            Finding(
                Code.FLOPS_NOT_6ND,
                f"the column {table.columns['flops']!r} is {ratio.min():.3g} to {ratio.max():.3g} times "
                "6 x params x tokens: budgets follow the column, the surface's optimum is at C = 6ND; "
                "compare the two with that in mind, or give params and flops of one convention",
                {"ratio_min": float(ratio.min()), "ratio_max": float(ratio.max())},
            )
        )
    return found


def budget_findings(budgets: list[Budget] | None, skipped: list[float]) -> list[Finding]:
    """What the IsoFLOP curves show. `skipped`: FLOPs of the budgets with fewer than three sizes; None: no budgets."""
    if budgets is None:
        return [
            Finding(
                Code.NO_BUDGETS,
                "the runs do not fall into budgets of equal FLOPs, so Approach 2 is left out: to have it, name the "
                "column of planned budgets (budget=COL) or train at least 3 sizes at the same FLOPs",
            )
        ]
    found = [finding for budget in budgets if (finding := _minimum_finding(budget)) is not None]
    thin = [budget.flops for budget in budgets if len(budget.rows) < _FEW_SIZES]
    if thin or skipped:
        shown = ", ".join(f"{flops:.2e}" for flops in sorted(thin + skipped))
        found.append(
            Finding(
                Code.TOO_FEW_POINTS,
                f"fewer than {_FEW_SIZES} runs at {shown} FLOPs: a parabola through them has little or nothing to be "
                f"judged by ({len(skipped)} with fewer than 3 sizes left out); train more sizes there",
                {"budgets": sorted(thin + skipped), "budgets_left_out": skipped, "recommended": _FEW_SIZES},
            )
        )
    interior = sum(budget.interior for budget in budgets)
    if interior < _FEW_BUDGETS:
        without = "there are no exponents of Approach 2" if interior < 2 else "its exponents have little behind them"
        found.append(
            Finding(
                Code.TOO_FEW_BUDGETS,
                f"Approach 2 has {interior} budget(s) with a minimum inside the sampled sizes, so {without}: "
                f"use at least {_FEW_BUDGETS}, over 1.5 decades or more",
                {"n_budgets": interior, "recommended": _FEW_BUDGETS},
            )
        )
    return found


def _minimum_finding(budget: Budget) -> Finding | None:
    """Why the minimum of this budget cannot be trusted; None when it can."""
    if budget.interior:
        return None
    low, high = budget.params_range
    if budget.coefficients[0] <= 0:
        return Finding(
            Code.NON_POSITIVE_CURVATURE,
            f"budget {budget.flops:.2e} FLOPs: loss against ln params curves down, so it has no minimum and is left "
            f"out of the exponents: widen the sizes beyond {low:.3g} to {high:.3g}, or repeat the noisy runs",
            {"flops": budget.flops, "curvature": budget.coefficients[0]},
        )
    small_end = budget.params_opt <= low if not low < budget.params_opt < high else budget.lowest <= low
    end, remedy = ("smallest", f"below {low:.3g}") if small_end else ("largest", f"above {high:.3g}")
    return Finding(
        Code.AT_EDGE,
        f"budget {budget.flops:.2e} FLOPs: the minimum lies at the {end} size or beyond it (parabola: "
        f"{budget.params_opt:.3g} params, sampled {low:.3g} to {high:.3g}), so it is left out of the exponents: "
        f"add sizes {remedy}",
        {"flops": budget.flops, "params_opt": budget.params_opt, "params_min": low, "params_max": high, "edge": end},
    )


def form_findings(fit: Fit, inputs: Sequence[np.ndarray]) -> list[Finding]:
    """What a fit of any form shows about itself; `inputs` [n] each, in the form's order."""
    found = []
    bound = fit.law.at_bound(*inputs)
    if bound:
        values = {name: float(getattr(fit.law, name)) for name in bound}
        shown = ", ".join(f"{name} = {value:.3g}" for name, value in values.items())
        found.append(
            Finding(
                Code.AT_BOUND,
                f"{shown}: these data drive the form to its limit, so its extrapolation and exponents mean little: "
                "widen the range of params and tokens, or rely on Approach 2",
                {"at_bound": values},
            )
        )
    if not fit.converged:
        found.append(
            Finding(
                Code.NOT_CONVERGED,
                f"the optimiser stopped at its iteration limit (gradient {fit.gradient_norm:.1e}): the parameters are "
                "poorly determined; add runs, or raise delta",
                {"gradient_norm": fit.gradient_norm},
            )
        )
    if not fit.r_squared_log_loss >= _GOOD_R_SQUARED:
        found.append(
            Finding(
                Code.LOW_R_SQUARED,
                f"the law explains {fit.r_squared_log_loss:.4f} of the variance of log {fit.law.target}, below "
                f"{_GOOD_R_SQUARED}: look at the residuals for badly tuned or noisy runs before using the law",
                {"r_squared_log_loss": fit.r_squared_log_loss, "recommended": _GOOD_R_SQUARED},
            )
        )
    return found


def fit_findings(fit: Fit, table: Table) -> list[Finding]:
    """Where the best split of a surface lies against the runs."""
    found = []
    bound = fit.law.at_bound(table.params, table.tokens)
    largest = float((6.0 * table.params * table.tokens).max())
    best = fit.law.optimum(largest)
    for name, value, column in (("params", best.params, table.params), ("tokens", best.tokens, table.tokens)):
        with np.errstate(divide="ignore"):
            log_value, log_column = np.log10(value), np.log10(column)
        decades = max(log_column.min() - log_value, log_value - log_column.max())
        # A form that has degenerated puts its optimum anywhere, and AT_BOUND says so already.
        if not bound and decades > _NEAR_DECADES:
            found.append(
                Finding(
                    Code.EXTRAPOLATION,
                    f"at the largest compute measured ({largest:.2e} FLOPs) the surface's best {name} = {value:.3g} is "
                    f"{decades:.1f} decades outside the runs ({column.min():.3g} to {column.max():.3g}): "
                    f"train runs there before relying on it",
                    {"quantity": name, "value": float(value), "flops": largest, "decades": float(decades)},
                )
            )
    return found


def range_findings(extrapolation: float) -> list[Finding]:
    """What the requested range of compute shows: more than ten times the data is a long way."""
    decades = float(np.log10(extrapolation))
    if decades <= 1:
        return []
    return [
        Finding(
            Code.EXTRAPOLATION,
            f"optima are given up to {decades:.1f} decades of compute beyond the data; intervals hold only if the form "
            "does: train one run at a larger budget and compare",
            {"quantity": "flops", "decades": decades},
        )
    ]


def forecast_findings(at_flops: Sequence[float], largest: float) -> list[Finding]:
    """Predictions asked for more than a decade beyond the most compute measured, `largest`."""
    found = []
    for flops in at_flops:
        decades = float(np.log10(flops / largest))
        if decades > 1:
            found.append(
                Finding(
                    Code.EXTRAPOLATION,
                    f"{flops:.3g} FLOPs are {decades:.1f} decades beyond the data; the prediction holds only if the "
                    f"form does: train an IsoFLOP at {np.sqrt(flops * largest):.1e} FLOPs or more and fit again",
                    {"quantity": "flops", "value": float(flops), "decades": decades},
                )
            )
    return found


def backtest_findings(form: str, loss_errors: Mapping[str, float]) -> list[Finding]:
    """Whether the fitted form predicts budgets left out much worse than another. loss_errors: form -> of ln L*."""
    if form not in loss_errors:
        return []
    best = min(loss_errors, key=lambda name: loss_errors[name])
    error, least = loss_errors[form], loss_errors[best]
    if error < max(_BACKTEST_ERROR, _BACKTEST_RATIO * least):
        return []
    return [
        Finding(
            Code.FORM_FAILS_BACKTEST,
            f"with the largest budgets left out, {form} is {100 * error:.1f} % off in the next one's loss and {best} "
            f"{100 * least:.1f} %: do not extrapolate with it; use --form auto, which averages by these errors",
            {"form": form, "loss_error": error, "best_form": best, "best_loss_error": least},
        )
    ]


def agreement_findings(surface: tuple[float, float], isoflop: tuple[float, float]) -> list[Finding]:
    """Whether the intervals of a from the surface and from Approach 2 overlap."""
    if surface[0] <= isoflop[1] and isoflop[0] <= surface[1] or not np.isfinite([*surface, *isoflop]).all():
        return []
    return [
        Finding(
            Code.APPROACHES_DISAGREE,
            f"the exponent a is {surface[0]:.3f} to {surface[1]:.3f} from the surface and {isoflop[0]:.3f} to "
            f"{isoflop[1]:.3f} from Approach 2: the form does not fit the minima, so trust Approach 2 inside the "
            "data and neither far outside",
            {"surface": list(surface), "isoflop": list(isoflop)},
        )
    ]
