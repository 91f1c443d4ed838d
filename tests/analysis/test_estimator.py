import numpy as np
import pytest
from references import columns_of, reference_fits
from studies import TRUTH, isoflop_study

from analysis.estimator import Estimator, fit_law, refit
from analysis.laws import ChinchillaLaw
from analysis.objective import Objective
from scaling.errors import UserError


def runs(**settings):
    study = isoflop_study(**settings)
    return (study["params"], study["tokens"]), study["loss"]


#: Kind of a reference fit -> our loss and delta.
REFERENCE_LOSSES = {
    "huber1e-3": ("huber", 1e-3),
    "huber1e-4": ("huber", 1e-4),
    "mselog": ("log", 1e-3),
    "vp": ("linear", 1e-3),
}


@pytest.mark.parametrize("fit", [fit for kind in ("huber", "mselog", "vp") for fit in reference_fits(kind)])
def test_never_worse_than_a_published_fit(fit):
    params, tokens, loss, _ = columns_of(fit)
    loss_name, delta = REFERENCE_LOSSES[fit["id"].split("/")[1]]
    ours = fit_law((params, tokens), loss, Estimator(loss=loss_name, delta=delta))
    theirs = fit["fit_from_csv"]
    assert ours.objective <= fit["objective_value"] * (1 + 1e-6)
    assert (ours.law.alpha, ours.law.beta) == pytest.approx((theirs["alpha"], theirs["beta"]), abs=1e-3)
    assert ours.law.a == pytest.approx(theirs["a"], abs=1e-3)
    for name in "ABE":
        assert getattr(ours.law, name) == pytest.approx(theirs[name], rel=1e-2, abs=1e-9)


def test_infinite_delta_is_least_squares_on_log_loss():
    data = runs(noise=0.01)
    infinite, log = fit_law(*data, Estimator(delta=np.inf)), fit_law(*data, Estimator(loss="log"))
    assert infinite.objective == log.objective and infinite.law == log.law


def test_variable_projection_is_the_minimum_of_the_squares_of_linear_loss():
    (params, tokens), loss = runs(noise=0.01)
    projected = fit_law((params, tokens), loss, Estimator(loss="linear"))
    assert projected.estimator.projects
    assert projected.objective == pytest.approx(((projected.law.loss(params, tokens) - loss) ** 2).sum(), rel=1e-9)
    x, y = np.log(params) - np.log(params).mean(), np.log(tokens) - np.log(tokens).mean()
    searched = Objective(ChinchillaLaw, np.stack([x, y]), loss, "linear", np.inf).minima(
        projected.coordinates[None] + 0.05, np.ones((1, len(loss))), 1e-12, 500
    )
    assert projected.objective == pytest.approx(searched.value[0], rel=1e-9)


def test_variable_projection_never_gives_a_negative_floor():
    truth = ChinchillaLaw(E=0.0, A=20.0, B=20.0, alpha=0.3, beta=0.25)
    (params, tokens), loss = runs(law=truth, noise=0.02, seed=3)
    fit = fit_law((params, tokens), loss - 0.15, Estimator(loss="linear"))
    assert fit.converged and 0 <= fit.law.E < 1e-6 and np.isfinite(fit.law.loss(params, tokens)).all()


def test_held_parameters_stay_and_the_rest_is_the_best_for_them():
    data = runs(noise=0.003)
    for held in ({"E": 1.3}, {"A": 40.0}, {"alpha": 0.4, "B": 80.0}):
        fit = fit_law(*data, Estimator(held=held))
        for name, value in held.items():
            assert getattr(fit.law, name) == pytest.approx(value, rel=1e-12)
        assert fit.objective > fit_law(*data).objective
        free = {name: value for name, value in TRUTH.parameters().items() if name in held}
        at_truth = fit_law(*runs(), Estimator(held=free)).law
        assert at_truth.parameters() == pytest.approx(TRUTH.parameters(), rel=1e-6)


def test_weights_count_rows_as_if_they_were_repeated():
    (params, tokens), loss = runs(noise=0.01)
    counts = np.random.default_rng(2).integers(0, 3, len(loss))
    weighted = fit_law((params, tokens), loss, weights=counts)
    repeated = fit_law((np.repeat(params, counts), np.repeat(tokens, counts)), np.repeat(loss, counts))
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-8)
    assert weighted.law.a == pytest.approx(repeated.law.a, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"loss": "mae"}, "loss = 'mae'"), ({"delta": 0.0}, "delta = 0.0"), ({"held": {"gamma": 1.0}}, "held gamma")],
)
def test_a_bad_setting_is_one_clear_error(settings, message):
    with pytest.raises(UserError, match=message):
        Estimator(**settings)


def test_exact_data_give_back_the_exact_law():
    fit = fit_law(*runs())
    for name, value in TRUTH.parameters().items():
        assert getattr(fit.law, name) == pytest.approx(value, rel=1e-8)
    assert fit.r_squared_log_loss == pytest.approx(1)
    assert fit.converged


def test_noisy_data_give_back_the_law_within_the_noise():
    fits = [fit_law(*runs(noise=0.005, seed=seed)) for seed in range(8)]
    exponents = np.array([fit.law.a for fit in fits])
    assert np.abs(exponents - TRUTH.a).max() < 0.03
    assert all(fit.r_squared_log_loss > 0.995 for fit in fits)
    assert all(fit.num_starts_at_best >= 4 for fit in fits)


def test_a_few_failed_runs_hardly_move_the_huber_fit():
    inputs, loss = runs(noise=0.002)
    spoilt = loss.copy()
    spoilt[[3, 20, 37]] *= 1.2
    huber, squares = (abs(fit_law(inputs, spoilt, Estimator(loss=name)).law.a - TRUTH.a) for name in ("huber", "log"))
    assert huber < 0.01 < squares


@pytest.mark.parametrize(("name", "delta"), [("huber", 1e-3), ("huber", 1e-2), ("log", 1.0), ("linear", 1.0)])
def test_objective_gradient_against_finite_differences(name, delta):
    (params, tokens), loss = runs(noise=0.01)
    x, y = np.log(params) - np.log(params).mean(), np.log(tokens) - np.log(tokens).mean()
    objective = Objective(ChinchillaLaw, np.stack([x, y]), loss, name, delta)
    theta = np.array([[0.2, -0.6, -0.5, np.log(0.35), np.log(0.3)]])
    weights = np.random.default_rng(0).integers(0, 3, size=(1, len(loss))).astype(float)
    _, gradient = objective.value_and_gradient(theta, weights)
    for k in range(5):
        step = np.zeros((1, 5))
        step[0, k] = 1e-6
        up, down = (objective.value_and_gradient(theta + sign * step, weights)[0][0] for sign in (1, -1))
        assert gradient[0, k] == pytest.approx((up - down) / 2e-6, rel=1e-4)


def test_the_objective_is_the_sum_of_huber_losses():
    (params, tokens), loss = runs(noise=0.01)
    fit = fit_law((params, tokens), loss)
    residual = np.abs(np.log(fit.law.loss(params, tokens)) - np.log(loss))
    huber = np.where(residual < 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4))
    assert fit.objective == pytest.approx(huber.sum(), rel=1e-9)


def test_refit_with_counts_is_the_fit_of_repeated_rows():
    (params, tokens), loss = runs(noise=0.01)
    counts = np.random.default_rng(1).integers(0, 3, size=(3, len(loss))).astype(float)
    laws = refit((params, tokens), loss, counts, fit_law((params, tokens), loss))
    for i, count in enumerate(counts.astype(int)):
        alone = fit_law((np.repeat(params, count), np.repeat(tokens, count)), np.repeat(loss, count)).law
        assert laws.alpha[i] == pytest.approx(alone.alpha, rel=1e-3)
        assert laws.a[i] == pytest.approx(alone.a, abs=2e-3)


def test_int64_columns_are_not_multiplied_as_integers():
    study = isoflop_study(noise=0.003)
    params, tokens = (np.round(study[name] * 1e6).astype(np.int64) for name in ("params", "tokens"))
    whole = fit_law((params, tokens), study["loss"]).law
    floats = fit_law((params.astype(float), tokens.astype(float)), study["loss"]).law
    assert whole.a == pytest.approx(floats.a, abs=1e-9)


def test_columns_that_overflow_are_no_crash():
    rng = np.random.default_rng(132)
    inputs = 10 ** rng.uniform(-3, 30, (2, 12))
    fit = fit_law(inputs, rng.uniform(1, 5, 12), Estimator(loss="linear"))
    assert np.isfinite(fit.objective)


def test_many_rows_are_fitted_as_few_are():
    (params, tokens), loss = runs(noise=0.01)
    once, often = (fit_law(np.tile([params, tokens], n), np.tile(loss, n), Estimator(loss="log")) for n in (1, 40))
    assert often.law.a == pytest.approx(once.law.a, abs=1e-5)
    assert often.objective == pytest.approx(40 * once.objective, rel=1e-8)
