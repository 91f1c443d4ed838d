"""The runs of a sweep as they trained: loss against tokens, and time against plan."""

import math
from typing import Any

from analysis import figure_style, formatting
from analysis.axes import axes_for, budget_colors, budget_label, columns_of, legend, log_ticks, plain_ticks
from analysis.formatting import is_number
from analysis.law_plots import Curves
from analysis.runs import Rows, budget_of, by_budget, finished_runs, thinned_curve


def training_curves(rows: Rows, curves: Curves) -> Any:
    """Training loss against tokens, one panel per budget, one line per size; diverged runs are dashed.

    Returns the Figure, or None when no run has a curve.
    """
    groups = {budget: [row for row in group if curves.get(row["run_id"])] for budget, group in by_budget(rows).items()}
    groups = {budget: group for budget, group in groups.items() if group}
    if not groups:
        return None
    from matplotlib.figure import Figure

    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(3.6 * columns, 0.4 + 1.8 * lines))
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    shown = []
    for panel, (budget, group) in zip(panels, groups.items()):
        for row, color in zip(group, figure_style.series_colors(len(group))):
            tokens, losses = columns_of(thinned_curve(curves[row["run_id"]]))
            diverged = row.get("status", "finished") != "finished"
            line, color = ("--", figure_style.VERMILLION) if diverged else ("-", color)
            panel.plot(tokens, losses, line, color=color, lw=1)
            shown += losses[len(losses) // 6 :]
        sizes = [row["params"] for row in group if is_number(row.get("params"))]
        span = f": N {formatting.count(min(sizes), 2)} to {formatting.count(max(sizes), 2)}" if sizes else ""
        panel.set_title(budget_label(budget) + span)
        panel.set_xscale("log")
        log_ticks(panel.xaxis, formatting.count, subs=(1,))
    panels[0].set_yscale("log")
    if shown:
        panels[0].set_ylim(0.97 * min(shown), 1.05 * max(shown))
    plain_ticks(panels[0].yaxis)
    figure.supxlabel("Training tokens", fontsize=9)
    figure.supylabel("Training loss (nats per token)", fontsize=9)
    return figure


def timed_runs(rows: Rows) -> Rows:
    """The finished rows whose training time was predicted and measured."""
    return [
        row
        for row in finished_runs(rows)
        if all(is_number(row.get(name)) and row[name] > 0 for name in ("predicted_seconds", "seconds"))
    ]


def training_times(rows: Rows, ax: Any = None) -> Any:
    """Measured against predicted training time of each of `timed_runs(rows)`, at least one."""
    runs = timed_runs(rows)
    ax = axes_for(ax, "Predicted time of a cell (s)", "Measured (s)")
    colors = budget_colors(rows)
    for budget in by_budget(rows):
        group = [row for row in runs if budget_of(row) == budget]
        points = [(row["predicted_seconds"], row["seconds"]) for row in group]
        ranges = [row for row in group if is_number(row.get("predicted_seconds_low"))]
        for row in ranges:
            ends = (row["predicted_seconds_low"], row["predicted_seconds_high"])
            ax.plot(ends, 2 * [row["seconds"]], lw=0.8, alpha=0.45, color=colors[budget])
        if points:
            ax.plot(*columns_of(points), "o", ms=3.8, color=colors[budget], label=budget_label(budget))
    low = min(min(row["predicted_seconds"], row["seconds"]) for row in runs)
    high = max(max(row["predicted_seconds"], row["seconds"]) for row in runs)
    ax.plot([low, high], [low, high], color=figure_style.MUTED, lw=0.9, zorder=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    log_ticks(ax.xaxis, formatting.count)
    log_ticks(ax.yaxis, formatting.count)
    legend(ax, columns=3)
    return ax
