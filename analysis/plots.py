"""Every figure of the project. In a notebook:

    from analysis import figure_style, plots
    figure_style.use()
    plots.isoflop_curves(runs, law)

These functions draw into the Axes they are given, or into new ones, and return them. The report (inline SVG) and
`save_figures` (files) draw the same ones for a whole sweep, those that there is something to show in.
"""

from pathlib import Path
from typing import Any

from analysis import figure_style
from analysis.axes import figure_of
from analysis.check_plots import backtest_errors, profile_likelihood
from analysis.law_plots import Curves, frontier, has_optimum, isoflop_curves, optimum, predicted, residuals
from analysis.plan_plots import next_runs, price_of_sizes, what_it_buys
from analysis.run_plots import timed_runs, training_curves, training_times
from analysis.runs import Rows, finished_runs, tidy_records

__all__ = [
    "Curves",
    "backtest_errors",
    "draw_figures",
    "frontier",
    "isoflop_curves",
    "next_runs",
    "optimum",
    "predicted",
    "price_of_sizes",
    "profile_likelihood",
    "residuals",
    "save_figures",
    "training_curves",
    "training_times",
    "what_it_buys",
]


def draw_figures(rows: Rows, law: dict | None, curves: Curves) -> dict[str, Any]:
    """Every figure of a sweep that there is something to show in, by name.

    rows: those of `runs.tidy_records`. law: the content of law.json, or None. curves: run_id -> lines of its metrics.
    """
    runs = finished_runs(rows)
    drawn = {}
    if runs:
        drawn["isoflop"] = figure_of(isoflop_curves, rows, law)
        drawn["compute"] = figure_of(frontier, rows, law, curves)
    if has_optimum(law):
        drawn["optimal-params"] = figure_of(optimum, law, "params", rows)
        drawn["optimal-tokens"] = figure_of(optimum, law, "tokens", rows)
    if runs and (law or {}).get("parameters"):
        drawn["predicted"] = figure_of(predicted, rows, law)
        drawn["residuals"] = figure_of(residuals, rows, law)
    training = training_curves(rows, curves)
    if training is not None:
        drawn["training"] = training
    if timed_runs(rows):
        drawn["time"] = figure_of(training_times, rows)
    return drawn


def save_figures(
    directory: str | Path,
    *,
    records: Any,
    law: dict | None,
    curves: Curves | None = None,
    formats: tuple[str, ...] = ("svg", "png"),
) -> list[Path]:
    """Write each figure as <name>.<format> on white paper, text as outlines; returns the paths.

    Raises OSError when the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with figure_style.style(text_as_paths=True):
        for name, figure in draw_figures(tidy_records(records), law, curves or {}).items():
            for kind in formats:
                paths.append(directory / f"{name}.{kind}")
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(paths[-1], format=kind, dpi=200, facecolor=figure_style.PAPER, metadata=metadata)
    return paths
