"""Runs that were kept from the fit: what the law of the others predicts for them, against what was measured."""

from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.laws import Law
from analysis.table import HELD_OUT, Table
from scaling.errors import UserError


def held_out_runs(
    table: Table, law: Law, samples: Law, interval: Callable[[np.ndarray], tuple[float, float]]
) -> list[dict[str, Any]]:
    """Of each held-out run: run_id, the inputs of the law, predicted (with its interval), measured, and the error.

    samples: the law's resamples, fields [R]; interval: of values [R]. error = ln(predicted/measured), so 0.01 is 1 %
    too high; the interval holds the noise of the fitted runs, so what lies outside is noise of this one run or error of
    the form. Raises UserError for a number that is none.
    """
    found = []
    for run in table.excluded:
        if run["status"] != HELD_OUT:
            continue
        inputs = {name: _number(run, name) for name in law.inputs}
        measured, predicted = _number(run, law.target), float(law.predict(*inputs.values()))
        low, high = interval(samples.predict(*inputs.values()))
        found.append(
            {
                "run_id": run["run_id"],
                **inputs,
                "predicted": {"value": predicted, "low": low, "high": high},
                "measured": measured,
                "error": float(np.log(predicted / measured)),
            }
        )
    return found


def _number(run: dict[str, Any], name: str) -> float:
    try:
        value = float(run[name])
    except (KeyError, TypeError, ValueError):
        value = np.nan
    if not 0 < value < np.inf:
        raise UserError(f"held-out run {run['run_id']}: {name} = {run.get(name)!r}: must be a number above zero")
    return value
