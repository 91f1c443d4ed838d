"""What a fit minimises: the distance of predictions from the measured target, and its gradient, batched.

loss = "huber": sum_i w_i Huber_delta(log prediction_i - log target_i), Hoffmann et al. 2022, section 3.3.
loss = "log": 1/2 sum_i w_i (log prediction_i - log target_i)^2, the same with delta infinite.
loss = "linear": sum_i w_i (prediction_i - target_i)^2.
All arithmetic is float64.
"""

from collections.abc import Mapping

import numpy as np

from analysis.law import Law
from analysis.minimise import Minima, minimise
from analysis.starts import nonnegative_least_squares

LOSSES = ("huber", "log", "linear")
#: A coefficient that variable projection puts at zero; its logarithm must stay finite.
_ZERO = 1e-300


class Objective:
    """The objective of one table under R weightings w [R, n] of its rows.

    x [inputs, n]: centred regressors; target [n]; held: coordinate -> value it is kept at.
    """

    def __init__(
        self,
        form: type[Law],
        x: np.ndarray,
        target: np.ndarray,
        loss: str,
        delta: float,
        held: Mapping[int, float] | None = None,
    ):
        self.form, self.x, self.target, self.log_target = form, x, target, np.log(target)
        self.linear, self.delta = loss == "linear", delta if loss == "huber" else np.inf
        self.held = dict(held or {})

    def value_and_gradient(self, theta: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objective [m] and its gradient [m, k] at theta [m, k] under weights [m, n] or [1, n]."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the line search rejects what overflows
            residual, jacobian = self.residual(theta)
            if self.linear:
                slope = 2 * residual
                value = (weights * residual * residual).sum(1)
            else:
                slope = np.clip(residual, -self.delta, self.delta)
                value = (weights * slope * (residual - 0.5 * slope)).sum(1)
            gradient = np.matmul(jacobian, (weights * slope)[:, :, None])[:, :, 0]
        gradient[:, list(self.held)] = 0.0
        return value, gradient

    def curvature(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gauss-Newton matrix [m, k, k], each residual weighted as in iteratively reweighted least squares."""
        residual, jacobian = self.residual(theta)
        if self.linear:
            weights = 2 * weights
        else:
            weights = weights * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), np.finfo(float).tiny))
        return np.matmul(jacobian * weights[:, None, :], jacobian.transpose(0, 2, 1))

    def residual(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prediction less target, or log of their ratio, [m, n]; and its derivative by theta [m, k, n]."""
        log_prediction, jacobian = self.form.log_prediction(theta, self.x)
        if self.linear:
            prediction = np.exp(log_prediction)
            return prediction - self.target, jacobian * prediction[:, None, :]
        return log_prediction - self.log_target, jacobian

    def hold(self, theta: np.ndarray) -> np.ndarray:
        """theta [m, k] with the held coordinates at their values."""
        theta = theta.copy()
        for coordinate, value in self.held.items():
            theta[:, coordinate] = value
        return theta

    def minima(self, starts: np.ndarray, weights: np.ndarray, tolerance: float, max_iterations: int) -> Minima:
        """Minimise from starts [m, k], start i under weights [i] (weights [m, n])."""
        return minimise(
            lambda theta, problem: self.value_and_gradient(theta, weights[problem]),
            starts,
            self._first_inverse(starts, weights),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )

    def projected_minima(
        self, starts: np.ndarray, weights: np.ndarray, tolerance: float, max_iterations: int
    ) -> Minima:
        """As `minima` on linear loss, by variable projection: Golub and Pereyra 1973.

        Only the coordinates after the first `form.linear` are searched; at each point the non-negative coefficients
        are solved exactly. The gradient of what remains is the objective's own, as the solved ones are optimal.
        """
        count = self.form.linear

        def reduced(shape: np.ndarray, problem: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, gradient = self.value_and_gradient(self.project(shape, weights[problem]), weights[problem])
            return value, gradient[:, count:]

        shapes = starts[:, count:]
        projected = self.project(shapes, weights)
        first = self._first_inverse(projected, weights)[:, count:, count:]
        found = minimise(reduced, shapes, first, tolerance=tolerance, max_iterations=max_iterations)
        theta = self.project(found.theta, weights)
        value, gradient = self.value_and_gradient(theta, weights)
        return Minima(theta, value, gradient, found.converged)

    def project(self, shape: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The best coefficients for shapes [m, k - linear]: coordinates [m, k]."""
        count = self.form.linear
        theta = np.concatenate([np.zeros((len(shape), count)), shape], 1)
        with np.errstate(all="ignore"):
            log_prediction, jacobian = self.form.log_prediction(theta, self.x)
            # All coefficients are 1 here, so the derivative by the log of one is its column.
            columns = jacobian[:, :count] * np.exp(log_prediction)[:, None, :]
            scale = np.sqrt((weights[:, None, :] * columns**2).sum(2))
            columns = columns / scale[:, :, None]
            weighted = columns * weights[:, None, :]
            gram = np.matmul(weighted, columns.transpose(0, 2, 1))
            rhs = np.matmul(weighted, np.broadcast_to(self.target, weights.shape)[:, :, None])[:, :, 0]
        # A column that overflows has an infinite scale, and one that vanishes everywhere none.
        usable = (np.isfinite(scale) & (scale > 0)).all(1) & np.isfinite(gram).all((1, 2)) & np.isfinite(rhs).all(1)
        theta[~usable, :count] = np.nan  # its objective is nan, which the line search rejects
        solved = nonnegative_least_squares(gram[usable], rhs[usable]) / scale[usable]
        theta[usable, :count] = np.log(np.maximum(solved, _ZERO))
        return theta

    def _first_inverse(self, starts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The first guess of the inverse Hessian, [m, k, k]: ridged Gauss-Newton."""
        curvature = self.curvature(starts, weights)
        held = list(self.held)
        curvature[:, held, :] = curvature[:, :, held] = 0.0  # no step elsewhere may move what is held
        ridge = 1e-3 * np.trace(curvature, axis1=1, axis2=2) / starts.shape[1]
        return np.linalg.inv(curvature + ridge[:, None, None] * np.eye(starts.shape[1]))
