"""Where a fit begins: variable projection over a grid of exponents.

With alpha and beta held, E + A/N^alpha + B/D^beta is linear in (E, A, B), so the best non-negative
three are a tiny least-squares problem with an exact answer. Solving it on a grid of exponents gives starts
that are already near the optimum (Golub and Pereyra 1973; used for this surface by arXiv 2603.22339).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

#: Exponents tried for each term: published ones lie between 0.1 and 0.8, a degenerate fit may reach 1.3.
EXPONENT_GRID = np.geomspace(0.05, 2.0, 16)

#: E as a share of the lowest loss, where it is tried and not solved for.
FLOORS = (0.2, 0.5, 0.75, 0.95)

#: A coefficient that the non-negative solve puts at zero starts at this share of the mean loss, because in
#: logarithmic coordinates zero is infinitely far away.
_SMALLEST_SHARE = 0.01


def nonnegative_least_squares(gram: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Minimisers c >= 0 of c'Gc - 2c'r for many small problems at once.

    gram [..., k, k] positive semi-definite, rhs [..., k]; returns [..., k]. Every subset of active
    variables is solved and the best feasible one kept: exact, and for k = 3 only seven batched solves.
    """
    k = rhs.shape[-1]
    best = np.zeros(rhs.shape[:-1])
    solution = np.zeros_like(rhs)
    diagonal = np.eye(k) * gram
    for active in product((0.0, 1.0), repeat=k):
        mask = np.array(active)
        # Inactive variables get an identity row; the ridge only keeps exactly collinear columns solvable.
        matrix = gram * np.outer(mask, mask) + np.diag(1 - mask) + 1e-12 * diagonal * mask
        candidate = np.linalg.solve(matrix, (rhs * mask)[..., None])[..., 0]
        value = -(candidate * rhs).sum(-1)
        better = (candidate >= 0).all(-1) & (value < best)
        best = np.where(better, value, best)
        solution = np.where(better[..., None], candidate, solution)
    return solution


def variable_projection_starts(
    x: np.ndarray, y: np.ndarray, log_loss: np.ndarray, exponents: np.ndarray = EXPONENT_GRID
) -> np.ndarray:
    """Least-squares fits in relative loss, one for each pair of exponents on the grid.

    x, y: centred ln N and ln D, [n]; log_loss [n]. Returns coordinates (ln E, ln A', ln B', ln alpha, ln beta)
    [grid^2, 5] as `ChinchillaLaw` has them.
    """
    grid = len(exponents)
    # Rows divided by the loss: then the residual is the relative error, close to the error of the log.
    one = np.exp(-log_loss)
    size = np.exp(-exponents[:, None] * x) * one
    data = np.exp(-exponents[:, None] * y) * one
    gram = np.empty((grid, grid, 3, 3))
    gram[..., 0, 0] = one @ one
    gram[..., 1, 1] = (size * size).sum(1)[:, None]
    gram[..., 2, 2] = (data * data).sum(1)
    gram[..., 0, 1] = gram[..., 1, 0] = (size @ one)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = data @ one
    gram[..., 1, 2] = gram[..., 2, 1] = size @ data.T
    rhs = np.empty((grid, grid, 3))
    rhs[..., 0], rhs[..., 1], rhs[..., 2] = one.sum(), size.sum(1)[:, None], data.sum(1)

    terms = np.maximum(nonnegative_least_squares(gram, rhs), _SMALLEST_SHARE * np.exp(log_loss.mean()))
    log_exponents = np.log(exponents)
    starts = np.empty((grid, grid, 5))
    starts[..., :3] = np.log(terms)
    starts[..., 3], starts[..., 4] = log_exponents[:, None], log_exponents
    return starts.reshape(-1, 5)


def two_term_starts(
    x: np.ndarray,
    log_loss: np.ndarray,
    exponents: np.ndarray,
    gammas: Sequence[float],
    floors: Sequence[float],
) -> np.ndarray:
    """Least-squares fits of E + (A/N^alpha + B/D^beta)^gamma with all but A and B held, over a grid.

    Raised to 1/gamma, L - E is linear in A and B; each row is divided by the change of that power with ln L, so that
    the residual is again close to the error of the log.

    x [2, n]: centred ln N and ln D; log_loss [n]; exponents [g, 2]: pairs (alpha, beta); floors: E as a share of the
    lowest loss. Returns coordinates (ln E, ln A', ln B', ln alpha, ln beta, ln gamma)
    [len(gammas) * len(floors) * g, 6]; ln E is -inf at floor 0.
    """
    loss = np.exp(log_loss)
    gamma, floor = (grid.reshape(-1, 1) for grid in np.meshgrid(gammas, np.array(floors) * loss.min(), indexing="ij"))
    power = (loss - floor) ** (1 / gamma)
    weight = gamma * (loss - floor) / power / loss
    size, data = (np.exp(-exponents[:, i, None] * x[i]) for i in (0, 1))
    gram = np.empty((len(gamma), len(exponents), 2, 2))
    rhs = np.empty((len(gamma), len(exponents), 2))
    gram[..., 0, 0], gram[..., 1, 1] = weight**2 @ (size**2).T, weight**2 @ (data**2).T
    gram[..., 0, 1] = gram[..., 1, 0] = weight**2 @ (size * data).T
    rhs[..., 0], rhs[..., 1] = (weight**2 * power) @ size.T, (weight**2 * power) @ data.T
    terms = np.maximum(nonnegative_least_squares(gram, rhs), _SMALLEST_SHARE * power.mean(1)[:, None, None])
    six = np.empty((len(gamma), len(exponents), 6))
    with np.errstate(divide="ignore"):
        six[..., 0] = np.log(floor)
    six[..., 1:3], six[..., 3:5], six[..., 5] = np.log(terms), np.log(exponents), np.log(gamma)
    return six.reshape(-1, 6)


def line_and_power_starts(columns: np.ndarray, log_target: np.ndarray) -> np.ndarray:
    """Non-negative least squares of a constant and one column, for many columns [g, n]: log coefficients [g, 2].

    Rows are divided by the target, as in `variable_projection_starts`. A coefficient at zero starts at a small share.
    """
    one = np.exp(-log_target)
    column = columns * one
    gram = np.empty((len(columns), 2, 2))
    gram[:, 0, 0], gram[:, 1, 1] = one @ one, (column * column).sum(1)
    gram[:, 0, 1] = gram[:, 1, 0] = column @ one
    rhs = np.stack([np.full(len(columns), one.sum()), column.sum(1)], 1)
    return np.log(np.maximum(nonnegative_least_squares(gram, rhs), _SMALLEST_SHARE * np.exp(log_target.mean())))
