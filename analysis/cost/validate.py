"""How good the estimates are: blind predictions for a table of measured runs, beside a constant-utilisation rule.

A prediction is made from what a row says was set (measured.describe); what it says was measured is read afterwards.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.cost.calibration import Calibration, step_interval
from analysis.cost.interval import Interval
from analysis.cost.measured import Described, Measured, describe, measurements
from analysis.cost.measured_bounds import seconds_at_peak, too_fast, too_large
from analysis.cost.measured_cells import NotExpressible, Row
from analysis.cost.measured_hours import baseline_hours, predicted_hours
from analysis.cost.memory import memory
from analysis.cost.setup import Setup, Stack

#: The rule to beat: every run reaches this share of its precision's dense peak in model FLOPs (causal attention).
BASELINE_UTILISATION = 0.40


@dataclass(frozen=True)
class Comparison:
    """One quantity of one row: predicted, measured, and what the rule says (None where there is no rule)."""

    id: str
    group: str
    quantity: str
    predicted: Interval
    measured: float
    baseline: float | None
    #: Of a step time or hours made of it, the stack; None where no step time is behind it.
    stack: Stack | None = None

    @property
    def error(self) -> float:
        """(predicted - measured) / measured, percent."""
        return 100.0 * (self.predicted.value / self.measured - 1.0)

    @property
    def covered(self) -> bool:
        """Whether the measured value lies in the interval."""
        return self.predicted.low <= self.measured <= self.predicted.high


def validate(rows: Iterable[Row], calibration: Calibration | None = None) -> dict[str, Any]:
    """{"groups": {name: {quantity: scores}}, "overall": {quantity: scores}, "not_expressible": [{"id", "reason"}],
    "assumed": [{"id", "assumptions"}], "warnings": [one line each]}.

    quantities: step_time, memory (peak of one GPU), gpu_hours. Scores, in percent: mape (mean absolute error),
    median_error (of the absolute errors), bias (mean error), baseline_mape; coverage of the 90 % interval, a fraction;
    n. A quantity that no row has is null. assumed: of the rows that were predicted, what they left open.
    """
    comparisons, refused, assumed = compare(rows, calibration)
    groups: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        groups[comparison.group].append(comparison)
    return {
        "groups": {name: _scores(group) for name, group in sorted(groups.items())},
        "overall": _scores(comparisons),
        "not_expressible": refused,
        "assumed": assumed,
        "warnings": _warnings(comparisons, calibration),
    }


def _warnings(comparisons: Sequence[Comparison], calibration: Calibration | None) -> list[str]:
    """What to know of the calibration: that it is bad, and where it was not used."""
    if calibration is None:
        return []
    said = [calibration.warning] if calibration.warning else []
    others = Counter(one.stack for one in comparisons if one.stack not in (None, calibration.stack))
    said += [
        f"the calibration is of the stack {calibration.stack}: not used for {count} prediction(s) of {stack}"
        for stack, count in sorted(others.items())
    ]
    return said


def compare(
    rows: Iterable[Row], calibration: Calibration | None = None
) -> tuple[list[Comparison], list[dict[str, str]], list[dict[str, Any]]]:
    """Every prediction beside its measurement, the rows that cannot be expressed, and what others leave open.

    A row without an `id` goes by the line that it would have in a table.
    """
    found: list[Comparison] = []
    refused, assumed = [], []
    for index, row in enumerate(rows, start=2):
        name, group = row.get("id") or f"line {index}", row.get("group") or "all"
        said: list[str] = []
        try:
            measured = measurements(row)
        except NotExpressible as error:
            refused.append({"id": name, "reason": str(error)})
            continue
        if measured.step_seconds or measured.peak_gib:
            try:
                described = describe(row)
                found += _step(name, group, described.setup, measured, calibration)
                said += described.assumptions
                found += _memory(name, group, described, measured)
            except NotExpressible as error:
                refused.append({"id": name, "reason": str(error)})
        if measured.gpu_hours:
            try:
                hours, rule = predicted_hours(row, calibration), baseline_hours(row, BASELINE_UTILISATION)
                stack = hours.setup and hours.setup.stack
                found.append(Comparison(name, group, "gpu_hours", hours.hours, measured.gpu_hours, rule, stack))
                said += [text for text in hours.assumptions if text not in said]
            except NotExpressible as error:
                refused.append({"id": name, "reason": f"GPU-hours: {error}"})
        elif not (measured.step_seconds or measured.peak_gib):
            nothing = "neither step time nor memory nor GPU-hours were measured"
            refused.append({"id": name, "reason": measured.no_step or nothing})
        if said:
            assumed.append({"id": name, "assumptions": said})
    return found, refused, assumed


def _step(name: str, group: str, setup: Setup, measured: Measured, calibration: Calibration | None) -> list[Comparison]:
    """Raises NotExpressible for a step time that no run can have had."""
    seconds = measured.step_seconds
    if not seconds:
        return []
    if problem := too_fast(setup, seconds):
        raise NotExpressible(problem)
    predicted = step_interval(setup, calibration)
    return [Comparison(name, group, "step_time", predicted, seconds, baseline_seconds(setup), setup.stack)]


def _memory(name: str, group: str, described: Described, measured: Measured) -> list[Comparison]:
    """The estimate of what was measured: tensors, the allocator's share, or all that the device shows.

    Raises NotExpressible for a peak that no run can have had, and where what it depends on most is not known.
    """
    setup, gib = described.setup, measured.peak_gib
    if not gib:
        return []
    if problem := too_large(setup, gib):
        raise NotExpressible(problem)
    if "micro_batch_size" in described.open_fields:
        raise NotExpressible("peak memory: micro_batch is not given")
    predicted = memory(setup).interval(measured.memory_metric).scaled(1 / 2**30)
    return [Comparison(name, group, "memory", predicted, gib, None)]


def baseline_seconds(setup: Setup, utilisation: float = BASELINE_UTILISATION) -> float:
    """Seconds of a step at one utilisation of the dense peak."""
    return seconds_at_peak(setup) / utilisation


def _scores(comparisons: Sequence[Comparison]) -> dict[str, dict[str, float] | None]:
    return {
        quantity: score([one for one in comparisons if one.quantity == quantity])
        for quantity in ("step_time", "memory", "gpu_hours")
    }


def score(comparisons: Sequence[Comparison]) -> dict[str, float] | None:
    """n, mape, median_error, bias, coverage and baseline_mape of one quantity; None without any."""
    if not comparisons:
        return None
    errors = [comparison.error for comparison in comparisons]
    absolute = [abs(error) for error in errors]
    rules = [
        100.0 * abs(comparison.baseline / comparison.measured - 1.0)
        for comparison in comparisons
        if comparison.baseline is not None
    ]
    return {
        "n": len(comparisons),
        "mape": statistics.fmean(absolute),
        "median_error": statistics.median(absolute),
        "bias": statistics.fmean(errors),
        "coverage": statistics.fmean(comparison.covered for comparison in comparisons),
        "baseline_mape": statistics.fmean(rules) if rules else math.nan,
    }
