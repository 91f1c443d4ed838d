"""Epoch's published procedure for fitting E + A/N^alpha + B/D^beta, written again from its description.

Besiroglu et al. 2024 (arXiv 2404.10102) and the notebook published with it: the Huber loss of log-sum-exp, minimised by
SciPy's L-BFGS-B with its default finite differences and tolerances from each of 4,500 starts, the best one kept; then
4,000 pairs bootstraps, each by SciPy's BFGS with an exact gradient from the law of Hoffmann et al. 2022. Regressors are
not centred and the objective is not scaled. (Their gradient comes from autograd; the analytic one here costs less.)
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

from analysis.published import SURFACES

DELTA = 1e-3
NUM_BOOTSTRAPS = 4000
#: (a, b, e, alpha, beta), where A = exp(a), B = exp(b), E = exp(e).
STARTS = np.array(
    list(
        product(
            *(np.arange(0.0, 30.0, 5.0), np.arange(0.0, 30.0, 5.0), np.arange(-1.0, 1.5, 0.5)),
            *(np.arange(0.0, 2.5, 0.5), np.arange(0.0, 2.5, 0.5)),
        )
    )
)
_HOFFMANN = SURFACES["Hoffmann et al. 2022"]
WARM_START = np.array([*np.log([_HOFFMANN.A, _HOFFMANN.B, _HOFFMANN.E]), _HOFFMANN.alpha, _HOFFMANN.beta])


@dataclass(frozen=True)
class EpochFit:
    """theta = (a, b, e, alpha, beta) and the objective there, a sum over runs."""

    theta: np.ndarray
    objective: float


class EpochObjective:
    """Sum of Huber losses of log-sum-exp(a - alpha ln N, b - beta ln D, e) - ln L; columns [n]."""

    def __init__(self, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> None:
        self.log_n, self.log_d, self.log_l = np.log(params), np.log(tokens), np.log(loss)

    def value(self, theta: np.ndarray) -> float:
        """The objective at theta [5]."""
        residual = np.logaddexp.reduce(self._terms(theta)) - self.log_l
        clipped = np.clip(residual, -DELTA, DELTA)
        return float((clipped * (residual - 0.5 * clipped)).sum())

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient [5]."""
        terms = self._terms(theta)
        log_prediction = np.logaddexp.reduce(terms)
        residual = log_prediction - self.log_l
        clipped = np.clip(residual, -DELTA, DELTA)
        by_a, by_b, by_e = clipped * np.exp(terms - log_prediction)
        gradient = [by_a.sum(), by_b.sum(), by_e.sum(), -by_a @ self.log_n, -by_b @ self.log_d]
        return float((clipped * (residual - 0.5 * clipped)).sum()), np.array(gradient)

    def _terms(self, theta: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = theta
        return np.stack([a - alpha * self.log_n, b - beta * self.log_d, np.full_like(self.log_n, e)])


def fit_from(objective: EpochObjective, start: np.ndarray) -> EpochFit:
    """One of the 4,500 fits."""
    found = minimize(objective.value, start, method="L-BFGS-B")
    return EpochFit(found.x, float(found.fun))


def bootstrap_fit(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, rng: np.random.Generator) -> EpochFit:
    """One of the 4,000 fits of runs drawn with replacement."""
    rows = rng.integers(0, len(loss), len(loss))
    objective = EpochObjective(params[rows], tokens[rows], loss[rows])
    found = minimize(objective.value_and_gradient, WARM_START, jac=True, method="BFGS")
    return EpochFit(found.x, float(found.fun))
