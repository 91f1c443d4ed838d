import numpy as np
import pytest
from references import numbers, reference_fits, rows_of
from studies import TRUTH, isoflop_study

from analysis.delta import covariance
from analysis.estimator import Estimator, fit_law
from analysis.laws import FORMS
from analysis.profile import profile
from analysis.quantity import optimum_loss, optimum_params, parameter, wasted_flops


def rows(**study):
    columns = isoflop_study(**study)
    return (columns["params"], columns["tokens"]), columns["loss"]


@pytest.mark.parametrize("quantity", [optimum_params(3e13), parameter("a"), optimum_loss(3e13)])
def test_little_noise_gives_the_delta_method(quantity):
    inputs, loss = rows(noise=0.001)
    fit = fit_law(inputs, loss, Estimator(loss="log"))
    found = profile(inputs, loss, fit, quantity)
    assert (found.low, found.high) == pytest.approx(covariance(inputs, loss, fit).interval(quantity), rel=1e-3)


def test_each_point_is_the_best_fit_with_the_quantity_held_there():
    inputs, loss = rows(noise=0.01)
    fit = fit_law(inputs, loss, Estimator(loss="log"))
    found = profile(inputs, loss, fit, parameter("alpha"))
    assert (np.diff(found.values) > 0).all() and found.deviance.min() == 0
    scale = np.square(np.log(fit.law.predict(*inputs)) - np.log(loss)).sum() / (len(loss) - 5)
    for value, deviance in list(zip(found.values, found.deviance))[::4]:
        held = fit_law(inputs, loss, Estimator(loss="log", held={"alpha": value}))
        assert deviance == pytest.approx(2 * (held.objective - fit.objective) / scale, abs=1e-4)


def test_what_the_runs_do_not_show_has_an_open_end():
    # Tokens so many that their term is lost in the noise: its coefficient may be anything from nothing up.
    rng = np.random.default_rng(0)
    params = np.tile(np.geomspace(1e4, 1e6, 8), 5)
    tokens = np.repeat(np.geomspace(1e13, 1e14, 5), 8)
    loss = TRUTH.loss(params, tokens) * np.exp(0.003 * rng.standard_normal(40))
    fit = fit_law((params, tokens), loss, Estimator(loss="log", held={"beta": 0.33}))
    found = profile((params, tokens), loss, fit, parameter("B"))
    assert found.low == 0 and np.isfinite(found.high) and found.decades == np.inf
    shown = profile((params, tokens), loss, fit, parameter("alpha"))
    assert shown.decades < 0.3


def test_a_quantity_without_a_slope_is_refused():
    inputs, loss = rows(noise=0.003)
    fit = fit_law(inputs, loss, Estimator(loss="log", held={"E": TRUTH.E}))
    best = fit.law.optimum(1e13)
    with pytest.raises(ValueError, match="E: is held"):
        profile(inputs, loss, fit, parameter("E"))
    with pytest.raises(ValueError, match="wasted FLOPs: is at its extreme.*bootstrap"):
        profile(inputs, loss, fit, wasted_flops(best.params, best.tokens))


@pytest.mark.parametrize("reference", reference_fits("huber")[:1])
def test_the_decay_of_repeated_parameters_is_not_identified_by_the_published_runs(reference):
    table = rows_of("datablations.csv", experiment="datablations_paper182")
    params, tokens, unique, loss = numbers(table, "params_N", "tokens_D", "unique_tokens_U", "loss")
    inputs = (params, tokens, unique)
    fit = fit_law(inputs, loss, Estimator(form=FORMS["repeated"]))
    assert profile(inputs, loss, fit, parameter("R_N")).decades > 6
    assert profile(inputs, loss, fit, parameter("R_D")).decades < 1
