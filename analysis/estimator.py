"""The estimator of any form: its objective minimised from several starts, for one table or for many resamples.

Hoffmann et al. 2022 use thousands of starts. Centred log regressors, a curvature-scaled first step, the analytic
gradient and starts by variable projection reach the same optimum from nearly every start, in milliseconds.
All arithmetic is float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from analysis.laws import ChinchillaLaw, Law
from analysis.objective import LOSSES, Objective
from analysis.selection import Selection
from scaling.errors import UserError

#: Rows x points handled at once: the temporaries then stay in a core's cache.
_CHUNK_ELEMENTS = 60_000


@dataclass(frozen=True)
class Estimator:
    """The settings of a fit; all are reported with it.

    form: what is fitted. loss: "huber", "log" or "linear" (see `analysis.objective`).
    delta: residual of log loss at which Huber's function turns from square to linear; used by "huber" only.
    held: parameters that are kept at a value, such as {"E": 1.69}.
    num_starts: starts that are polished; raise it where a coefficient is held and its exponent is not.
    tolerance: a start is done when three steps in a row lower the objective by less than this share of it;
        `resample_tolerance` is the same for bootstrap resamples.
    """

    form: type[Law] = ChinchillaLaw
    loss: str = "huber"
    delta: float = 1e-3
    held: Mapping[str, float] = field(default_factory=dict)
    num_starts: int = 6
    tolerance: float = 1e-10
    resample_tolerance: float = 1e-8
    max_iterations: int = 300

    def __post_init__(self) -> None:
        names = [f.name for f in fields(self.form)]
        unknown = [name for name in self.held if name not in names]
        if self.loss not in LOSSES:
            raise UserError(f"loss = {self.loss!r}: must be one of {', '.join(LOSSES)}")
        if not self.delta > 0:
            raise UserError(f"delta = {self.delta}: must be above zero; 1e-3 is usual")
        if unknown:
            raise UserError(f"held {unknown[0]}: {self.form.form} has no such parameter; it has {', '.join(names)}")

    @property
    def projects(self) -> bool:
        """Whether linear coefficients are solved for exactly instead of searched: exact for squares of linear loss."""
        return self.loss == "linear" and self.form.linear > 0 and not self.held

    @property
    def method(self) -> str:
        """The estimator in words, as reported."""
        what = {
            "huber": f"Huber loss on the log of the {self.form.target}, delta {self.delta:g}",
            "log": f"least squares on the log of the {self.form.target}",
            "linear": f"least squares on the {self.form.target}",
        }[self.loss]
        how = "variable projection with non-negative coefficients" if self.projects else "BFGS from several starts"
        return f"{what}; {how}"

    def settings(self) -> dict[str, Any]:
        """The settings as plain data, for `law.json`."""
        return {
            "form": self.form.name,
            "loss": self.loss,
            "delta": self.delta if self.loss == "huber" else None,
            "held": dict(self.held),
            "num_starts": self.num_starts,
        }


@dataclass(frozen=True)
class Fit:
    """A fitted law and how sure the optimiser is of it (not how sure the data are)."""

    law: Law
    objective: float
    r_squared_log_loss: float
    n_points: int
    num_starts: int
    num_starts_at_best: int
    converged: bool
    gradient_norm: float
    condition_number: float
    coordinates: np.ndarray
    """The optimum as the optimiser sees it, [k]: where refits of resamples begin."""
    estimator: Estimator
    optima: np.ndarray
    """Where each converged start ended, [starts, k], and the objective there, [starts]."""
    optima_objectives: np.ndarray
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the rows were chosen and weighted, when `analysis.fit` made the fit."""
    rows: Selection | None = field(default=None, repr=False)
    """These rows, for intervals."""


def objective_of(inputs: Sequence[Any], target: Any, estimator: Estimator) -> tuple[Objective, np.ndarray]:
    """What a fit of these rows minimises, and the centre [inputs] that its coordinates refer to."""
    form = estimator.form
    columns = np.stack([np.asarray(column, np.float64) for column in inputs])
    regressors = form.regressors(columns)
    # A held coefficient is known in the units of the inputs, so these are then not centred.
    in_units = form.coefficients_in_units & set(estimator.held)
    centre = np.zeros(len(columns)) if in_units else form.centre(regressors)
    held = _held_coordinates(estimator, centre)
    objective = Objective(
        form, regressors - centre[:, None], np.asarray(target, np.float64), estimator.loss, estimator.delta, held
    )
    return objective, centre


def _held_coordinates(estimator: Estimator, centre: np.ndarray) -> dict[int, float]:
    """Index and value of the coordinates that held parameters pin: parameter i is coordinate i in every form.

    Raises UserError for a parameter that no coordinate stands for unless others are held as well.
    """
    names = [f.name for f in fields(estimator.form)]
    first, second = (
        estimator.form(*(float(estimator.held.get(name, free**i)) for i, name in enumerate(names))).coordinates(centre)
        for free in (1.0, 1.5)
    )
    for name in estimator.held:
        if not np.isclose(first[names.index(name)], second[names.index(name)], rtol=1e-12, atol=1e-12):
            raise UserError(f"held {name}: {estimator.form.name} can hold it only together with its exponents")
    return {names.index(name): float(first[names.index(name)]) for name in estimator.held}


def _distinct_best(starts: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The `count` best starts that differ from better ones by a good step in some exponent or term."""
    chosen: list[int] = []
    for candidate in np.argsort(values, kind="stable"):
        if len(chosen) == count or not np.isfinite(values[candidate]):
            break
        if all(np.abs(starts[candidate] - starts[other]).max() > 0.4 for other in chosen):
            chosen.append(candidate)
    return starts[chosen]


def _chunks(rows: np.ndarray, points: int) -> list[np.ndarray]:
    """The rows [m, ...] in parts that are evaluated at once at so many points each."""
    size = max(1, _CHUNK_ELEMENTS // points)
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _condition(curvature: np.ndarray) -> float:
    """Condition number of a matrix [k, k]; infinite where a degenerate law makes it overflow."""
    return float(np.linalg.cond(curvature)) if np.isfinite(curvature).all() else float("inf")


def fit_law(inputs: Sequence[Any], target: Any, estimator: Estimator = Estimator(), weights: Any = None) -> Fit:
    """The law that fits rows best.

    inputs: one column [n] for each of `estimator.form.inputs`, such as (params, tokens); target [n], such as the loss
    in nats per token; weights [n] or None for equal ones. Raises UserError when the form cannot be evaluated at any
    start.
    """
    objective, centre = objective_of(inputs, target, estimator)
    weight = np.ones((1, len(objective.target))) if weights is None else np.asarray(weights, np.float64)[None]
    candidates = objective.hold(estimator.form.starting_points(objective.x, objective.log_target))
    values = [objective.value_and_gradient(part, weight)[0] for part in _chunks(candidates, len(objective.target))]
    starts = _distinct_best(candidates, np.concatenate(values), estimator.num_starts)
    if not len(starts):
        raise UserError(f"form = {estimator.form.name}: no start of the fit is finite on these rows; use another form")
    search = objective.projected_minima if estimator.projects else objective.minima
    found = search(starts, np.repeat(weight, len(starts), 0), estimator.tolerance, estimator.max_iterations)
    best = int(np.nanargmin(found.value))
    theta = found.theta[best]
    ended = found.converged & np.isfinite(found.value)
    residual = objective.form.log_prediction(theta[None], objective.x)[0] - objective.log_target
    spread = ((objective.log_target - objective.log_target.mean()) ** 2).sum()
    return Fit(
        law=estimator.form.from_coordinates(theta, centre),
        objective=float(found.value[best]),
        r_squared_log_loss=float(1 - (residual**2).sum() / spread) if spread > 0 else float("nan"),
        n_points=len(objective.target),
        num_starts=len(starts),
        num_starts_at_best=int(np.isclose(found.value, found.value[best], rtol=1e-6, atol=1e-20).sum()),
        converged=bool(found.converged[best]),
        gradient_norm=float(np.abs(found.gradient[best]).max()),
        condition_number=_condition(objective.curvature(theta[None], weight)[0]),
        coordinates=theta,
        estimator=estimator,
        optima=found.theta[ended],
        optima_objectives=found.value[ended],
    )


def refit(inputs: Sequence[Any], target: Any, weights: np.ndarray, fit: Fit) -> Law:
    """The same fit under R weightings of the rows, weights [R, n]: R laws in one object, whose fields are [R].

    For a bootstrap the weights are the counts of each row (times its own weight). Each refit begins at the optimum of
    all the data. On real tables, also an ill-conditioned one of 16 runs, more starts lowered no resample's objective by
    1 % and moved no end of an interval by 0.005.
    """
    estimator = fit.estimator
    objective, centre = objective_of(inputs, target, estimator)
    search = objective.projected_minima if estimator.projects else objective.minima
    found = [
        search(
            np.tile(fit.coordinates, (len(part), 1)), part, estimator.resample_tolerance, estimator.max_iterations
        ).theta
        for part in _chunks(weights, len(objective.target))
    ]
    return estimator.form.from_coordinates(np.concatenate(found), centre)
