import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.delta import covariance
from analysis.estimator import Estimator, fit_law
from analysis.laws import FORMS
from analysis.quantity import optimum_loss, optimum_params, parameter

TARGET = 3e13


def rows(**study):
    columns = isoflop_study(**study)
    return (columns["params"], columns["tokens"]), columns["loss"]


def test_least_squares_matches_the_textbook_covariance():
    inputs, loss = rows(noise=0.003)
    fit = fit_law(inputs, loss, Estimator(loss="linear"))
    # The textbook's, in the law's own parameters, by finite differences of predictions.
    values = np.array(list(fit.law.parameters().values()))
    ahead, behind = (
        np.stack([type(fit.law)(*(values * (1 + step))).predict(*inputs) for step in sign * 1e-6 * np.eye(5)])
        for sign in (1, -1)
    )
    jacobian = (ahead - behind) / (2e-6 * values[:, None])
    residual = fit.law.predict(*inputs) - loss
    expected = np.linalg.inv(jacobian @ jacobian.T) * (residual**2).sum() / (len(loss) - 5)
    near = covariance(inputs, loss, fit)
    for i, name in enumerate(("E", "A", "B", "alpha", "beta")):
        assert near.standard_error(parameter(name)) == pytest.approx(np.sqrt(expected[i, i]) / values[i], rel=1e-3)


@pytest.mark.parametrize("loss", ["huber", "log", "linear"])
def test_intervals_cover_about_as_often_as_they_say(loss):
    truths = {optimum_params(TARGET): TRUTH.optimum(TARGET).params, parameter("a"): TRUTH.a}
    truths[optimum_loss(TARGET)] = TRUTH.optimum(TARGET).loss
    covered = dict.fromkeys(truths, 0)
    for seed in range(40):
        inputs, losses = rows(noise=0.005, seed=seed, width=4.0)
        near = covariance(inputs, losses, fit_law(inputs, losses, Estimator(loss=loss)))
        for quantity, truth in truths.items():
            low, high = near.interval(quantity)
            covered[quantity] += low <= truth <= high
    # 30 or fewer of 40 has a probability of 0.5 % at a true coverage of 90 %, and 40 of 1.5 %.
    assert all(31 <= count < 40 for count in covered.values()), covered.values()


def test_weights_are_relative_as_twice_the_weight_on_every_run_tells_nothing_new():
    inputs, loss = rows(noise=0.003)
    fit = fit_law(inputs, loss, Estimator(loss="log"))
    once, twice = (covariance(inputs, loss, fit, weights) for weights in (None, np.full(len(loss), 2.0)))
    assert once.standard_error(parameter("a")) == pytest.approx(twice.standard_error(parameter("a")))


def test_a_held_parameter_has_no_variance_and_narrows_the_rest():
    inputs, loss = rows(noise=0.003)
    fits = (fit_law(inputs, loss, Estimator(loss="log", held=held)) for held in ({}, {"E": TRUTH.E}))
    free, held = (covariance(inputs, loss, fit) for fit in fits)
    assert held.standard_error(parameter("E")) == 0
    assert held.standard_error(optimum_loss(TARGET)) < 0.5 * free.standard_error(optimum_loss(TARGET))
    assert held.degrees == free.degrees + 1


@pytest.mark.parametrize("form", ["gamma", "tied", "kaplan", "kaplan_floor"])
def test_other_forms_too(form):
    inputs, loss = rows(noise=0.003)
    near = covariance(inputs, loss, fit_law(inputs, loss, Estimator(form=FORMS[form])))
    low, high = near.interval(optimum_params(TARGET))
    assert 0 < low < near.fit.law.optimum(TARGET).params < high


def test_no_run_left_over():
    inputs, loss = rows(noise=0.003)
    few = slice(0, 40, 8)
    fit = fit_law([column[few] for column in inputs], loss[few], Estimator(loss="log"))
    with pytest.raises(ValueError, match="5 runs and 5 parameters"):
        covariance([column[few] for column in inputs], loss[few], fit)
