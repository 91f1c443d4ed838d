import numpy as np
import pytest

from analysis.laws import ChinchillaLaw, GammaLaw
from analysis.quantity import (
    optimum_loss,
    optimum_params,
    optimum_tokens,
    parameter,
    tokens_per_param,
    wasted_flops,
    wasted_share,
    wasted_usd,
)

EPOCH = ChinchillaLaw(1.81724, 477.84, 2143.86, 0.34731, 0.36718)
GAMMA = GammaLaw(1.5, 90.0, 400.0, 0.3, 0.35, 0.8)


def test_optimum_and_its_ratio():
    flops = 5.76e23
    best = EPOCH.optimum(flops)
    assert optimum_params(flops).of(EPOCH) == best.params == pytest.approx(73.2e9, rel=1e-3)
    assert optimum_tokens(flops).of(EPOCH) == best.tokens
    assert optimum_loss(flops).of(EPOCH) == best.loss
    assert tokens_per_param(flops).of(EPOCH) == pytest.approx(best.tokens / best.params)
    assert parameter("a").of(EPOCH) == pytest.approx(0.5139, abs=1e-4)


@pytest.mark.parametrize("law", [EPOCH, GAMMA])
@pytest.mark.parametrize("factor", [0.25, 1.1, 4.0])
def test_what_is_left_after_the_waste_reaches_the_same_loss_at_best(law, factor):
    flops = 1e23
    params = factor * law.optimum(flops).params
    tokens = flops / 6 / params
    share = wasted_share(law, params, tokens)
    assert 0 < share < 1
    assert law.optimum(flops * (1 - share)).loss == pytest.approx(law.loss(params, tokens), rel=1e-12)


def test_the_optimum_wastes_nothing_and_many_laws_are_judged_at_once():
    best = EPOCH.optimum(1e23)
    assert wasted_share(EPOCH, best.params, best.tokens) == pytest.approx(0, abs=1e-12)
    many = ChinchillaLaw(*(np.array([value, value]) for value in EPOCH.parameters().values()))
    shares = wasted_share(many, 2 * best.params, best.tokens / 2)
    assert shares.shape == (2,) and shares[0] == wasted_share(EPOCH, 2 * best.params, best.tokens / 2)


def test_waste_in_flops_and_dollars():
    best = EPOCH.optimum(1e23)
    params, tokens = 2 * best.params, best.tokens / 2
    share = wasted_share(EPOCH, params, tokens)
    assert wasted_flops(params, tokens).of(EPOCH) == pytest.approx(1e23 * share)
    assert wasted_usd(params, tokens, usd_per_flop=1.4e-18).of(EPOCH) == pytest.approx(1.4e5 * share)


def test_a_law_without_an_optimum_has_no_waste():
    flat = ChinchillaLaw(1.5, 0.0, 400.0, 0.3, 0.35)
    assert np.isnan(wasted_share(flat, 1e9, 1e10))
