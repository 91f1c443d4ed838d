"""N*, D* and L* of compute budgets with intervals, as `law.json` lists them: of one surface, or averaged over forms.

A bootstrap interval holds the noise of the runs. What the form gets wrong comes on top, and is read from the backtest:
see `analysis.choice`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.backtest import Score
from analysis.choice import Choice, Prediction, errors_of, size_resolution
from analysis.forecasts import FittedSurface, budgets_of, flops_ratio
from analysis.law_json import QUANTITIES
from analysis.surface import Surface
from analysis.table import Table
from analysis.uncertainty import Bootstrap

#: Name of the average over forms, as in the backtest table.
AVERAGE = "average"


def optimum_rows(
    law: Surface, laws: Surface, flops: np.ndarray, largest: float, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """N*(C), D*(C), L*(C) of the surface with their bands, at C = 6ND [m]; `largest` is the most compute measured."""
    columns = {}
    # Each field of `laws` is [R]; against compute [m, 1] the samples come out [m, R].
    points, samples = law.optimum(flops), laws.optimum(flops[:, None])
    for name, value, drawn in zip(points._fields, points, samples, strict=True):
        columns[name] = (value, *bootstrap.band(drawn.T))
    return [
        {
            "flops": flops[i],
            "decades_beyond_data": decades_beyond(flops[i], largest),
            **{name: {"value": v[i], "low": low[i], "high": high[i]} for name, (v, low, high) in columns.items()},
        }
        for i in range(len(flops))
    ]


def decades_beyond(flops: float, largest: float) -> float:
    """Decades of compute between the largest run and `flops`; 0 inside the data."""
    return max(0.0, math.log10(flops / largest))


def prediction_fields(found: Prediction) -> dict[str, dict[str, float]]:
    """A prediction in the shape of an optimum row: {"params", "tokens", "loss"}, each {"value", "low", "high"}."""
    return {
        name: {"value": value, "low": getattr(found, name)[0], "high": getattr(found, name)[1]}
        for name, value in found.value._asdict().items()
    }


def add_averages(rows: list[dict[str, Any]], choice: Choice, runs: Table, level: float) -> None:
    """Put the average over forms beside the surface's own numbers, as `average` of each optimum row."""
    ratio = flops_ratio(runs)
    for row in rows:
        row[AVERAGE] = prediction_fields(choice.predict(row["flops"] / ratio, level))


def surface_alone(law: Surface, runs: Table, scores: Sequence[Score]) -> Choice:
    """What the backtest says of one surface: its own predictions, with the error it made on budgets left out.

    Without a backtest the errors are those that the form made on public tables (`analysis.choice.PRIOR`).
    """
    groups = budgets_of(runs)
    return Choice(
        surface=law.name,
        reason=f"{law.name} was asked for",
        scores=scores,
        errors=errors_of(scores),
        forecasts={law.name: FittedSurface(law, flops_ratio(runs))},
        largest_flops=groups[-1][0] if groups else float(runs.flops.max()),
        resolution=size_resolution(runs) if groups else 0.0,
    )


def predict_average(choice: Choice, at_flops: Sequence[float], runs: Table, level: float) -> list[dict[str, Any]]:
    """The average over forms at compute as the table counts it, intervals with model-form error."""
    return [
        {
            **_where(flops, runs),
            "of": AVERAGE,
            "interval": "spread between forms and their backtest errors",
            **prediction_fields(choice.predict(flops, level)),
        }
        for flops in at_flops
    ]


def predict_surface(
    law: Surface, laws: Surface, at_flops: Sequence[float], runs: Table, scores: Sequence[Score], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """The surface at compute as the table counts it: bootstrap intervals, and wider ones under `with_form_error`."""
    if not len(at_flops):
        return []
    alone, flops = surface_alone(law, runs, scores), np.asarray(at_flops, np.float64)
    rows = optimum_rows(law, laws, flops * flops_ratio(runs), 1.0, bootstrap)
    return [
        {
            **row,
            **_where(given, runs),
            "of": law.name,
            "interval": "bootstrap",
            "with_form_error": wider(row, prediction_fields(alone.predict(given, bootstrap.level))),
        }
        for given, row in zip(at_flops, rows, strict=True)
    ]


def decided_with_form_error(
    choice: Choice, runs: Table, best: dict[str, Any], flops: float, level: float
) -> dict[str, Any]:
    """A decision's `best` {"params", "tokens", "loss"} at C = 6ND with intervals that hold the error of the form.

    Where forms are averaged, the average takes the place of the surface's own values.
    """
    found = prediction_fields(choice.predict(flops / flops_ratio(runs), level))
    if len(choice.forecasts) > 1:
        return {"of": AVERAGE, "flops": flops, **found}
    ends = wider(best, found)
    alone = {name: {"value": best[name]["value"], "low": ends[name][0], "high": ends[name][1]} for name in QUANTITIES}
    return {"of": choice.surface, "flops": flops, **alone}


def wider(sampled: dict[str, Any], formed: dict[str, Any]) -> dict[str, list[float]]:
    """Of each quantity, the interval [low, high] that holds both a bootstrap's and that of the form's error."""

    def ends(name: str) -> list[float]:
        low, high = ([part[name][end] for part in (sampled, formed)] for end in ("low", "high"))
        return [
            min((end for end in low if _known(end)), default=math.nan),
            max((end for end in high if _known(end)), default=math.nan),
        ]

    return {name: ends(name) for name in QUANTITIES}


def _known(number: float | None) -> bool:
    return number is not None and not math.isnan(number)


def _where(flops: float, runs: Table) -> dict[str, float]:
    return {
        "flops": float(flops),
        "flops_6nd": float(flops) * flops_ratio(runs),
        "decades_beyond_data": decades_beyond(flops, float(runs.flops.max())),
    }
