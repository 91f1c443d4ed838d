"""Many small smooth minimisations at once: BFGS with a weak-Wolfe line search, batched in NumPy.

SciPy minimises one problem at a time, and at five parameters its Python overhead is the whole cost.
Bootstrap resamples and the starts of one fit are hundreds of such problems; stepped together they cost
a few array operations an iteration.

The line search brackets and bisects as Lewis and Overton (2013, "Nonsmooth optimization via quasi-Newton
methods") do, because a Huber loss with a small delta is nearly an absolute value.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

#: (theta [m, k], problem [m]) -> (value [m], gradient [m, k]); `problem` says which problem a row belongs to.
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_SUFFICIENT_DECREASE, _CURVATURE = 1e-4, 0.9  # Nocedal and Wright 2006, section 3.1
_LARGEST_STEP = 2.0  # in any coordinate; ours are logarithms, so a factor of e^2
_BISECTIONS = 25
_QUIET_STEPS = 3


class Minima(NamedTuple):
    """theta [R, k], value [R], gradient [R, k], converged [R] (False: stopped at the iteration limit)."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray


def minimise(
    objective: Objective,
    theta: np.ndarray,
    inverse_hessian: np.ndarray,
    *,
    tolerance: float,
    max_iterations: int,
) -> Minima:
    """Local minima of R problems from the starts theta [R, k].

    `inverse_hessian` [R, k, k] is the first guess of each. A problem is done when three steps in
    a row lower its value by less than `tolerance` of it, or when no step along the search direction lowers it.
    """
    theta, hessian = theta.copy(), inverse_hessian.copy()
    count = len(theta)
    value, gradient = objective(theta, np.arange(count))
    converged, quiet = np.zeros(count, bool), np.zeros(count, int)
    active = np.flatnonzero(np.isfinite(value) & np.isfinite(gradient).all(1))
    for _ in range(max_iterations):
        if not len(active):
            break
        direction = _descent_direction(hessian[active], gradient[active])
        step, new_value, new_gradient = _line_search(
            objective, active, theta[active], value[active], gradient[active], direction
        )
        hessian[active] = _bfgs_update(hessian[active], step, new_gradient - gradient[active])
        small = value[active] - new_value <= tolerance * new_value
        quiet[active] = np.where(small, quiet[active] + 1, 0)
        theta[active] += step
        value[active], gradient[active] = new_value, new_gradient
        done = (quiet[active] >= _QUIET_STEPS) | ~step.any(1)
        converged[active[done]] = True
        active = active[~done]
    return Minima(theta, value, gradient, converged)


def _descent_direction(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Quasi-Newton direction [m, k]; steepest descent where rounding has spoilt the matrix."""
    direction = -np.matmul(hessian, gradient[:, :, None])[:, :, 0]
    uphill = ~((direction * gradient).sum(1) < 0)
    direction[uphill] = -gradient[uphill]
    longest = np.abs(direction).max(1, keepdims=True)
    return direction * np.minimum(1.0, _LARGEST_STEP / np.maximum(longest, np.finfo(float).tiny))


def _line_search(
    objective: Objective,
    problem: np.ndarray,
    theta: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
    direction: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps [m, k] that meet the weak Wolfe conditions, with value and gradient there; zero if none lowers it."""
    slope = (direction * gradient).sum(1)
    low, high, length = np.zeros(len(theta)), np.full(len(theta), np.inf), np.ones(len(theta))
    best_length, best_value, best_gradient = np.zeros(len(theta)), value.copy(), gradient.copy()
    todo = np.arange(len(theta))
    for _ in range(_BISECTIONS):
        tried, tried_gradient = objective(theta[todo] + length[todo, None] * direction[todo], problem[todo])
        usable = np.isfinite(tried_gradient).all(1)  # where it overflows, a step has gone too far, whatever the value
        tried_gradient[~usable] = 0.0
        lowers = usable & (tried <= value[todo] + _SUFFICIENT_DECREASE * length[todo] * slope[todo])
        flat = (tried_gradient * direction[todo]).sum(1) >= _CURVATURE * slope[todo]
        good = todo[lowers]
        best_length[good], best_value[good], best_gradient[good] = length[good], tried[lowers], tried_gradient[lowers]
        low[good] = length[good]
        high[todo[~lowers]] = length[todo[~lowers]]
        todo = todo[~(lowers & flat)]
        if not len(todo):
            break
        length[todo] = np.where(np.isfinite(high[todo]), (low[todo] + high[todo]) / 2, 2 * low[todo])
    return best_length[:, None] * direction, best_value, best_gradient


def _bfgs_update(hessian: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The inverse Hessian after a step [m, k] that changed the gradient by `change` [m, k]."""
    curvature = (step * change).sum(1)
    usable = curvature > np.finfo(float).tiny
    inverse = np.where(usable, 1 / np.where(usable, curvature, 1.0), 0.0)[:, None, None]
    product = np.matmul(hessian, change[:, :, None])
    cross = product * step[:, None, :]
    scale = 1 + inverse * (change[:, None, :] @ product)
    return hessian + inverse * (scale * step[:, :, None] * step[:, None, :] - cross - cross.transpose(0, 2, 1))
