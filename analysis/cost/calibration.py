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
from analysis.cost.measured_bounds import implausible
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
    "half_expert": 0.7,
    "routed_values": 0.4,
}
#: Prior standard deviation of the log-odds.
ODDS_PRIOR = {"tensor_overlap": 1.0, "data_overlap": 1.0, "expert_overlap": 1.0}
#: Residuals above this root mean square are no longer noise: the stack does something the model does not know.
BAD_FIT = 0.10
#: No constant comes near it, and no spread.
_LARGEST_CONSTANT = 1e3
#: Prior standard deviations beyond which a fitted constant is no longer a likely one.
_FAR = 3.0
#: Times that the fit is repeated to see how it predicts runs it does not know.
_MOST_FOLDS = 10
#: How many runs the shipped noise counts as when the noise of these runs is estimated.
_NOISE_RUNS = 4


@dataclass(frozen=True)
class Calibration:
    """A stack's constants for one user's software and machines.

    ln(step time) of a new run errs by `spread`, of a model with experts by `expert_spread` (standard deviations).
    """

    stack: Stack
    changes: dict[str, float]
    spread: float
    expert_spread: float
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
    def runs(self) -> str:
        """Of what it was fitted to, in words."""
        return f"{self.num_runs} run{'' if self.num_runs == 1 else 's'} of {self.source}"

    @property
    def warning(self) -> str | None:
        """One line when the fit is bad or a constant unlikely, else None."""
        said = []
        worst = max(self.after, 0.0 if math.isnan(self.left_out) else self.left_out)
        if worst > BAD_FIT:
            said.append(
                f"the calibration is bad: after it, runs are still {100 * worst:.0f} % off (root mean square), so "
                "something that the model does not know decides their speed; look for a slow network, data loading or "
                "a wrong layout in the table before trusting an estimate"
            )
        far = [name for name in self.changes if abs(self._shift(name)) > _FAR]
        if far:
            shipped = constants_of(self.stack)
            names = ", ".join(f"{name} = {self.changes[name]:.3g}, not {getattr(shipped, name):.3g}" for name in far)
            said.append(
                f"unlikely constants, more than {_FAR:g} prior standard deviations from the shipped ones: {names}; "
                "look for a wrong unit, batch, layout or stack in the table"
            )
        return "; ".join(said) or None

    def _shift(self, name: str) -> float:
        """Prior standard deviations between a fitted constant and the shipped one."""
        fitted, shipped = self.changes[name], getattr(constants_of(self.stack), name)
        if name in ODDS_PRIOR:
            return (_log_odds(fitted) - _log_odds(shipped)) / ODDS_PRIOR[name]
        return math.log(fitted / shipped) / PRIOR[name]

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
            if found.stack not in stack_names():
                raise ValueError(f"unknown stack {found.stack}")
            if unknown := set(found.changes) - set(_priors(constants_of(found.stack))):
                raise ValueError(f"{', '.join(sorted(unknown))}: not fitted for {found.stack}")
            spreads = (("spread", found.spread), ("expert_spread", found.expert_spread))
            for name, value in (*found.changes.items(), *spreads):
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


def applies(calibration: Calibration | None, setup: Setup) -> bool:
    """Whether there is a calibration and it is of the setup's stack, on GPUs."""
    return calibration is not None and calibration.stack == setup.stack and not setup.device.is_cpu_core


def calibration_warnings(calibration: Calibration | None, setup: Setup) -> list[str]:
    """What a user must know of a calibration before trusting an estimate of `setup` with it."""
    if calibration is None:
        return []
    if not applies(calibration, setup):
        what = setup.device.name if setup.device.is_cpu_core else setup.stack
        return [f"the calibration is of the stack {calibration.stack}: not used for {what}"]
    return [calibration.warning] if calibration.warning else []


def constants_for(setup: Setup, calibration: Calibration | None) -> Constants:
    """What to price a setup with: the calibration's constants where it applies, else the shipped."""
    return calibration.constants if applies(calibration, setup) else constants_of(setup.stack)


def step_interval(setup: Setup, calibration: Calibration | None = None) -> Interval:
    """Seconds of a step with their 90 % interval; a calibration applies to setups of its stack."""
    constants = constants_for(setup, calibration)
    seconds = step_time(setup, constants).total
    if applies(calibration, setup):
        return log_normal(seconds, calibration.expert_spread if setup.model.is_moe else calibration.spread)
    return log_normal(seconds, step_spread(setup, constants))


def step_spread(setup: Setup, constants: Constants) -> float:
    """Standard deviation of ln(measured / predicted step) where nothing of the source was seen."""
    experts = constants.expert_between if setup.model.is_moe else 0.0
    return math.hypot(constants.between, constants.within, experts)


def calibrate(runs: Sequence[tuple[Setup, float]], source: str) -> Calibration:
    """Fit a stack's constants to (setup, seconds of a step) of finished runs, all of one stack.

    Raises UserError without runs, for several stacks, and for an implausible step time (measured_bounds).
    """
    if not runs:
        raise UserError(f"{source}: no run has a step time and a setup that can be expressed: nothing to calibrate by")
    stacks = sorted({setup.stack for setup, _ in runs})
    if len(stacks) > 1:
        seen = ", ".join(stacks)
        raise UserError(f"{source}: runs of {len(stacks)} stacks ({seen}): calibrate one at a time, --stack")
    shipped = constants_of(runs[0][0].stack)
    for place, (setup, seconds) in enumerate(runs, start=1):
        if problem := implausible(setup, seconds):
            raise UserError(f"{source}, run {place}: {problem}")
    changes = _fit(runs)
    residuals = _errors(runs, replace(shipped, **changes))
    held_out = _held_out_errors(runs, shipped) if len(runs) > 2 else []
    return Calibration(
        stack=runs[0][0].stack,
        changes=changes,
        spread=_spread(runs, (residuals, held_out), shipped, experts=False),
        expert_spread=_spread(runs, (residuals, held_out), shipped, experts=True),
        num_runs=len(runs),
        before=_rms(_errors(runs, shipped)),
        after=_rms(residuals),
        left_out=_rms(held_out),
        source=source,
    )


def _held_out_errors(runs: Sequence[tuple[Setup, float]], shipped: Constants) -> list[float]:
    """The error of each run when it is predicted from the others; many runs are held out by tenths."""
    folds = min(len(runs), _MOST_FOLDS)
    errors = [0.0] * len(runs)
    for fold in range(folds):
        rest = [run for index, run in enumerate(runs) if index % folds != fold]
        errors[fold::folds] = _errors(runs[fold::folds], replace(shipped, **_fit(rest)))
    return errors


def _spread(
    runs: Sequence[tuple[Setup, float]], errors: Sequence[Sequence[float]], shipped: Constants, *, experts: bool
) -> float:
    """Spread of a new run with or without experts, by the errors of the runs that are like it in this.

    errors: of the fit and of held-out runs, empty where there are none; the larger count, since a fit of ten constants
    to a few runs leaves less than a new run will err. Runs with experts differ as much within a source of many releases
    as from source to source, so that the shipped expert_between is noise of each.
    """
    places = [place for place, (setup, _) in enumerate(runs) if setup.model.is_moe == experts]
    alike = [[kind[place] for place in places] for kind in errors if kind]
    largest = max(alike, key=lambda kind: sum(error**2 for error in kind))
    within = math.hypot(shipped.within, shipped.expert_between) if experts else shipped.within
    return remaining_spread(largest, between=shipped.between, within=within)


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
    priors = _priors(shipped)

    def changes(shift: Any) -> dict[str, float]:
        found = {}
        for (name, width), part in zip(priors.items(), shift, strict=True):
            value = getattr(shipped, name)
            if name in ODDS_PRIOR:
                found[name] = 1.0 / (1.0 + (1.0 / value - 1.0) * math.exp(-width * part))
            else:
                found[name] = value * math.exp(width * part)
        return found

    def residuals(shift: Any) -> Any:
        errors = _errors(runs, replace(shipped, **changes(shift)))
        return np.concatenate([np.array(errors) / shipped.within, shift])

    fit = least_squares(residuals, np.zeros(len(priors)), loss="soft_l1", diff_step=1e-4)
    return {name: float(value) for name, value in changes(fit.x).items()}


def _priors(shipped: Constants) -> dict[str, float]:
    """Prior standard deviations of what is fitted: an overlap of 0 has no log-odds, what a stack cannot do is left."""
    logs = {name: width for name, width in PRIOR.items() if getattr(shipped, name) > 0}
    return logs | {name: width for name, width in ODDS_PRIOR.items() if 0 < getattr(shipped, name) < 1}


def _log_odds(share: float) -> float:
    return math.log(share / (1.0 - share))


def _errors(runs: Sequence[tuple[Setup, float]], constants: Constants) -> list[float]:
    """ln(predicted / measured) of each run."""
    return [math.log(step_time(setup, constants).total / seconds) for setup, seconds in runs]


def _rms(errors: Sequence[float]) -> float:
    """Root mean square; NaN without any."""
    return math.sqrt(statistics.fmean(error**2 for error in errors)) if errors else math.nan
