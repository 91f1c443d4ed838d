"""What a fitted law shows: whether its form holds, and how far beyond the runs it is asked to reach."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.estimator import Fit
from analysis.findings import Code, Finding
from analysis.table import Table

_GOOD_R_SQUARED = 0.98
#: A form is the wrong one when its loss at the next budget is off by more than this, and by twice another form's error.
_BACKTEST_ERROR, _BACKTEST_RATIO = 0.01, 2.0
#: An optimum this little outside the sampled sizes is as good as inside.
_NEAR_DECADES = 0.1
#: Decades of compute from which on a prediction is far: ten times the largest run.
_FAR_DECADES = 1.0


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
                f"{shown}: these data drive the form to its limit, so its extrapolation and exponents mean little",
                "widen the range of params and tokens, or rely on Approach 2",
                {"at_bound": values},
            )
        )
    if not fit.converged:
        found.append(
            Finding(
                Code.NOT_CONVERGED,
                f"the optimiser stopped at its iteration limit (gradient {fit.gradient_norm:.1e}): the parameters are "
                "poorly determined",
                "add runs, or raise delta",
                {"gradient_norm": fit.gradient_norm},
            )
        )
    if not fit.r_squared_log_loss >= _GOOD_R_SQUARED:
        found.append(
            Finding(
                Code.LOW_R_SQUARED,
                f"the law explains {fit.r_squared_log_loss:.4f} of the variance of log {fit.law.target}, below "
                f"{_GOOD_R_SQUARED}",
                "look at the residuals for badly tuned or noisy runs before using the law",
                {"r_squared_log_loss": fit.r_squared_log_loss, "recommended": _GOOD_R_SQUARED},
            )
        )
    return found


def optimum_findings(fit: Fit, table: Table) -> list[Finding]:
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
                    f"{decades:.1f} decades outside the runs ({column.min():.3g} to {column.max():.3g})",
                    f"train runs with {name} near {value:.2g} before relying on it",
                    {"quantity": name, "value": float(value), "flops": largest, "decades": float(decades)},
                )
            )
    return found


def range_findings(extrapolation: float) -> list[Finding]:
    """What the requested range of compute shows: more than ten times the data is a long way."""
    decades = float(np.log10(extrapolation))
    if decades <= _FAR_DECADES:
        return []
    return [
        Finding(
            Code.EXTRAPOLATION,
            f"optima are given up to {decades:.1f} decades of compute beyond the data; intervals hold only if the form "
            "does",
            "train one run at a larger budget and compare",
            {"quantity": "flops", "decades": decades},
        )
    ]


def forecast_findings(at_flops: Sequence[float], smallest: float | None, largest: float) -> list[Finding]:
    """Predictions asked for more than a decade outside the compute measured; `smallest` None: not known."""
    found = []
    for flops in at_flops:
        below = 0.0 if smallest is None else float(np.log10(smallest / flops))
        if below > _FAR_DECADES:
            found.append(
                Finding(
                    Code.EXTRAPOLATION,
                    f"{flops:.3g} FLOPs are {below:.1f} decades below the smallest run ({smallest:.3g}); the "
                    "prediction holds only if the form does, and no backtest looks that way",
                    "correct the number, or train runs that small",
                    {"quantity": "flops", "value": float(flops), "decades": below},
                )
            )
        decades = float(np.log10(flops / largest))
        if decades > _FAR_DECADES:
            found.append(
                Finding(
                    Code.EXTRAPOLATION,
                    f"{flops:.3g} FLOPs are {decades:.1f} decades beyond the largest run ({largest:.3g}); the "
                    "prediction holds only if the form does",
                    f"train an IsoFLOP at {np.sqrt(flops * largest):.1e} FLOPs or more and fit again",
                    {"quantity": "flops", "value": float(flops), "decades": decades},
                )
            )
    return found


def speed_findings(params: float, largest: float | None) -> list[Finding]:
    """A model of N = `params` whose speed follows from that of the `largest` measured; None: known for every size."""
    if largest is None or params <= largest:
        return []
    return [
        Finding(
            Code.EXTRAPOLATION,
            f"no speed was measured beyond {largest:.3g} params, so that of the largest is used up to {params:.3g}",
            "measure a few steps at that size and give them with --speeds",
            {
                "quantity": "speed",
                "value": params,
                "params_measured": largest,
                "decades": float(np.log10(params / largest)),
            },
        )
    ]


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
            f"{100 * least:.1f} %",
            "do not extrapolate with it; use --form auto, which averages by these errors",
            {"form": form, "loss_error": error, "best_form": best, "best_loss_error": least},
        )
    ]
