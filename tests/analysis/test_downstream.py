import json

import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.downstream import ChainedLaw, ExponentialErrorLaw, SigmoidErrorLaw
from analysis.estimator import Estimator, fit_law, refit
from analysis.law import Law
from scaling.errors import UserError

ERRORS = [ExponentialErrorLaw(0.8, 1.5, 0.9), SigmoidErrorLaw(0.2, 0.6, 3.0, 2.4)]


@pytest.mark.parametrize("error_law", ERRORS)
def test_a_chain_of_two_fits_predicts_error_from_size_and_data(error_law):
    study = isoflop_study()
    surface = fit_law((study["params"], study["tokens"]), study["loss"])
    error = error_law.error(study["loss"])
    downstream = fit_law((study["loss"],), error, Estimator(form=type(error_law), loss="linear"))
    chained = ChainedLaw(surface.law, downstream.law)
    best = TRUTH.optimum(1e13)
    assert chained.error(best.params, best.tokens) == pytest.approx(error_law.error(best.loss), rel=1e-4)


def test_refits_of_the_same_resamples_chain_pairwise():
    study = isoflop_study(noise=0.005)
    error = ERRORS[1].error(study["loss"])
    surface = fit_law((study["params"], study["tokens"]), study["loss"])
    downstream = fit_law((study["loss"],), error, Estimator(form=SigmoidErrorLaw))
    counts = np.random.default_rng(0).multinomial(42, np.full(42, 1 / 42), 20).astype(float)
    surfaces = refit((study["params"], study["tokens"]), study["loss"], counts, surface)
    chains = ChainedLaw(surfaces, refit((study["loss"],), error, counts, downstream))
    spread = chains.error(1e5, 1e8)
    assert spread.shape == (20,) and 0 < np.ptp(spread) < 0.1


def test_json_round_trip_and_damage():
    chained = ChainedLaw(TRUTH, ERRORS[0])
    assert Law.from_json(chained.to_json()) == chained
    with pytest.raises(UserError, match="error = None: must be a law; fit the chain again"):
        Law.from_json(json.dumps({"form": "chained", "surface": TRUTH.to_dict()}))


def test_the_fit_does_not_depend_on_the_unit_of_the_loss():
    loss = np.linspace(2.2, 3.6, 12)
    error = ERRORS[0].error(loss)
    fit = fit_law((1000 * loss,), error, Estimator(form=ExponentialErrorLaw, loss="log"))
    assert fit.law.gamma == pytest.approx(ERRORS[0].gamma / 1000, rel=1e-4)
    assert fit.law.error(3000.0) == pytest.approx(ERRORS[0].error(3.0), rel=1e-6)


def test_an_error_that_does_not_fall_is_at_a_bound():
    loss = np.linspace(2.2, 3.6, 12)
    flat = 0.8 + 1e-5 * np.cos(np.arange(12))
    assert fit_law((loss,), flat, Estimator(form=ExponentialErrorLaw)).law.at_bound(loss) == ["k"]
    assert ERRORS[0].at_bound(loss) == []


def test_the_error_of_a_very_high_loss_is_that_of_chance():
    assert ERRORS[0].error(50.0) == pytest.approx(0.8)
    assert ERRORS[1].error(50.0) == pytest.approx(0.8)
