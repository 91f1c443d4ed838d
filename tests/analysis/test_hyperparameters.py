import numpy as np
import pytest

from analysis.hyperparameters import HyperparameterRuns, fit_quadratic, fit_step_law
from scaling.errors import UserError

CURVATURE = np.array([[0.02, -0.006], [-0.006, 0.01]])


def simulated(noise=0.0, seed=0):
    """Sweeps of 9 x 8 learning rates and batch sizes about a known optimum, at 8 (N, D)."""
    rng = np.random.default_rng(seed)
    n, d, rate, size = (
        axis.ravel()
        for axis in np.meshgrid(
            np.geomspace(1e8, 1e9, 4),
            np.array([1e10, 1e11]),
            np.geomspace(2e-4, 2e-2, 9),
            np.geomspace(5e4, 4e6, 8),
            indexing="ij",
        )
    )
    z = np.stack([np.log(rate) - np.log(1.8 * n**-0.7 * d**0.3), np.log(size) - np.log(0.6 * d**0.57)])
    excess = np.einsum("in,ij,jn->n", z, CURVATURE, z) / 2
    loss = (2 + 400 / n**0.35) * np.exp(excess + noise * rng.normal(size=len(n)))
    return HyperparameterRuns(n, d, rate, size, loss)


def test_the_quadratic_gives_back_its_optimum_and_curvature():
    found = fit_quadratic(simulated())
    assert list(found.learning_rate.parameters().values()) == pytest.approx([1.8, -0.7, 0.3], rel=1e-6)
    assert list(found.batch_size.parameters().values()) == pytest.approx([0.6, 0.0, 0.57], rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(found.curvature, CURVATURE, rtol=1e-6)
    assert found.residual < 1e-9
    best = found.learning_rate.predict(3e8, 5e10), found.batch_size.predict(3e8, 5e10)
    assert found.excess(3e8, 5e10, *best) == pytest.approx(0, abs=1e-12)
    assert found.excess(3e8, 5e10, 2 * best[0], best[1]) == pytest.approx(np.expm1(0.01 * np.log(2) ** 2))


def test_noise_moves_the_quadratic_less_than_the_near_optimal_runs():
    def misses(fit):
        return [abs(fit(simulated(0.001, seed)).learning_rate.tokens_exponent - 0.3) for seed in range(10)]

    assert np.mean(misses(fit_quadratic)) < 0.02
    assert np.mean(misses(fit_quadratic)) < np.mean(misses(fit_step_law))


def test_weights_leave_out_whole_groups():
    runs = simulated(0.001)
    kept = runs.groups() != 3
    part = HyperparameterRuns(*(column[kept] for column in vars(runs).values()))
    assert fit_quadratic(runs, weights=kept).learning_rate.c == pytest.approx(fit_quadratic(part).learning_rate.c)
    weighted, alone = fit_step_law(runs, weights=kept), fit_step_law(part)
    assert weighted.batch_size.parameters() == pytest.approx(alone.batch_size.parameters(), rel=1e-6)


def test_runs_without_a_minimum_are_one_clear_error():
    runs = simulated()
    falling = HyperparameterRuns(*list(vars(runs).values())[:4], np.exp(-0.001 * np.log(runs.learning_rate) ** 2))
    with pytest.raises(UserError, match="show no minimum"):
        fit_quadratic(falling)
    with pytest.raises(UserError, match="1 distinct"):
        fit_step_law(HyperparameterRuns(*(np.ones(4),) * 5))
    with pytest.raises(UserError, match="learning_rate: must be 3 positive numbers"):
        HyperparameterRuns(*(np.ones(3),) * 2, np.array([1.0, -1.0, 1.0]), *(np.ones(3),) * 2)
