"""A fitted law in the field's usual pictures: IsoFLOP curves, N*(C), D*(C), L*(C), and what the law misses.

Every function draws into the Axes it is given, or into new ones, and returns them; it raises UserError when there is
nothing to draw. `runs` are rows of a sweep's table, a DataFrame with these columns, or a `Table`; `law` is the content
of law.json, as `analysis.study.analyse` returns it. Compute is C = 6ND, losses are nats per token, parameters are with
embeddings, unless the table's columns say otherwise: then the axis names the column.
"""

import math
from collections.abc import Mapping
from typing import Any

from analysis import figure_style, formatting, published
from analysis.axes import (
    axes_for,
    axis_label,
    band,
    budget_colors,
    budget_label,
    columns_of,
    legend,
    log_ticks,
    plain_ticks,
    shade_extrapolation,
)
from analysis.formatting import is_number
from analysis.law_json import isoflop_budgets, optimum_points
from analysis.laws import Law, Surface
from analysis.runs import (
    Rows,
    budget_of,
    by_budget,
    compute_of,
    finished_runs,
    predicted_losses,
    thinned_curve,
    tidy_records,
)
from scaling.errors import UserError

#: Two budgets are one when their logarithms differ by less.
SAME_BUDGET = 0.1

#: Residuals of a budget are joined by a line up to so many sizes.
_SIZES_JOINED = 12

Curves = dict[str, list[dict]]


def _runs_of(records: Any) -> Rows:
    runs = finished_runs(tidy_records(records))
    if not runs:
        raise UserError("runs: none is finished with params, tokens and loss above zero: give at least one to draw")
    return runs


def isoflop_curves(runs: Any, law: dict | None = None, ax: Any = None) -> Any:
    """Loss against size at fixed compute, with the fitted parabolas and their minima."""
    runs = _runs_of(runs)
    ax = axes_for(ax, axis_label("params", law), axis_label("loss", law))
    colors = budget_colors(runs)
    for budget, group in by_budget(runs).items():
        x, y = [row["params"] for row in group], [row["loss"] for row in group]
        ax.plot(x, y, "o", ms=3.6, color=colors[budget], label=budget_label(budget))
    fits = isoflop_budgets(law)
    for fit in fits:
        near = [row for row in runs if abs(math.log((budget_of(row) or compute_of(row)) / fit["flops"])) < SAME_BUDGET]
        color = colors[budget_of(near[0])] if near else figure_style.MUTED
        _draw_parabola(ax, fit, [row["params"] for row in near], color)
    ax.set_xscale("log")
    log_ticks(ax.xaxis, formatting.count)
    if any(fit.get("interior") for fit in fits):
        ax.plot([], [], "D", ms=5.5, color=figure_style.INK, label="minimum")
    if any(not fit.get("interior") for fit in fits):
        ax.plot([], [], "D", ms=5.5, mfc="none", color=figure_style.VERMILLION, label="not inside the grid")
    legend(ax, columns=3)
    return ax


def _draw_parabola(ax: Any, fit: dict, sizes: list[float], color: str) -> None:
    curvature, slope, offset = fit.get("coefficients") or (None, None, None)
    if sizes and is_number(curvature):
        low, high = math.log(min(sizes)), math.log(max(sizes))
        grid = [low + (high - low) * step / 40 for step in range(41)]
        losses = [curvature * x * x + slope * x + offset for x in grid]
        ax.plot([math.exp(x) for x in grid], losses, color=color, lw=1.2)
    if not (is_number(fit.get("params_opt")) and is_number(fit.get("loss_opt"))):
        return
    interior = fit.get("interior")
    face, edge = (color, figure_style.PAPER) if interior else ("none", figure_style.VERMILLION)
    ax.plot(fit["params_opt"], fit["loss_opt"], "D", ms=6.5, mfc=face, mec=edge, mew=1.0, zorder=5)


def has_optimum(law: dict | None) -> bool:
    """Whether `optimum` has something to draw."""
    return bool(optimum_points(law) or _minima(law, "params"))


def _minima(law: dict | None, quantity: str) -> list[dict]:
    return [fit for fit in isoflop_budgets(law) if is_number(fit.get(f"{quantity}_opt"))]


def optimum(
    law: dict,
    quantity: str = "params",
    runs: Any = (),
    ax: Any = None,
    beside: Mapping[str, Surface] = published.SURFACES,
) -> Any:
    """N*(C) (`quantity` = "params") or D*(C) ("tokens"): ours with its band, IsoFLOP minima, other laws beside it.

    runs: beyond the compute of the largest the figure is grey. beside: name -> surface, at most four.
    """
    points, fits = optimum_points(law), _minima(law, quantity)
    if not points and not fits:
        raise UserError("law: has neither a surface nor IsoFLOP minima, so no optimum to draw: fit a surface")
    ax = axes_for(ax, axis_label("flops", law), _optimal(axis_label(quantity, law)))
    if points:
        band(ax, points, quantity, figure_style.INK, "fitted surface, with its interval")
    known = [point["flops"] for point in points + fits]
    reach = (min(known), max(known))
    for (name, surface), (color, dash) in zip(beside.items(), _LOOKS):
        ax.plot(reach, getattr(surface.optimum(reach), quantity), linestyle=dash, color=color, lw=1.3, label=name)
    for inside, style in ((True, {"mfc": figure_style.GREEN}), (False, {"mfc": "none"})):
        chosen = [fit for fit in fits if bool(fit.get("interior")) == inside]
        if chosen:
            x, y = [fit["flops"] for fit in chosen], [fit[f"{quantity}_opt"] for fit in chosen]
            ax.errorbar(x, y, yerr=_error_bars(chosen, quantity), fmt="none", color=figure_style.GREEN, elinewidth=1)
            label = "IsoFLOP minima" if inside else "minima not inside the grid"
            ax.plot(x, y, "D", ms=5, color=figure_style.GREEN, label=label, **style)
    ax.set_xscale("log")
    ax.set_yscale("log")
    shade_extrapolation(ax, tidy_records(runs), reach)
    log_ticks(ax.xaxis, formatting.power)
    log_ticks(ax.yaxis, formatting.count)
    legend(ax)
    return ax


#: Colour and dashes of the laws beside ours.
_LOOKS = (
    (figure_style.VERMILLION, (0, (5, 2))),
    (figure_style.BLUE, (0, (1.2, 1.4))),
    (figure_style.GREEN, (0, (5, 1.5, 1, 1.5))),
    (figure_style.MUTED, (0, (3, 3))),
)


def _optimal(label: str) -> str:
    """The label of N or D as that of N* or D*."""
    for symbol in (" N", " D"):
        label = label.replace(symbol, f"{symbol}*", 1)
    return _qualified("Optimal", label)


def _qualified(word: str, label: str) -> str:
    return f"{word} {label[0].lower()}{label[1:]}"


def _error_bars(fits: list[dict], quantity: str) -> list[list[float]]:
    """Lengths below and above each minimum, shape [2, fits]; D* = C / 6N* turns its interval round."""
    below, above = [], []
    for fit in fits:
        value, bounds = fit[f"{quantity}_opt"], fit.get("params_interval")
        low, high = bounds if bounds and all(map(is_number, bounds)) else (fit["params_opt"], fit["params_opt"])
        if quantity == "tokens":
            low, high = value * fit["params_opt"] / high, value * fit["params_opt"] / low
        below.append(max(0.0, value - low))
        above.append(max(0.0, high - value))
    return [below, above]


def frontier(runs: Any, law: dict | None = None, curves: Curves | None = None, ax: Any = None) -> Any:
    """Loss against compute: every training curve, the final validation losses, and L*(C) of the law with its band.

    curves: run_id -> lines with `tokens` and `loss`, as in metrics.jsonl.
    """
    runs, curves = _runs_of(runs), curves or {}
    ax = axes_for(ax, axis_label("flops", law), axis_label("loss", law))
    colors = budget_colors(runs)
    everything = []
    for row in runs:
        curve = thinned_curve(curves.get(row.get("run_id"), []))
        points = [(6 * row["params"] * tokens, loss) for tokens, loss in curve]
        ax.plot(*columns_of(points), color=colors[budget_of(row)], lw=0.6, alpha=0.45)
        everything += points
    if everything:
        label = "envelope of the training curves"
        ax.plot(*columns_of(lower_envelope(everything)), ":", color=figure_style.INK, lw=1.3, label=label)
    for budget, group in by_budget(runs).items():
        ax.plot([compute_of(row) for row in group], [row["loss"] for row in group], "o", ms=3, color=colors[budget])
    ax.plot([], [], "o", ms=3, color=figure_style.INK, label="final validation loss, one colour per budget")
    best = optimum_points(law)
    if best:
        band(ax, best, "loss", figure_style.VERMILLION, "frontier L*(C) of the fitted law, with its interval")
    ax.set_xscale("log")
    ax.set_yscale("log")
    losses = [row["loss"] for row in runs]
    if everything:  # they begin at the loss of no training, far above
        ax.set_ylim(top=1.5 * max(losses))
    ax.set_ylim(bottom=0.96 * min(losses + [point["loss"]["value"] for point in best]))
    smallest = min([compute_of(row) for row in runs] + [point["flops"] for point in best])
    ax.set_xlim(left=smallest / (10 if everything else 2))
    log_ticks(ax.xaxis, formatting.power)
    plain_ticks(ax.yaxis)
    legend(ax, columns=1)
    return ax


def lower_envelope(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The best loss within each sixth of a decade of compute, from (compute, loss) points, ascending."""
    best: dict[int, tuple[float, float]] = {}
    for compute, loss in points:
        place = round(6 * math.log10(compute))
        if place not in best or loss < best[place][1]:
            best[place] = (compute, loss)
    return [best[place] for place in sorted(best)]


def predicted(runs: Any, law: dict | Law, ax: Any = None) -> Any:
    """Measured against predicted loss of a surface."""
    runs = _runs_of(runs)
    loss = axis_label("loss", law)
    ax = axes_for(ax, _qualified("Predicted", loss), _qualified("Measured", loss))
    colors = budget_colors(runs)
    everything = []
    for budget, group in by_budget(runs).items():
        expected = predicted_losses(law, group)
        measured = [row["loss"] for row in group]
        everything += expected + measured
        ax.plot(expected, measured, "o", ms=3.8, color=colors[budget], label=budget_label(budget))
    ax.axline((min(everything), min(everything)), slope=1, color=figure_style.MUTED, lw=0.9, zorder=1)
    legend(ax, columns=3)
    return ax


def residuals(runs: Any, law: dict | Law, ax: Any = None) -> Any:
    """Measured over predicted loss, in percent, against size: a pattern here is an error of form."""
    runs = _runs_of(runs)
    ax = axes_for(ax, axis_label("params", law), "Measured over predicted loss (%)")
    colors = budget_colors(runs)
    ax.axhline(0, color=figure_style.MUTED, lw=0.9, zorder=1)
    for budget, group in by_budget(runs).items():
        expected = predicted_losses(law, group)
        missed = [100 * (row["loss"] / loss - 1) for row, loss in zip(group, expected)]
        x = [row["params"] for row in group]
        line = "o-" if budget is not None and len(group) <= _SIZES_JOINED else "o"
        ax.plot(x, missed, line, ms=3.8, lw=0.6, color=colors[budget], label=budget_label(budget))
    ax.set_xscale("log")
    log_ticks(ax.xaxis, formatting.count)
    legend(ax, columns=3)
    return ax
