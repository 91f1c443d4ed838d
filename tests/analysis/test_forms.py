"""What holds for every form alike."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.estimator import Estimator, fit_law, refit
from analysis.laws import FORMS, Law, find_form
from scaling.errors import UserError

#: A plausible law of each form.
EXAMPLES = {
    "chinchilla": (1.8, 480.0, 2100.0, 0.35, 0.37),
    "gamma": (1.5, 900.0, 5000.0, 0.45, 0.5, 0.7),
    "tied": (1.8, 150.0, 400.0, 0.28),
    "kaplan": (8.8e13, 5.4e13, 0.076, 0.095),
    "kaplan_floor": (1.2, 9e11, 3e13, 0.15, 0.2),
    "compute": (1.7, 900.0, 0.15),
    "repeated": (1.87, 521.0, 1488.0, 0.353, 0.353, 15.0, 5.0),
    "error_exponential": (0.86, 2.2, 0.71),
    "error_sigmoid": (0.2, 0.55, 2.5, 2.9),
    "learning_rate": (1.79, -0.71, 0.31),
    "batch_size": (0.58, 0.57),
    "batch_size_of_both": (0.6, 0.05, 0.5),
}


def example(name):
    return FORMS[name](*EXAMPLES[name])


def inputs_of(form, seed=0):
    """40 rows of what a form reads, each column a spread of values."""
    rng = np.random.default_rng(seed)
    params, tokens = np.exp(rng.uniform(17, 22, 40)), np.exp(rng.uniform(21, 25, 40))
    columns = {
        "params": params,
        "tokens": tokens,
        "flops": 6 * params * tokens,
        "unique_tokens": tokens * np.exp(-np.maximum(0, rng.uniform(-2, 4, 40))),
        "loss": rng.uniform(2.2, 3.6, 40),
    }
    return [columns[name] for name in form.inputs]


def centred(form, inputs):
    regressors = form.regressors(np.stack(inputs))
    centre = form.centre(regressors)
    return regressors - centre[:, None], centre


def test_every_form_has_an_example():
    assert set(EXAMPLES) == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_gradient_against_finite_differences(name):
    law = example(name)
    x, centre = centred(law, inputs_of(law))
    theta = law.coordinates(centre) + 0.05 * np.random.default_rng(1).normal(size=(5, len(EXAMPLES[name])))
    value, jacobian = law.log_prediction(theta, x)
    assert np.isfinite(value).all() and jacobian.shape == (5, len(EXAMPLES[name]), 40)
    for k in range(theta.shape[1]):
        step = 1e-6 * (np.arange(theta.shape[1]) == k)
        up, down = (law.log_prediction(theta + sign * step, x)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, k], (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMS)
def test_coordinates_describe_the_law_they_come_from(name):
    law = example(name)
    inputs = inputs_of(law)
    x, centre = centred(law, inputs)
    theta = law.coordinates(centre)
    np.testing.assert_allclose(np.log(law.predict(*inputs)), law.log_prediction(theta[None], x)[0][0], rtol=1e-10)
    back = type(law).from_coordinates(theta, centre)
    assert back.parameters() == pytest.approx(law.parameters(), rel=1e-9)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("loss", ["huber", "log", "linear"])
def test_exact_data_give_back_the_exact_law(name, loss):
    law = example(name)
    inputs = inputs_of(law)
    fit = fit_law(inputs, law.predict(*inputs), Estimator(form=type(law), loss=loss))
    np.testing.assert_allclose(fit.law.predict(*inputs), law.predict(*inputs), rtol=1e-6)
    assert list(fit.law.parameters().values()) == pytest.approx(EXAMPLES[name], rel=1e-3)
    assert fit.converged and fit.n_points == 40


@pytest.mark.parametrize("name", FORMS)
def test_any_one_parameter_can_be_held(name):
    law = example(name)
    inputs = inputs_of(law)
    for parameter, value in law.parameters().items():
        if parameter == "N_c":
            with pytest.raises(UserError, match="together with its exponents"):
                fit_law(inputs, law.predict(*inputs), Estimator(form=type(law), held={"N_c": value}))
            continue
        held = Estimator(form=type(law), loss="log", held={parameter: value}, num_starts=60)
        fit = fit_law(inputs, law.predict(*inputs), held)
        assert getattr(fit.law, parameter) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(fit.law.predict(*inputs), law.predict(*inputs), rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_refits_are_the_fits_of_the_resamples(name):
    law = example(name)
    inputs = inputs_of(law)
    target = law.predict(*inputs) * np.exp(0.002 * np.random.default_rng(3).normal(size=40))
    estimator = Estimator(form=type(law), loss="log", tolerance=1e-13, resample_tolerance=1e-13)
    counts = np.random.default_rng(4).integers(1, 3, (3, 40))
    laws = refit(inputs, target, counts, fit_law(inputs, target, estimator))
    for i, count in enumerate(counts):
        alone = fit_law(inputs, target, estimator, count)
        one = type(law)(*(np.asarray(value)[i] for value in laws.parameters().values()))
        np.testing.assert_allclose(one.predict(*inputs), alone.law.predict(*inputs), rtol=2e-4)


@pytest.mark.parametrize("name", FORMS)
def test_many_laws_in_one_object_predict_together(name):
    law = example(name)
    many = type(law)(*(np.array([value, value * 1.01]) for value in EXAMPLES[name]))
    inputs = [column[:3] for column in inputs_of(law)]
    together = many.predict(*(column[:, None] for column in inputs))
    assert together.shape == (3, 2)
    np.testing.assert_allclose(together[:, 0], law.predict(*inputs), rtol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_json_round_trip(name):
    law = example(name)
    assert Law.from_json(law.to_json()) == law
    assert Law.from_dict({"form": name, "parameters": law.parameters()}) == law
    assert law.source and law.form


@pytest.mark.parametrize("name", [name for name in FORMS if hasattr(FORMS[name], "optimum")])
def test_optimum_is_the_lowest_point_of_the_isoflop_curve(name):
    law = example(name)
    extra = [3e9] if name == "repeated" else []
    for flops in (1e18, 1e21):
        best = law.optimum(flops, *extra)
        params = best.params * np.geomspace(0.5, 2, 20_001)
        curve = law.loss(params, flops / 6 / params, *extra)
        assert params[curve.argmin()] == pytest.approx(best.params, rel=2e-3)
        assert curve.min() == pytest.approx(best.loss, rel=1e-10)
        assert 6 * best.params * best.tokens == pytest.approx(flops, rel=1e-12)


def test_a_form_is_found_by_name_equation_or_class():
    assert find_form("gamma") is find_form("E + (A/N^alpha + B/D^beta)^gamma") is find_form(FORMS["gamma"])
    with pytest.raises(UserError, match="form = 'magic'.*chinchilla"):
        find_form("magic")


def test_repeats_that_cost_nothing_or_everything_are_at_a_bound():
    law = example("repeated")
    inputs = inputs_of(type(law))
    assert law.at_bound(*inputs) == []
    for value in (1e7, 1e-7):
        for name in ("R_D", "R_N"):
            assert replace(law, **{name: value}).at_bound(*inputs) == [name]
    never_repeated = [*inputs[:2], inputs[1]]
    assert "R_D" in law.at_bound(*never_repeated)


def test_a_compute_law_without_a_floor_is_at_a_bound():
    flops = np.geomspace(1e18, 1e22, 9)
    fit = fit_law((flops,), 900 * flops**-0.12, Estimator(form=FORMS["compute"]))
    assert fit.law.at_bound(flops) == ["E"]
    assert example("compute").at_bound(flops) == []
