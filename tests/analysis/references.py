"""Published fits to hold ours against, read from ../shared beside the repository; the data stay out of it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "fits"


def reference_fits(kind):
    """Parameters for pytest: one per reference fit whose id ends in `kind`, or one loud skip without the data."""
    try:
        fits = json.loads((FOLDER / "reference_fits.json").read_text())["fits"]
    except FileNotFoundError:
        reason = f"NOT CHECKED against published fits: {FOLDER} is absent"
        return [pytest.param(None, id=f"no-{kind}-data", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(fit, id=fit["id"]) for fit in fits if kind in fit["id"].split("/")[1]]


def columns_of(fit):
    """params, tokens, loss, flops of the rows that a reference fit is made from."""
    with open(FOLDER / fit["file"], newline="") as file:
        rows = list(csv.DictReader(file))
    subset = fit["subset"]
    if subset != "all":
        column, _, value = subset.split(" & ")[0].partition("==")
        rows = [row for row in rows if row[column] == value]
    if "params_N<1.5e9" in subset:
        rows = [
            row
            for row in rows
            if float(row["params_N"]) < 1.5e9 and "rerun" not in row["run"] and "0.5xC" not in row["run"]
        ]
    assert len(rows) == fit["n_rows"]
    return (np.array([float(row[name]) for row in rows]) for name in ("params_N", "tokens_D", "loss", "flops_C"))


def published(name):
    """Parameters for pytest: each (key, value) of one published result, or one loud skip without the data."""
    try:
        entries = json.loads((FOLDER / "reference_fits.json").read_text())["published"]
    except FileNotFoundError:
        reason = f"NOT CHECKED against published values: {FOLDER} is absent"
        return [pytest.param(None, id=f"no-{name}-data", marks=pytest.mark.skip(reason=reason))]
    (entry,) = [entry for entry in entries if entry["id"] == name]
    return [pytest.param(item, id=item[0]) for item in entry.get("values", entry).items() if item[0] != "id"]


def rows_of(file, **equal):
    """Rows of a table as dictionaries of text, those whose columns have the given values."""
    with open(FOLDER / file, newline="") as opened:
        return [row for row in csv.DictReader(opened) if all(row[name] == value for name, value in equal.items())]


def numbers(rows, *names):
    """Columns of rows as float64 arrays."""
    return [np.array([float(row[name]) for row in rows]) for name in names]
