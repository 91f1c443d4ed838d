import numpy as np

from analysis.minimise import minimise


def rosenbrock(scale):
    def objective(theta, problem):
        x, y = theta.T
        s = scale[problem]
        value = (1 - x) ** 2 + s * (y - x**2) ** 2 + 1
        return value, np.stack([-2 * (1 - x) - 4 * s * x * (y - x**2), 2 * s * (y - x**2)], 1)

    return objective


def solve(objective, starts, **settings):
    identity = np.tile(np.eye(starts.shape[1]), (len(starts), 1, 1))
    return minimise(objective, starts, identity, **{"tolerance": 1e-14, "max_iterations": 500, **settings})


def test_many_curved_valleys_at_once_each_with_its_own_problem():
    rng = np.random.default_rng(0)
    starts = rng.normal(scale=2, size=(50, 2))
    found = solve(rosenbrock(np.geomspace(1, 300, 50)), starts)
    assert found.converged.all()
    np.testing.assert_allclose(found.theta, 1, atol=1e-5)
    np.testing.assert_allclose(found.value, 1, rtol=1e-10)


def test_an_almost_absolute_value_is_minimised_to_its_kink():
    targets = np.array([[0.3, -1.0], [2.0, 5.0]])

    def objective(theta, problem):
        slope = np.clip(theta - targets[problem], -1e-6, 1e-6)
        return (slope * (theta - targets[problem] - slope / 2)).sum(1) * 1e6, slope * 1e6

    found = solve(objective, np.zeros((2, 2)))
    np.testing.assert_allclose(found.theta, targets, atol=1e-5)


def test_steps_into_overflow_are_taken_back():
    def objective(theta, problem):
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.where(theta[:, 0] < 3, np.cosh(theta[:, 0] - 2), np.inf)
        return value, np.sinh(theta - 2)

    found = solve(objective, np.array([[-5.0]]))
    np.testing.assert_allclose(found.theta, 2, atol=1e-6)


def test_steps_to_where_the_gradient_overflows_are_taken_back():
    def objective(theta, problem):
        return (theta[:, 0] - 2) ** 2, np.where(theta > 1.9, np.nan, 2 * (theta - 2))

    found = solve(objective, np.array([[-9.0]]))
    np.testing.assert_allclose(found.theta, 1.9, atol=1e-6)


def test_the_iteration_limit_is_reported():
    found = solve(rosenbrock(np.full(1, 300.0)), np.array([[-2.0, 3.0]]), max_iterations=2)
    assert not found.converged[0]
