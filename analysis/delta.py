"""Intervals without resampling: the delta method, from the curvature of the objective at its minimum.

The covariance of the coordinates is the sandwich of an M-estimator with equally noisy rows, H^-1 V H^-1 with
H = E[psi'] J' W J and V = E[psi^2] J' W^2 J (Huber and Ronchetti 2009, section 7.6): J is the derivative of the
predictions, W the weights, psi the derivative of the loss. It is carried to a quantity by the quantity's gradient, in
the log of what is positive. An optimiser's running inverse Hessian is no covariance and is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.estimator import Fit, objective_of
from analysis.objective import Objective
from analysis.quantity import Quantity

#: Of the central differences of a quantity; coordinates are logarithms, of order one.
_STEP = 1e-5
#: First differences below this share of second differences are rounding; a real slope's are 1e5 times larger.
_EXTREME = 1e-2


@dataclass(frozen=True)
class Covariance:
    """How uncertain a fit is near its optimum, in its coordinates [k]; held ones have no variance.

    bread: H^-1, [k, k]; root: a square root of the covariance, [k, n]. degrees: runs less free parameters.
    """

    fit: Fit
    centre: np.ndarray
    bread: np.ndarray
    root: np.ndarray
    degrees: int

    @property
    def matrix(self) -> np.ndarray:
        """The covariance, [k, k]."""
        return self.root @ self.root.T

    def variance(self, slope: np.ndarray) -> float:
        """Of what has this slope [k]: a sum of squares, which rounding cannot make negative."""
        return float(((slope @ self.root) ** 2).sum())

    def values(self, quantity: Quantity, theta: np.ndarray) -> np.ndarray:
        """The quantity on its own scale at coordinates theta [m, k] -> [m]."""
        return quantity.scale(quantity.of(self.fit.estimator.form.from_coordinates(theta, self.centre)))

    def gradient(self, quantity: Quantity, theta: np.ndarray) -> np.ndarray:
        """Its derivative by the coordinates, [m, k], by central differences."""
        ahead, behind = self._beside(quantity, theta)
        return (ahead - behind) / (2 * _STEP)

    def slope(self, quantity: Quantity) -> np.ndarray:
        """Its derivative at the estimate, [k].

        Raises ValueError for a quantity that is smallest or largest there, such as the waste of the estimate's own
        optimum: to first order it does not vary. nan where a degenerate form makes the quantity infinite.
        """
        best = self.fit.coordinates[None]
        ahead, behind = self._beside(quantity, best)
        with np.errstate(invalid="ignore"):
            change = ahead - behind
            bend = np.abs(ahead + behind - 2 * self.values(quantity, best)[:, None]).max()
        if np.abs(change).max() < _EXTREME * bend:
            raise ValueError(f"{quantity.name}: is at its extreme at the estimate itself: use a bootstrap")
        return change[0] / (2 * _STEP)

    def _beside(self, quantity: Quantity, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The quantity one step ahead and behind in each coordinate, [m, k] each."""
        m, k = theta.shape
        steps = _STEP * np.concatenate([np.eye(k), -np.eye(k)])
        values = self.values(quantity, (theta[:, None, :] + steps).reshape(-1, k)).reshape(m, 2, k)
        return values[:, 0], values[:, 1]

    def standard_error(self, quantity: Quantity) -> float:
        """Of the quantity on its own scale: relative, when it is positive. ValueError as in `slope`."""
        return float(np.sqrt(self.variance(self.slope(quantity))))

    def interval(self, quantity: Quantity, level: float = 0.9) -> tuple[float, float]:
        """Student's t interval. ValueError as in `slope`."""
        centre = self.values(quantity, self.fit.coordinates[None])[0]
        half = student_quantile(level, self.degrees) * self.standard_error(quantity)
        low, high = quantity.unscale(np.array([centre - half, centre + half]))
        return float(low), float(high)


def covariance(inputs: Sequence[Any], target: Any, fit: Fit, weights: Any = None) -> Covariance:
    """The covariance of a fit of these rows; arguments as for `fit_law`.

    Raises ValueError when no run is left over once the parameters are fitted.
    """
    objective, centre = objective_of(inputs, target, fit.estimator)
    weight = np.ones(len(objective.target)) if weights is None else np.asarray(weights, np.float64)
    theta = fit.coordinates[None]
    residual, jacobian = objective.residual(theta)
    free = np.setdiff1d(np.arange(theta.shape[1]), list(objective.held))
    columns = jacobian[0, free]
    degrees = len(weight) - len(free)
    if degrees < 1:
        raise ValueError(f"{len(weight)} runs and {len(free)} parameters: no run is left to judge the noise by")
    noise, slope = _psi_moments(residual[0], objective, degrees)
    bread = _inverse(slope * (columns * weight) @ columns.T)
    whole_bread, root = np.zeros((theta.shape[1],) * 2), np.zeros((theta.shape[1], len(weight)))
    whole_bread[np.ix_(free, free)] = bread
    root[free] = np.sqrt(noise) * bread @ (columns * weight)
    return Covariance(fit, centre, whole_bread, root, degrees)


def student_quantile(level: float, degrees: int) -> float:
    """Half-width, in standard errors, of a two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))


def _psi_moments(residual: np.ndarray, objective: Objective, degrees: int) -> tuple[float, float]:
    """E[psi^2] and E[psi'] from residuals [n], for the loss that is minimised."""
    if objective.linear:
        return 4 * (residual**2).sum() / degrees, 2.0
    noise = (np.clip(residual, -objective.delta, objective.delta) ** 2).sum() / degrees
    if np.isinf(objective.delta):
        return noise, 1.0
    # As many residuals as there are parameters are near zero because the fit passes through them, not because noise is
    # small there: they are left out. Below the median, where few residuals fall inside delta, their density is taken
    # to be that up to the median.
    honest = np.sort(np.abs(residual))[len(residual) - degrees :]
    middle = np.median(honest)
    if objective.delta < middle:
        return noise, 0.5 * objective.delta / middle
    return noise, float((honest <= objective.delta).mean())


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a symmetric positive matrix; directions without curvature get a huge variance, not an error."""
    diagonal = np.diag(matrix)
    scale = 1 / np.sqrt(np.maximum(diagonal, np.finfo(float).eps ** 2 * diagonal.max(initial=1e-100)))
    values, vectors = np.linalg.eigh(matrix * scale[:, None] * scale)
    root = vectors * (scale[:, None] / np.sqrt(np.maximum(values, np.finfo(float).eps)))
    return root @ root.T
