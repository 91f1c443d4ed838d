"""Pieces that several figures share: axes and their labels, ticks, legend, bands."""

import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from analysis import figure_style, formatting
from analysis.formatting import is_number
from analysis.runs import Rows, by_budget, compute_of, finished_runs

#: Inches. Small, so that the text is still readable when a phone shrinks the figure to its width.
SIZE = (4.3, 3.5)


#: Letters that fit beside its x and its y axis.
_LABEL_WIDTHS = (50, 32)
#: Height of tick labels and an axis label, in letters of the legend.
_BELOW_AXES = 4.5
#: What an axis is called when the quantity is this project's own, convention and unit included ...
_OWN_LABELS = {
    "params": "Parameters N, with embeddings",
    "tokens": "Training tokens D",
    "flops": "Compute C = 6ND (FLOPs)",
    "loss": "Loss (nats per token)",
}
#: ... and when it is a column of somebody else's table, who alone knows what it counts.
_COLUMN_LABELS = {
    "params": "Parameters N (column {!r})",
    "tokens": "Training tokens D (column {!r})",
    "flops": "Compute C (FLOPs, column {!r})",
    "loss": "Loss (column {!r})",
}


def axis_label(name: str, law: Any = None) -> str:
    """The label of an axis for "params", "tokens", "flops" or "loss", as the table behind `law` (law.json) has it."""
    columns = ((law if isinstance(law, dict) else {}).get("settings") or {}).get("columns") or {}
    column = columns.get(name, name)
    return _OWN_LABELS[name] if column == name else _COLUMN_LABELS[name].format(column)


def axes_for(ax: Any, xlabel: str, ylabel: str) -> Any:
    """`ax` with its labels; None: new ones in a pyplot figure, which a notebook shows by itself."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure(figsize=SIZE).add_subplot()
    ax.set_xlabel(textwrap.fill(xlabel, _LABEL_WIDTHS[0]))
    ax.set_ylabel(textwrap.fill(ylabel, _LABEL_WIDTHS[1]))
    return ax


def figure_of(draw: Callable[..., Any], *arguments: Any) -> Any:
    """A Figure of the standard size with what `draw` draws; pyplot knows nothing of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    draw(*arguments, ax=figure.add_subplot())
    return figure


def columns_of(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The x and the y of points."""
    points = list(points)
    return [x for x, _ in points], [y for _, y in points]


def budget_colors(rows: Rows) -> dict[float | None, str]:
    """One colour for each budget of the sweep, the same in every figure."""
    budgets = list(by_budget(rows))
    return dict(zip(budgets, figure_style.series_colors(max(1, len(budgets)))))


def budget_label(budget: float | None) -> str:
    """What a legend calls the runs of one budget."""
    return f"{formatting.power(budget)} FLOPs" if budget else "no budget given"


def legend(ax: Any, columns: int = 2) -> None:
    """The legend below the axes, where it covers no data, if the figure's layout makes room there; else inside."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    columns = min(columns, len(labels))
    if not isinstance(ax.figure.get_layout_engine(), ConstrainedLayoutEngine):
        ax.legend(loc="best")
    elif len(ax.figure.axes) == 1:
        ax.figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    else:
        below = _BELOW_AXES + 1.5 * ax.get_xlabel().count("\n")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=below, ncols=columns)


def band(ax, optimum: list[dict], quantity: str, color: str, label: str) -> None:
    """A line of the law's optimum against compute, with its interval where there is one."""
    points = [(point["flops"], point[quantity]) for point in optimum]
    ax.plot([flops for flops, _ in points], [value["value"] for _, value in points], color=color, lw=1.6, label=label)
    bounded = [
        (flops, value["low"], value["high"])
        for flops, value in points
        if is_number(value.get("low")) and is_number(value.get("high"))
    ]
    if bounded:
        ax.fill_between(*zip(*bounded), color=color, alpha=0.16, zorder=1)


def shade_extrapolation(ax, rows: Rows, reach: tuple[float, float]) -> None:
    """Grey from the largest compute trained to the end of `reach`."""
    last = max((compute_of(row) for row in finished_runs(rows)), default=reach[1])
    if last * 1.05 < reach[1]:
        ax.axvspan(last, reach[1], color=figure_style.MUTED, alpha=0.12, zorder=0, label="beyond the data")


def log_ticks(axis, show: Callable[[float, int], str], subs: tuple[float, ...] | None = None) -> None:
    """Ticks of a log axis at 1, 2, 5 or 1, 3 or 1 per decade, whichever leaves room, written by `show`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    subs = subs or ((1, 2, 5) if decades < 1.3 else (1, 3) if decades < 3.2 else (1,))
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value, 1)))
    axis.set_minor_formatter(NullFormatter())


def plain_ticks(axis, show: Callable[[float], str] = "{:g}".format) -> None:
    """Ticks at round numbers of a log axis that spans less than a decade, as a loss does, written by `show`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_locator(NullLocator())
