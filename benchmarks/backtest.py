"""Backtest of every form and of their average over public IsoFLOP studies.

    python -m benchmarks.backtest DIRECTORY [--json FILE]

Reads every CSV of the directory that has the columns params_N, tokens_D, flops_C and loss, one study for each value
of `experiment` whose runs fall into IsoFLOP budgets. Two whose budgets are meant but not met exactly are put on the
planned ones (PLANNED). The one and the two largest budgets are held out.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from analysis.backtest import Score, backtest
from analysis.choice import DEPTH, average_scores, size_resolution
from analysis.forecasts import budgets_of
from analysis.table import Table, build_table
from scaling.errors import UserError
from sweeps.machine import detect

COLUMNS = {"params": "params_N", "tokens": "tokens_D", "loss": "loss", "flops": "flops_C"}
#: Planned FLOPs by experiment; a run within 15 % of one belongs to it. Farseer's sizes and tokens step by sqrt(2).
PLANNED = {
    "chinchilla_digitised": np.array([6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]),
    "farseer": 2.4147e18 * 2 ** (np.arange(40) / 2),
}
_NEAR_PLAN = 0.15
#: What is written of each row.
KEPT = (
    *("study", "form", "num_held_out", "steps", "held_out_flops"),
    *("log_params_error", "loss_error", "loss_error_of_lowest", "params_inside", "loss_inside"),
)


def studies(directory: Path) -> Iterator[tuple[str, Table]]:
    """Name and runs of every IsoFLOP study with five budgets or more."""
    for path in sorted(directory.glob("*.csv")):
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("split") != "test"]
        if not rows or not set(COLUMNS.values()) <= set(rows[0]) or "optima" in path.name:
            continue
        for experiment in dict.fromkeys(row.get("experiment", path.stem) for row in rows):
            chosen = [row for row in rows if row.get("experiment", path.stem) == experiment]
            values = {name: [float(row[column]) for row in chosen] for name, column in COLUMNS.items()}
            if experiment in PLANNED:
                values["flops_budget"] = _plan(np.array(values["flops"]), PLANNED[experiment])
            try:
                table = build_table(values, source=experiment)
            except UserError as error:
                print(f"left out: {error}")
                continue
            if len(budgets_of(table)) >= 5:
                yield experiment, table


def _plan(flops: np.ndarray, planned: np.ndarray) -> list[float]:
    distance = np.abs(np.log(flops[:, None] / planned))
    return np.where(distance.min(1) < _NEAR_PLAN, planned[distance.argmin(1)], np.nan).tolist()


def measure(name: str, table: Table) -> list[dict]:
    """One row for each form, the average included, and each budget predicted with one or two held out."""
    scores = backtest(table, depth=2 + DEPTH)
    lowest = {flops: float(table.loss[rows].min()) for flops, rows in budgets_of(table)}
    averages = average_scores(scores, size_resolution(table))
    inside = {
        (score.num_held_out, score.steps): (
            None if np.isnan(score.measured_params) else found.params[0] <= score.measured_params <= found.params[1],
            found.loss[0] <= score.measured_loss <= found.loss[1],
        )
        for score, found in averages
    }

    def row(score: Score) -> dict:
        key = score.num_held_out, score.steps
        params_inside, loss_inside = inside[key] if score.form == "average" else (None, None)
        return {
            **{"study": name, **score.to_dict(), "params_inside": params_inside, "loss_inside": loss_inside},
            "loss_error_of_lowest": float(np.log(score.loss / lowest[score.held_out_flops])),
        }

    return [row(score) for score in [*scores, *(score for score, _ in averages)] if score.num_held_out <= 2]


def mean(rows: list[dict], name: str) -> float:
    """Mean absolute value of a column, over the rows where it is defined."""
    values = [abs(row[name]) for row in rows if row[name] is not None and np.isfinite(row[name])]
    return float(np.mean(values)) if values else float("nan")


def show(rows: list[dict]) -> None:
    """The tables of the README, in Markdown."""

    def pick(held: int, steps: int, form: str) -> list[dict]:
        return [row for row in rows if (row["num_held_out"], row["steps"], row["form"]) == (held, steps, form)]

    print("| form | 1 held out: ln N*, L* % | L* % of the lowest run | 2 held out: next | 2 held out: largest |")
    print("|---|---|---|---|---|")
    for form in dict.fromkeys(row["form"] for row in rows):
        cells = [
            f"{mean(part, 'log_params_error'):.3f}, {100 * mean(part, 'loss_error'):.2f}"
            for part in (pick(1, 1, form), pick(2, 1, form), pick(2, 2, form))
        ]
        cells.insert(1, f"{100 * mean(pick(1, 1, form), 'loss_error_of_lowest'):.2f}")
        print(f"| {form} | {' | '.join(cells)} |")
    print("\n| study | average: ln N*, L* % | N*, L* in 90 % interval |\n|---|---|---|")
    for row in pick(1, 1, "average"):
        inside = ["-" if row[key] is None else "yes" if row[key] else "NO" for key in ("params_inside", "loss_inside")]
        errors = f"{row['log_params_error']:+.3f}, {100 * row['loss_error']:+.2f}"
        print(f"| {row['study']} | {errors} | {', '.join(inside)} |")
    for held, steps in ((1, 1), (2, 1), (2, 2)):
        part = pick(held, steps, "average")
        coverage = [mean(part, name) for name in ("params_inside", "loss_inside")]
        print(f"{held} held out, budget {steps}: inside {coverage[0]:.2f} (N*), {coverage[1]:.2f} (L*) of {len(part)}")


def write(path: Path, rows: list[dict]) -> None:
    """The columns that the tables are made of, six digits, one row a line."""
    found = detect()
    about = {"machine": f"{found.cpu_model}, {found.cores} cores", "date": time.strftime("%Y-%m-%d"), "columns": KEPT}
    lines = (json.dumps([_rounded(row[name]) for name in KEPT]) for row in rows)
    path.write_text(f'{json.dumps(about)[:-1]}, "rows": [\n' + ",\n".join(lines) + "\n]}\n")


def _rounded(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else None


def main() -> None:
    """Run over a directory, print the tables, and keep every row on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", type=Path, help="keep every row here")
    options = parser.parse_args()
    start = time.process_time()
    rows = [row for name, table in studies(options.directory) for row in measure(name, table)]
    show(rows)
    print(f"{time.process_time() - start:.0f} CPU s")
    if options.json:
        write(options.json, rows)


if __name__ == "__main__":
    main()
