"""A surface with its bootstrap resamples and the runs behind it: what decisions and designs start from.

`law.json` keeps intervals, not resamples, so the runs are fitted again with the settings that it records.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from analysis.backtest import backtest
from analysis.choice import Choice
from analysis.estimator import Estimator, Fit, refit
from analysis.fitting import (
    AUTO,
    choose_estimator,
    choose_rows,
    first_estimator,
    fit_selection,
    load_table,
    weighted_table,
)
from analysis.law import Law
from analysis.noise import Noise, estimate_noise
from analysis.objective import LOSSES
from analysis.predictions import surface_alone
from analysis.surface import Surface
from analysis.table import Table
from analysis.uncertainty import choose_scheme, draw
from scaling.errors import UserError

_RULES = ("duplicates", "outliers", "weights")


@dataclass(frozen=True)
class SampledLaw:
    """A law, its resamples (fields [R]; None without runs) and where they come from.

    largest_flops: 6ND of the largest run, None where it is not known. runs: the rows fitted, None without any.
    choice: what the backtest says of it, or of the forms to average where the form was "auto"; None without runs.
    """

    law: Surface
    samples: Surface | None
    method: str
    largest_flops: float | None
    source: str
    fit: Fit | None = None
    runs: Table | None = None
    choice: Choice | None = None

    def noise(self) -> Noise:
        """How far runs of one cell lie apart, as the runs tell."""
        if self.runs is None:
            return estimate_noise(np.empty(0), np.empty(0), np.empty(0), None)
        runs = self.runs
        residuals = np.log(self.law.loss(runs.params, runs.tokens) / runs.loss)
        return estimate_noise(runs.params, runs.tokens, runs.loss, residuals, len(fields(self.law)))


def sample_law(table: Any, columns: Any, settings: Mapping[str, Any], resamples: int, seed: int) -> SampledLaw:
    """Fit a surface and its resamples to a table of runs.

    table, columns: as for `analysis.fit`. settings: {"form", "loss", "delta", "held", "duplicates", "outliers",
    "weights", "scheme"}, as `law.json` has them; what is missing is the usual, and form "auto" is the surface that the
    backtest favours. Raises UserError for a form that is no surface, and as `analysis.fit` does.
    """
    if resamples < 10:
        raise UserError(f"resamples = {resamples}: must be at least 10; 1000 is usual")
    asked = settings.get("form") or "chinchilla"
    delta = settings.get("delta") or Estimator.delta
    estimator = first_estimator(asked, settings.get("loss") or Estimator.loss, delta, settings.get("held"))
    if not issubclass(estimator.form, Surface):
        raise UserError(f"form = {asked}: has no optimum in N and D: use a surface, such as chinchilla or gamma")
    rules = {name: settings[name] for name in _RULES if settings.get(name) is not None}
    selection = choose_rows(load_table(table, columns, estimator.form), estimator, **rules)
    weighted = weighted_table(selection)
    scores = backtest(weighted, estimator)
    choice = None
    if asked == AUTO:
        estimator, choice = choose_estimator(selection, estimator, scores)
    form = estimator.form
    fit, runs = fit_selection(selection, estimator), selection.table
    if choice is None or not choice.forecasts:
        choice = surface_alone(fit.law, runs, scores)
    # As `scaling fit` resamples, so that both say the same.
    scheme, together = choose_scheme(runs, estimator.loss, settings.get("scheme"))
    bootstrap = draw(len(runs), together, resamples, 0.9, seed, scheme)
    samples = refit(selection.inputs(form), runs.column(form.target), bootstrap.counts * selection.weights, fit)
    largest = float((6.0 * runs.params * runs.tokens).max())
    return SampledLaw(fit.law, samples, bootstrap.method, largest, runs.source, fit, runs, choice)


def read_law_file(path: Path, resamples: int, seed: int) -> SampledLaw:
    """The law in a `law.json`, with resamples when the table that it names as its source is there to be fitted again.

    Raises UserError when the file is not a law, or its form is not a surface.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a law ({error}): make it with `scaling fit --json`") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a JSON object: make it with `scaling fit --json`")
    for name, kind in (("form", str), ("parameters", dict)):
        if not isinstance(data.get(name), kind):
            raise UserError(f"{path}: {name} = {data.get(name)!r}: holds no law: make it with `scaling fit --json`")
    settings = settings_of(data, str(path))
    table = settings.get("source")
    if isinstance(table, str) and Path(table).is_file():
        return sample_law(table, settings.get("columns"), settings, resamples, seed)
    law = Law.from_dict(data)
    if not isinstance(law, Surface):
        raise UserError(f"{path}: {law.form} has no optimum in N and D: fit a surface, such as chinchilla or gamma")
    return SampledLaw(law, None, "none: the runs behind the law are not here", _largest_flops(data), str(path))


def settings_of(law: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings in the content of a `law.json` at `where`, to fit its runs again; where a form was chosen, "auto".

    Raises UserError for a file of another version.
    """
    settings = law.get("settings") or {}
    if not isinstance(settings, dict):
        raise UserError(f"{where}: settings = {settings!r}: was written by another version: make it with `scaling fit`")
    settings = dict(settings)
    loss = settings.get("loss")
    if loss is not None and loss not in LOSSES:
        raise UserError(
            f"{where}: was written by another version (settings.loss = {loss!r}): make it again with `scaling fit`"
        )
    return settings | {"form": AUTO} if law.get("choice") else settings


def _largest_flops(data: Mapping[str, Any]) -> float | None:
    """The compute of the largest run, as a `law.json` tells it."""
    points = data.get("optimum") or []
    if not points:
        return None
    return points[-1]["flops"] / 10 ** points[-1].get("decades_beyond_data", math.nan)


def decades_beyond(flops: float, largest: float | None) -> float | None:
    """How many decades of compute lie between the largest run and `flops`; 0 inside the data."""
    return None if largest is None or not math.isfinite(largest) else max(0.0, float(np.log10(flops / largest)))
