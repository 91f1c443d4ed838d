"""Constants refitted to one's own runs: maximum a posteriori around the shipped ones, with the interval that is left.

A handful of constants decides how a stack differs from its class. Their logarithms (log-odds, for overlaps) have normal
priors around the shipped values; ln(step time) has normal noise of the stack's `within`, softened against outliers. One
run moves them sensibly, five decide what matters, and what they do not tell stays as shipped.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.cost.interval import Interval, log_normal
from analysis.cost.setup import Setup, Stack
from analysis.cost.stacks import Constants, constants_of, stack_names
from analysis.cost.step import step_time
from scaling.errors import UserError

#: Prior standard deviations of the logarithms.
PRIOR = {
    "matmul_efficiency": 0.15,
    "low_precision": 0.1,
    "attention_efficiency": 0.25,
    "elementwise": 0.4,
    "network_efficiency": 0.3,
    "bubble": 0.15,
    "host_layer_seconds": 0.7,
    "step_seconds": 0.7,
    "expert_efficiency": 0.15,
    "routed_values": 0.4,
}
#: Prior standard deviation of the log-odds.
ODDS_PRIOR = {"tensor_overlap": 1.0, "data_overlap": 1.0, "expert_overlap": 1.0}
#: Residuals above this root mean square are no longer noise: the stack does something the model does not know.
BAD_FIT = 0.10
#: No constant comes near it, and no spread.
_LARGEST_CONSTANT = 1e3
#: |ln(predicted / measured)| of a run whose row is wrong: a thousand times, as of milliseconds.
_OUT_OF_PROPORTION = math.log(1000.0)
#: Times that the fit is repeated to see how it predicts runs it does not know.
_MOST_FOLDS = 10
#: How many runs the shipped noise counts as when the noise of these runs is estimated.
_NOISE_RUNS = 4


@dataclass(frozen=True)
class Calibration:
    """A stack's constants for one user's software and machines. ln(step time) errs by `spread` for a new run."""

    stack: Stack
    changes: dict[str, float]
    spread: float
    num_runs: int
    #: Root mean square of ln(predicted / measured) over the runs, with the shipped constants and with these; and when
    #: each run is predicted from the others (NaN with fewer than three).
    before: float
    after: float
    left_out: float
    source: str

    @cached_property
    def constants(self) -> Constants:
        """The stack's constants with the fitted ones in place."""
        return replace(constants_of(self.stack), **self.changes)

    @property
    def warning(self) -> str | None:
        """One line when the fit is bad, else None."""
        worst = max(self.after, 0.0 if math.isnan(self.left_out) else self.left_out)
        if worst <= BAD_FIT:
            return None
        return (
            f"the calibration is bad: after it, runs are still {100 * worst:.0f} % off (root mean square), so "
            "something that the model does not know decides their speed; look for a slow network, data loading or a "
            "wrong layout in the table before trusting an estimate"
        )

    def to_json(self) -> str:
        """For a file that `from_file` reads; left_out is null where it is NaN."""
        values = asdict(self) | {"left_out": None if math.isnan(self.left_out) else self.left_out}
        return json.dumps(values, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> "Calibration":
        """Raises UserError when the file is not a calibration, or its numbers are none that `calibrate` gives."""
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
            found = cls(**values)
            found = replace(found, left_out=math.nan if found.left_out is None else float(found.left_out))
            unknown = set(found.changes) - set(PRIOR) - set(ODDS_PRIOR)
            if unknown or found.stack not in stack_names():
                raise ValueError(f"unknown {', '.join(sorted(unknown)) or found.stack}")
            for name, value in (*found.changes.items(), ("spread", found.spread)):
                if not 0 < value < (1 if name in ODDS_PRIOR else _LARGEST_CONSTANT):
                    raise ValueError(f"{name} = {value}")
            for name in ("num_runs", "before", "after"):
                if not 0 <= getattr(found, name) < math.inf:
                    raise ValueError(f"{name} = {getattr(found, name)}")
            return found
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"calibration = {path}: is not one ({error}): make it with `scaling cost calibrate TABLE --out {path}`"
            ) from None


def constants_for(setup: Setup, calibration: Calibration | None) -> Constants:
    """What to price a setup with: the calibration's constants where it is of the setup's stack, else the shipped."""
    applies = calibration is not None and calibration.stack == setup.stack
    return calibration.constants if applies else constants_of(setup.stack)


def step_interval(setup: Setup, calibration: Calibration | None = None) -> Interval:
    """Seconds of a step with their 90 % interval; a calibration applies to setups of its stack."""
    constants = constants_for(setup, calibration)
    seconds = step_time(setup, constants).total
    if calibration is not None and calibration.stack == setup.stack:
        return log_normal(seconds, calibration.spread)
    return log_normal(seconds, step_spread(setup, constants))


def step_spread(setup: Setup, constants: Constants) -> float:
    """Standard deviation of ln(measured / predicted step) where nothing of the source was seen."""
    experts = constants.expert_between if setup.model.is_moe else 0.0
    return math.hypot(constants.between, constants.within, experts)


def calibrate(runs: Sequence[tuple[Setup, float]], source: str) -> Calibration:
    """Fit a stack's constants to (setup, seconds of a step) of finished runs, all of one stack.

    Raises UserError without runs, for several stacks, and for a step time that is out of all proportion.
    """
    if not runs:
        raise UserError(f"{source}: no run has a step time and a setup that can be expressed: nothing to calibrate by")
    stacks = sorted({setup.stack for setup, _ in runs})
    if len(stacks) > 1:
        seen = ", ".join(stacks)
        raise UserError(f"{source}: runs of {len(stacks)} stacks ({seen}): calibrate one at a time, --stack")
    shipped = constants_of(runs[0][0].stack)
    for (setup, seconds), error in zip(runs, _errors(runs, shipped), strict=True):
        if abs(error) > _OUT_OF_PROPORTION:
            raise UserError(
                f"{source}: a step of {seconds:g} s, where {step_time(setup, shipped).total:.3g} s are expected: "
                "correct its unit, batch or layout"
            )
    changes = _fit(runs)
    residuals = _errors(runs, replace(shipped, **changes))
    left_out = math.nan
    if len(runs) > 2:
        left_out = _rms(_held_out_errors(runs, shipped))
    return Calibration(
        stack=runs[0][0].stack,
        changes=changes,
        spread=remaining_spread(residuals, between=shipped.between, within=shipped.within),
        num_runs=len(runs),
        before=_rms(_errors(runs, shipped)),
        after=_rms(residuals),
        left_out=left_out,
        source=source,
    )


def _held_out_errors(runs: Sequence[tuple[Setup, float]], shipped: Constants) -> list[float]:
    """The error of each run when it is predicted from the others; many runs are held out by tenths."""
    folds = min(len(runs), _MOST_FOLDS)
    errors = []
    for fold in range(folds):
        rest = [run for index, run in enumerate(runs) if index % folds != fold]
        errors += _errors(runs[fold::folds], replace(shipped, **_fit(rest)))
    return errors


def remaining_spread(residuals: Sequence[float], *, between: float, within: float) -> float:
    """Standard deviation of ln(step time) of a new run, after a fit that left `residuals` in ln of its runs.

    between, within: the standard deviations before, from one source of runs to another and among those of one.
    """
    count = len(residuals)
    squares = _NOISE_RUNS * within**2 + sum(error**2 for error in residuals)
    noise = math.sqrt(squares / (_NOISE_RUNS + count))
    return math.hypot(noise, between * noise / math.sqrt(noise**2 + count * between**2))


def _fit(runs: Sequence[tuple[Setup, float]]) -> dict[str, float]:
    import numpy as np
    from scipy.optimize import least_squares

    shipped = constants_of(runs[0][0].stack)
    # An overlap of 0 has no log-odds: what a stack cannot do is not fitted.
    odds = {name: width for name, width in ODDS_PRIOR.items() if 0 < getattr(shipped, name) < 1}
    logs = {name: width for name, width in PRIOR.items() if getattr(shipped, name) > 0}
    names = [*logs, *odds]
    widths = [*logs.values(), *odds.values()]

    def changes(shift: Any) -> dict[str, float]:
        found = {}
        for name, width, part in zip(names, widths, shift, strict=True):
            value = getattr(shipped, name)
            if name in odds:
                found[name] = 1.0 / (1.0 + (1.0 / value - 1.0) * math.exp(-width * part))
            else:
                found[name] = value * math.exp(width * part)
        return found

    def residuals(shift: Any) -> Any:
        errors = _errors(runs, replace(shipped, **changes(shift)))
        return np.concatenate([np.array(errors) / shipped.within, shift])

    fit = least_squares(residuals, np.zeros(len(names)), loss="soft_l1", diff_step=1e-4)
    return {name: float(value) for name, value in changes(fit.x).items()}


def _errors(runs: Sequence[tuple[Setup, float]], constants: Constants) -> list[float]:
    """ln(predicted / measured) of each run."""
    return [math.log(step_time(setup, constants).total / seconds) for setup, seconds in runs]


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(error**2 for error in errors))
