import numpy as np
from scipy.optimize import nnls
from studies import TRUTH, isoflop_study

from analysis.starts import nonnegative_least_squares, variable_projection_starts


def test_batched_nonnegative_least_squares_equals_scipy():
    rng = np.random.default_rng(0)
    matrices, targets = rng.normal(size=(200, 12, 3)) + 0.5, rng.normal(size=(200, 12))
    gram, rhs = matrices.transpose(0, 2, 1) @ matrices, (matrices.transpose(0, 2, 1) @ targets[..., None])[..., 0]
    solved = nonnegative_least_squares(gram, rhs)
    expected = np.array([nnls(matrix, target)[0] for matrix, target in zip(matrices, targets)])
    assert (expected == 0).any() and (expected > 0).all(1).any()
    np.testing.assert_allclose(solved, expected, atol=1e-8)


def test_the_best_start_is_already_near_the_truth():
    study = isoflop_study()
    log_n, log_d, log_loss = (np.log(study[name]) for name in ("params", "tokens", "loss"))
    x, y = log_n - log_n.mean(), log_d - log_d.mean()
    starts = variable_projection_starts(x, y, log_loss)
    predicted = TRUTH.log_prediction(starts, np.stack([x, y]))[0]
    assert np.abs(predicted - log_loss).max(1).min() < 0.02
