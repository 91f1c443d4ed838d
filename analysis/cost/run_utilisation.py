"""Share of the GPUs' peak that a whole training run reaches when its layout is not known: learnt from published runs.

    ln(6 N D / (GPU-seconds x peak)) = a + b ln(peak / A100's) + c ln(N / 1e10) + d (years before 2023)

N is the number of active parameters (embeddings counted), D of tokens, the peak is dense bf16 whatever the precision.
b < 0: faster GPUs wait longer for memory, network and host (nothing below an A100 is faster for it). c > 0: small
models keep a GPU waiting. d < 0, over at most one year: before fused attention was common. The number of GPUs, experts,
sequence length and fp8 do not help to predict runs of other families and are left out.

The fit is of least absolute deviations: a few families with bad clusters would pull a least-squares fit away from all
others. Median error of held-out families: 18 % over all runs, 14 % over the 41 of the best known; of one utilisation of
40 %: 34 % and 24 %. The form was chosen with these figures in view, so they flatter it a little.

Hours include restarts, evaluations and whatever else their authors counted: no goodput is to be applied on top.
published_runs.csv is what the coefficients are fitted to and what the interval is measured on: each
family of models predicted from the others. Not in it: hours that somebody derived from an assumed utilisation
(MT-NLG 530B, Nemotron-4 340B, Amber) or as if nothing had failed (OPT-175B), tokens that are only a corpus size (WeLM,
Luminous-supreme, CodeFuse-13B), pruned, distilled, fine-tuned and encoder-decoder models, models on TPUs, and costs
"from scratch" that were never run (MPT-30B).
"""

import csv
import math
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from analysis.cost.devices import Device, find_variants, require_device
from analysis.cost.interval import Interval, log_normal, quotient
from scaling.errors import UserError

#: a to d of the equation, and the standard deviation of ln utilisation about it, as `fitted` finds them. Written down,
#: since to fit takes longer than all the rest of an estimate; a test fits them again.
COEFFICIENTS = (-0.99489, -0.45571, 0.08775, -0.83814)
SPREAD = 0.3396
_TABLE = Path(__file__).with_name("published_runs.csv")
_A100_FLOPS = 312e12
_TYPICAL_PARAMS = 1e10
_FUSED_ATTENTION_YEAR = 2023.0
#: ln of parameters over 1e10 as far as published runs go (135M to 405B). Held beyond.
_PARAMS_RANGE = (-4.3, 3.7)
#: Rounds of the fit, the deviation below which all count alike, and a little pull of the coefficients towards 0.
_ROUNDS, _CLOSE, _RIDGE = 60, 0.03, 0.1


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before it starts. Parameters count embeddings."""

    params: float
    tokens: float
    device: Device
    #: Parameters a token passes through; None where all of them.
    active_params: float | None = None
    #: When it is trained, as a decimal year; None: now.
    year: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError for numbers that no run has."""
        for name in ("params", "tokens", "active_params"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} = {value}: must be a number greater than 0")
        if self.active_params is not None and self.active_params > self.params:
            raise UserError(f"active_params = {self.active_params:g}: must be at most params, {self.params:g}")

    @property
    def flops(self) -> float:
        """Model FLOPs of the run, 6 x active parameters x tokens."""
        return 6.0 * (self.active_params or self.params) * self.tokens


@dataclass(frozen=True)
class PublishedRun:
    """One row of published_runs.csv."""

    family: str
    model: str
    facts: RunFacts
    gpu_hours: float
    source: str

    @property
    def utilisation(self) -> float:
        """Its 6ND FLOPs over what its GPUs could have done in its hours at the dense bf16 peak."""
        return self.facts.flops / (3600.0 * self.gpu_hours * self.facts.device.bf16_flops)


def run_utilisation(facts: RunFacts) -> Interval:
    """6ND model-FLOPs utilisation of the dense bf16 peak over the whole run, all pauses included."""
    return log_normal(_predict(facts, COEFFICIENTS), SPREAD)


def run_gpu_hours(facts: RunFacts) -> Interval:
    """GPU-hours of the whole run, all pauses included."""
    return quotient(facts.flops / (3600.0 * facts.device.bf16_flops), run_utilisation(facts))


def unlike_published(facts: RunFacts) -> list[str]:
    """What of a run is outside of what the published ones show, one line each; its estimate then is a guess."""
    published = _chips({run.facts.device.name for run in published_runs()})
    flops = [run.facts.flops for run in published_runs()]
    warnings = []
    if not published & _chips({facts.device.name}):
        warnings.append(
            f"no published run on {facts.device.name} is known: its utilisation is drawn on from A100 to H100"
        )
    if not min(flops) <= facts.flops <= max(flops):
        warnings.append(
            f"{facts.flops:.3g} FLOPs are outside of the published runs' {min(flops):.1g} to {max(flops):.1g}"
        )
    return warnings


def _chips(names: set[str]) -> set[str]:
    """Names of all variants of the chips that the names name: memory and socket make no other chip."""
    return {variant.name for name in names for variant in find_variants(name)}


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """The rows of published_runs.csv."""
    with open(_TABLE, encoding="utf-8", newline="") as file:
        return tuple(_read(row) for row in csv.DictReader(file))


def held_out_predictions() -> dict[str, Interval]:
    """The utilisation of each published run by model, predicted from the runs of all other families.

    The interval's width is that of the errors of the other families when they are held out in the same way.
    """
    runs = published_runs()
    predicted = _predict_held_out(runs)
    errors = {run.model: math.log(run.utilisation / predicted[run.model]) for run in runs}
    return {
        run.model: log_normal(
            predicted[run.model],
            _root_mean_square([errors[other.model] for other in runs if other.family != run.family]),
        )
        for run in runs
    }


def fitted() -> tuple[tuple[float, ...], float]:
    """What COEFFICIENTS and SPREAD are: a fit to all runs, and how far held-out families lie from theirs."""
    runs = published_runs()
    predicted = _predict_held_out(runs)
    return _fit(runs), _root_mean_square([math.log(run.utilisation / predicted[run.model]) for run in runs])


def _predict_held_out(runs: tuple[PublishedRun, ...]) -> dict[str, float]:
    by_family = {
        family: _fit(tuple(run for run in runs if run.family != family)) for family in {run.family for run in runs}
    }
    return {run.model: _predict(run.facts, by_family[run.family]) for run in runs}


def _fit(runs: tuple[PublishedRun, ...]) -> tuple[float, ...]:
    """Least absolute deviations, by least squares that are weighted anew with every round."""
    import numpy as np

    features = np.array([_features(run.facts) for run in runs])
    target = np.log([run.utilisation for run in runs])
    ridge = np.diag([0.0] + [_RIDGE] * (features.shape[1] - 1))
    weights = np.ones(len(runs))
    for _ in range(_ROUNDS):
        weighted = features * (weights / weights.mean())[:, None]
        coefficients = np.linalg.solve(features.T @ weighted + ridge, weighted.T @ target)
        weights = 1.0 / np.maximum(np.abs(target - features @ coefficients), _CLOSE)
    return tuple(coefficients.tolist())


def _predict(facts: RunFacts, coefficients: tuple[float, ...]) -> float:
    return math.exp(sum(c * x for c, x in zip(coefficients, _features(facts), strict=True)))


def _features(facts: RunFacts) -> tuple[float, ...]:
    year = date.today().year if facts.year is None else facts.year
    return (
        1.0,
        max(0.0, math.log(facts.device.bf16_flops / _A100_FLOPS)),
        min(max(math.log((facts.active_params or facts.params) / _TYPICAL_PARAMS), _PARAMS_RANGE[0]), _PARAMS_RANGE[1]),
        min(1.0, max(0.0, _FUSED_ATTENTION_YEAR - year)),
    )


def _read(row: dict[str, Any]) -> PublishedRun:
    year, month = row["date"].split("-")
    facts = RunFacts(
        params=float(row["params"]),
        tokens=float(row["tokens"]),
        device=require_device(row["gpu"]),
        active_params=float(row["active_params"]),
        year=int(year) + (int(month) - 1) / 12,
    )
    return PublishedRun(row["family"], row["model"], facts, float(row["gpu_hours"]), row["source"])


def _root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
