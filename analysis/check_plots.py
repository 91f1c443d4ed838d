"""How far a law can be trusted: the backtest of forms, and profile likelihoods.

Every function draws into the Axes it is given, or into new ones, and returns them.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from analysis import figure_style, formatting
from analysis.axes import axes_for, legend, log_ticks, plain_ticks
from analysis.formatting import is_number
from analysis.profile import Profile
from scaling.errors import UserError

_ERRORS = {
    "loss": ("loss_error", "Predicted over measured L*, less one (%)"),
    "params": ("log_params_error", "Predicted over measured N*, less one (%)"),
}


def backtest_errors(forms: Iterable[Any], quantity: str = "loss", ax: Any = None) -> Any:
    """What each form predicted for budgets that it had not seen, over what was measured there.

    forms: the backtest table, `forms` of law.json or the Scores of `analysis.backtest`. quantity: "loss" or "params".
    One line per form, the best on top by its root mean square over the next budgets (filled); hollow are the budgets
    after these. Raises UserError when there is no backtest.
    """
    name, label = _ERRORS[quantity]
    scores = [dict(score) if isinstance(score, Mapping) else score.to_dict() for score in forms]
    scores = [score for score in scores if is_number(score[name])]
    if not scores:
        raise UserError(f"forms: no budget was predicted, so there is no error of {quantity}: give 4 budgets or more")
    errors: dict[str, list[float]] = {}
    for score in scores:
        errors.setdefault(score["form"], [])
        if score["steps"] == 1:
            errors[score["form"]].append(score[name])
    order = sorted(errors, key=lambda form: _root_mean_square(errors[form]), reverse=True)
    ax = axes_for(ax, label, "")
    ax.axvline(0, color=figure_style.MUTED, lw=0.9, zorder=1)
    budgets = sorted({score["held_out_flops"] for score in scores})
    for budget, color in zip(budgets, figure_style.series_colors(len(budgets))):
        for steps, face in ((1, color), (2, "none")):
            chosen = [score for score in scores if (score["held_out_flops"], score["steps"]) == (budget, steps)]
            x, y = [100 * math.expm1(score[name]) for score in chosen], [order.index(score["form"]) for score in chosen]
            shown = f"left out: {formatting.power(budget)} FLOPs" if steps == 1 else "_"
            ax.plot(x, y, "o", ms=5, color=color, mfc=face, label=shown)
    ax.set_yticks(range(len(order)), order)
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.grid(False, axis="x")
    if any(score["steps"] == 2 for score in scores):
        ax.plot([], [], "o", ms=5, color=figure_style.INK, mfc="none", label="two budgets ahead")
    legend(ax, columns=2)
    return ax


def _root_mean_square(errors: list[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors)) if errors else math.inf


def profile_likelihood(profile: Profile, ax: Any = None) -> Any:
    """The deviance of the best fit at each value of a quantity, with the interval where it stays below the threshold.

    An end that the curve does not leave is one that the data do not tell.
    """
    ax = axes_for(ax, profile.quantity.name, "Deviance (squared standard errors)")
    low, high = profile.low, profile.high
    inside = [value for value in (low, high) if is_number(value) and value != 0]
    shown = profile.deviance < 4 * profile.threshold
    values, deviance = profile.values[shown], profile.deviance[shown]
    ax.plot(values, deviance, "o-", ms=3, color=figure_style.BLUE)
    ax.axhline(profile.threshold, ls="--", lw=0.9, color=figure_style.MUTED, label="threshold")
    ends = (low if low in inside else values.min(), high if high in inside else values.max())
    ax.axvspan(*ends, color=figure_style.BLUE, alpha=0.12, zorder=0, label=_interval(profile))
    ax.set_ylim(bottom=0)
    if profile.quantity.positive:
        ax.set_xscale("log")
        (log_ticks if values.max() > 5 * values.min() else plain_ticks)(ax.xaxis, formatting.count)
    legend(ax)
    return ax


def _interval(profile: Profile) -> str:
    ends = (profile.low, profile.high)
    low, high = (formatting.count(end) if is_number(end) and end != 0 else "open" for end in ends)
    return f"interval: {low} to {high}"
