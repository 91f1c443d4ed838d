"""GPU-hours of a whole measured run from what its row says was set, and by a constant utilisation."""

import re
from dataclasses import dataclass

from analysis.cost.calibration import Calibration, step_interval
from analysis.cost.counts import parameters
from analysis.cost.goodput import goodput
from analysis.cost.interval import Interval, product, quotient
from analysis.cost.measured import describe, device_of
from analysis.cost.measured_cells import NotExpressible, Row, number
from analysis.cost.measured_model import named_model
from analysis.cost.run_utilisation import RunFacts, run_gpu_hours
from analysis.cost.setup import Setup
from scaling.errors import UserError


@dataclass(frozen=True)
class PredictedHours:
    """GPU-hours of a run; its setup, or None with the reason where published runs were asked instead of a step time."""

    hours: Interval
    setup: Setup | None
    assumptions: tuple[str, ...]


def predicted_hours(row: Row, calibration: Calibration | None = None) -> PredictedHours:
    """From the step time and the goodput where the row gives a layout, else from what published runs reach.

    Raises NotExpressible without parameters, tokens or a device of the table.
    """
    facts = _facts(row)
    try:
        described = describe(row)
    except NotExpressible as reason:
        return PredictedHours(run_gpu_hours(facts), None, (f"GPU-hours are those of published runs, since {reason}",))
    setup = described.setup
    busy = step_interval(setup, calibration).scaled(facts.tokens / setup.tokens_per_step * setup.num_gpus / 3600.0)
    return PredictedHours(product(busy, quotient(1.0, goodput(setup.num_gpus))), setup, described.assumptions)


def baseline_hours(row: Row, utilisation: float) -> float:
    """6 x active parameters x tokens at one utilisation of the dense bf16 peak, in GPU-hours."""
    facts = _facts(row)
    return 6.0 * (facts.active_params or facts.params) * facts.tokens / (3600.0 * utilisation * facts.device.bf16_flops)


def _facts(row: Row) -> RunFacts:
    device = device_of(row, [])
    tokens = number(row, "tokens_T")
    if tokens is None:
        raise NotExpressible("tokens_T is not given")
    total, active = number(row, "params_total_B"), number(row, "params_active_B")
    if total is None:
        try:
            count = parameters(named_model(row["model"]))
        except UserError as error:
            raise NotExpressible(f"params_total_B is not given, and {error}") from None
        total, active = count.total / 1e9, count.active / 1e9
    if active is None:
        active = _known_active(row["model"], total)
    try:
        return RunFacts(
            params=1e9 * total,
            tokens=1e12 * tokens,
            device=device,
            active_params=None if active is None or active > total else 1e9 * active,
            year=_year(row.get("date") or ""),
        )
    except UserError as error:
        raise NotExpressible(str(error)) from None


def _known_active(name: str, total: float) -> float | None:
    """1e9 active parameters of a known model of that name and about that size; None for any other.

    Models with experts are often said to have experts x parameters, though experts share all but their MLPs.
    """
    try:
        count = parameters(named_model(name))
    except UserError:
        return None
    most = 1.5 if count.active < count.total else 1.1
    return count.active / 1e9 if 0.9 < total / (count.total / 1e9) < most else None


def _year(text: str) -> float | None:
    """Decimal year of "2023-04-01", "2023-04" or "2023"."""
    found = re.match(r"(20\d\d)(?:-(\d\d?))?", text)
    if found is None:
        return None
    return int(found[1]) + (0.5 if found[2] is None else (int(found[2]) - 0.5) / 12)
