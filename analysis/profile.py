"""Profile likelihood of any quantity: how much worse the best fit gets when the quantity is held elsewhere.

For values v the rest of the law is fitted again under the penalty (q - v)^2. The minimum of objective + penalty is
also the lowest objective at its own q, whatever the penalty's weight, so the profile is read at those q.
Heights are deviances: squared distances in standard errors, which near the optimum are the delta method's (Kent 1982
scales the likelihood ratio so for a loss that is not the likelihood). Farther out they see the form's curvature, and
an open end shows what the data cannot tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.delta import Covariance, covariance, student_quantile
from analysis.estimator import Fit, objective_of
from analysis.minimise import minimise
from analysis.objective import Objective
from analysis.quantity import Quantity

#: Weight of the penalty against the profile's own curvature: the points end within a tenth of where they are wanted.
_PENALTY = 10.0
_TOLERANCE, _MAX_ITERATIONS = 1e-9, 200
#: How far an end is searched: this many standard errors to each side at first, then wider.
_SPANS = (3.0, 9.0, 27.0)
#: ... but no farther than e^this for a positive quantity: more than six decades tells nobody anything.
_FARTHEST = 14.0


@dataclass(frozen=True)
class Profile:
    """values [m] of a quantity, ascending, and the deviance [m] of the best fit at each; 0 at the estimate.

    low, high: where the deviance passes the threshold; 0, -inf or inf where it never does.
    """

    quantity: Quantity
    values: np.ndarray
    deviance: np.ndarray
    threshold: float
    low: float
    high: float

    @property
    def decades(self) -> float:
        """Width of the interval of a positive quantity in decades; infinite when an end is open."""
        if not (self.low > 0 and np.isfinite(self.high)):
            return float("inf")
        return float(np.log10(self.high / self.low))


def profile(
    inputs: Sequence[Any],
    target: Any,
    fit: Fit,
    quantity: Quantity,
    weights: Any = None,
    *,
    level: float = 0.9,
    points: int = 16,
) -> Profile:
    """The profile of a quantity about a fit of these rows, with the interval at `level`.

    inputs, target, weights: as for `fit_law`. points: fits on the profile, an even number. Raises ValueError when the
    quantity is held, infinite, or at its extreme at the estimate as waste is, or when no run is left over.
    """
    objective, _ = objective_of(inputs, target, fit.estimator)
    weight = np.ones(len(objective.target)) if weights is None else np.asarray(weights, np.float64)
    around = covariance(inputs, target, fit, weights)
    gradient = around.slope(quantity)
    curvature, variance = gradient @ around.bread @ gradient, around.variance(gradient)
    if not variance > 0:
        raise ValueError(f"{quantity.name}: is held, or infinite at the estimate, so it has no profile")
    centre = around.values(quantity, fit.coordinates[None])[0]
    threshold = student_quantile(level, around.degrees) ** 2
    values, deviance = np.array([centre]), np.array([0.0])
    for span in _SPANS:
        reach = span * np.sqrt(variance)
        farthest = min(reach, _FARTHEST) if quantity.positive else reach
        wanted = centre + farthest * np.linspace(-1, 1, points + 1)[np.arange(points + 1) != points // 2]
        with np.errstate(invalid="ignore", over="ignore"):  # far out curvatures overflow; such steps are rejected
            found, objectives = _constrained(objective, weight, around, quantity, wanted, gradient, curvature)
        rise = 2 * (objectives - fit.objective) * curvature / variance
        values, deviance = np.append(values, found), np.append(deviance, np.maximum(rise, 0.0))
        sides = [deviance[side].max(initial=0) > threshold for side in (values < centre, values > centre)]
        if all(sides) or farthest < reach:
            break
    order = np.argsort(values)
    values, deviance = values[order], deviance[order]
    low, high = (_crossing(sign * (values - centre), deviance, threshold) for sign in (-1, 1))
    low, high = quantity.unscale(np.array([centre - low, centre + high]))
    return Profile(quantity, quantity.unscale(values), deviance, threshold, float(low), float(high))


def _constrained(
    objective: Objective,
    weight: np.ndarray,
    around: Covariance,
    quantity: Quantity,
    wanted: np.ndarray,
    gradient: np.ndarray,
    curvature: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Best fits near the wanted values [m] -> the values reached [m] and the objectives there [m]."""
    best = around.fit.coordinates
    centre = around.values(quantity, best[None])[0]
    penalty = _PENALTY / curvature
    weights = np.broadcast_to(weight, (1, len(weight)))
    held = list(objective.held)

    def penalised(theta: np.ndarray, problem: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, slope = objective.value_and_gradient(theta, weights)
        with np.errstate(invalid="ignore", over="ignore"):  # the line search rejects what is not finite
            off = around.values(quantity, theta) - wanted[problem]
            by_theta = around.gradient(quantity, theta)
            by_theta[:, held] = 0.0
            return value + 0.5 * penalty * off**2, slope + penalty * off[:, None] * by_theta

    # First order: the best law at q = v lies along H^-1 gradient. Curvature of the sum, by Sherman and Morrison 1950.
    along = around.bread @ gradient / curvature
    first = around.bread - (penalty / (1 + _PENALTY)) * curvature**2 * np.outer(along, along)
    starts = best + np.clip((wanted - centre)[:, None] * along, -2.0, 2.0)
    size = len(wanted)
    theta, height = starts, np.full(size, np.inf)
    # Then every point begins again from its inner neighbour's: far out the first order can lead to a worse valley.
    inner = np.arange(size) + np.where(np.arange(size) < size // 2, 1, -1)
    for source in (np.arange(size), inner):
        found = minimise(
            penalised,
            theta[source],
            np.repeat(first[None], size, 0),
            tolerance=_TOLERANCE,
            max_iterations=_MAX_ITERATIONS,
        )
        better = found.value < height
        theta = np.where(better[:, None], found.theta, theta)
        height = np.where(better, found.value, height)
    usable = np.isfinite(height)
    values = around.values(quantity, theta[usable])
    return values, objective.value_and_gradient(theta[usable], weights)[0]


def _crossing(distance: np.ndarray, deviance: np.ndarray, threshold: float) -> float:
    """Distance > 0 at which the deviance first passes the threshold, between points linearly in its root; or inf."""
    right = distance >= 0
    order = np.argsort(distance[right])
    along, root = distance[right][order], np.sqrt(deviance[right][order])
    beyond = np.flatnonzero(root > np.sqrt(threshold))
    if not len(beyond):
        return float("inf")
    last = beyond[0]
    share = (np.sqrt(threshold) - root[last - 1]) / (root[last] - root[last - 1])
    return float(along[last - 1] + share * (along[last] - along[last - 1]))
