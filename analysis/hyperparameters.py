"""The best learning rate and batch size: from sweeps over both at several (N, D).

Two ways. `fit_step_law` is Li et al. 2025 (arXiv 2503.04715): of every (N, D), the runs whose loss is within a small
share of the best are near optimal, and power laws are fitted to them by least squares in logarithms.
`fit_quadratic` uses every run near the optimum and its loss: about the optimum ln loss is a quadratic in
(ln learning rate, ln batch size), whose centre moves with N and D as power laws; all of it is one linear regression.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.estimator import Estimator, fit_law
from analysis.power_law import BatchSizeLaw, BatchSizeOfBothLaw, LearningRateLaw
from scaling.errors import UserError


@dataclass(frozen=True)
class HyperparameterRuns:
    """Runs to learn from, [n] each: batch_size in tokens, loss in nats per token."""

    params: np.ndarray
    tokens: np.ndarray
    learning_rate: np.ndarray
    batch_size: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        for name, column in vars(self).items():
            column = np.asarray(column, np.float64)
            if column.shape != np.shape(self.loss) or not (np.isfinite(column) & (column > 0)).all():
                raise UserError(f"{name}: must be {np.size(self.loss)} positive numbers, one for each run")
            object.__setattr__(self, name, column)

    def groups(self) -> np.ndarray:
        """Which (N, D) each run belongs to, as numbers 0, 1, ... [n]."""
        _, group = np.unique(np.stack([self.params, self.tokens], 1), axis=0, return_inverse=True)
        return group.ravel()

    def excess(self) -> np.ndarray:
        """Loss over the best loss of the same (N, D), less 1, [n]."""
        group = self.groups()
        best = np.full(group.max() + 1, np.inf)
        np.minimum.at(best, group, self.loss)
        return self.loss / best[group] - 1


@dataclass(frozen=True)
class StepLaw:
    """Best learning rate and batch size as power laws; `num_runs` near-optimal ones decided them."""

    learning_rate: LearningRateLaw
    batch_size: BatchSizeLaw
    tolerance: float
    num_runs: int
    num_groups: int


def fit_step_law(runs: HyperparameterRuns, tolerance: float = 0.0025, weights: Any = None) -> StepLaw:
    """Power laws through the runs within `tolerance` of the best loss of their (N, D).

    Exponents depend on the tolerance (on the published runs -0.71 at 0.25 % becomes -0.68 at 0.5 %), so it is reported.
    weights [n]: of the runs, such as bootstrap counts of whole (N, D). Raises UserError for fewer than three (N, D).
    """
    near = runs.excess() <= tolerance
    _check_groups(runs)
    weight = np.ones(len(runs.loss)) if weights is None else np.asarray(weights, np.float64)
    params, tokens = runs.params[near], runs.tokens[near]
    rate = fit_law(
        (params, tokens), runs.learning_rate[near], Estimator(form=LearningRateLaw, loss="log"), weight[near]
    )
    size = fit_law((tokens,), runs.batch_size[near], Estimator(form=BatchSizeLaw, loss="log"), weight[near])
    return StepLaw(rate.law, size.law, tolerance, int(near.sum()), int(runs.groups().max() + 1))


@dataclass(frozen=True)
class QuadraticOptimum:
    """ln loss = ln best + (z - z*)' curvature (z - z*) / 2, with z = (ln learning rate, ln batch size).

    z* follows the two laws; both may depend on N and D here. curvature [2, 2] is shared by all (N, D);
    residual is the root mean square of what is left of ln loss.
    """

    learning_rate: LearningRateLaw
    batch_size: BatchSizeOfBothLaw
    curvature: np.ndarray
    residual: float
    num_runs: int

    def excess(self, params: Any, tokens: Any, learning_rate: Any, batch_size: Any) -> np.ndarray:
        """Share by which the loss exceeds the best at these N and D; arguments broadcast."""
        rate = np.log(np.asarray(learning_rate, np.float64)) - np.log(self.learning_rate.predict(params, tokens))
        size = np.log(np.asarray(batch_size, np.float64)) - np.log(self.batch_size.predict(params, tokens))
        (h11, h12), (_, h22) = self.curvature
        return np.expm1(h11 * rate**2 / 2 + h12 * rate * size + h22 * size**2 / 2)


def fit_quadratic(runs: HyperparameterRuns, window: float = 0.02, weights: Any = None) -> QuadraticOptimum:
    """The quadratic through all runs whose loss is within `window` of the best of their (N, D).

    Expanded, (z - z*)' H (z - z*) / 2 with z* = Z (1, ln N, ln D) is linear in H and H Z; the rest is one constant for
    each (N, D), which centring within them removes. weights [n]: of the runs. Raises UserError when the runs show no
    minimum, or for fewer than three (N, D).
    """
    _check_groups(runs)
    near = runs.excess() <= window
    weight = (np.ones(len(runs.loss)) if weights is None else np.asarray(weights, np.float64))[near]
    group = runs.groups()[near]
    rate, size = np.log(runs.learning_rate[near]), np.log(runs.batch_size[near])
    log_n, log_d = np.log(runs.params[near]), np.log(runs.tokens[near])
    middle = [column.mean() for column in (rate, size, log_n, log_d)]
    u, v, n, d = (column - mean for column, mean in zip((rate, size, log_n, log_d), middle))
    columns = np.stack([u * u / 2, u * v, v * v / 2, -u, -u * n, -u * d, -v, -v * n, -v * d, np.log(runs.loss[near])])
    total = np.bincount(group, weight)
    means = np.stack([np.bincount(group, weight * column) for column in columns]) / np.where(total > 0, total, 1.0)
    design = ((columns - means[:, group]) * np.sqrt(weight)).T
    solution = np.linalg.lstsq(design[:, :-1], design[:, -1], rcond=None)[0]
    curvature = np.array([[solution[0], solution[1]], [solution[1], solution[2]]])
    if not (np.linalg.eigvalsh(curvature) > 0).all():
        raise UserError(
            f"window = {window:g}: the {near.sum()} runs within it show no minimum in learning rate and batch size: "
            "widen it, or sweep both further"
        )
    optimum = np.linalg.solve(curvature, solution[3:].reshape(2, 3))
    # Back from centred to plain logarithms: ln z* = row . (1, ln N - mean, ln D - mean) + mean.
    laws = []
    for form, row, mean in zip((LearningRateLaw, BatchSizeOfBothLaw), optimum, middle[:2]):
        laws.append(form(float(np.exp(row[0] + mean - row[1] * middle[2] - row[2] * middle[3])), *map(float, row[1:])))
    left = design[:, -1] - design[:, :-1] @ solution
    return QuadraticOptimum(*laws, curvature, float(np.sqrt((left**2).sum() / weight.sum())), int(near.sum()))


def _check_groups(runs: HyperparameterRuns) -> None:
    count = runs.groups().max() + 1
    if count < 3:
        raise UserError(f"{count} distinct (params, tokens): a law in both needs at least 3: sweep at more of them")
