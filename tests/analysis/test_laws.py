import json
import re
from dataclasses import fields

import numpy as np
import pytest
from studies import TRUTH

from analysis.laws import ChinchillaLaw, Law
from scaling.errors import UserError

EPOCH = ChinchillaLaw(E=1.8172, A=477.8, B=2143.4, alpha=0.34731, beta=0.36717)


def test_optimum_is_the_lowest_point_of_the_isoflop_curve():
    for flops in (1e18, 5.76e23, 1e26):
        best = EPOCH.optimum(flops)
        params = best.params * np.geomspace(0.5, 2, 100_001)
        curve = EPOCH.loss(params, flops / 6 / params)
        assert params[curve.argmin()] == pytest.approx(best.params, rel=2e-3)
        assert curve.min() == pytest.approx(best.loss, rel=1e-12)
        assert 6 * best.params * best.tokens == pytest.approx(flops, rel=1e-12)


def test_published_optimum_at_the_compute_of_chinchilla():
    # Besiroglu et al. 2024: about 20 tokens per parameter at Chinchilla's 5.76e23 FLOPs, a = 0.514.
    best = EPOCH.optimum(5.76e23)
    assert best.params == pytest.approx(73.2e9, rel=0.02)
    assert EPOCH.a == pytest.approx(0.5139, abs=1e-4)
    assert EPOCH.a + EPOCH.b == pytest.approx(1)


def test_loss_survives_integers_whose_product_overflows():
    params, tokens = np.array([10**11]), np.array([10**13])
    assert EPOCH.loss(params, tokens) == pytest.approx(EPOCH.loss(1e11, 1e13))


def test_a_law_with_array_fields_is_many_laws():
    many = ChinchillaLaw(*(np.array([getattr(law, f.name) for law in (EPOCH, TRUTH)]) for f in fields(ChinchillaLaw)))
    assert many.optimum(1e20).params == pytest.approx([EPOCH.optimum(1e20).params, TRUTH.optimum(1e20).params])


def test_json_round_trip_also_from_a_larger_object():
    assert Law.from_json(TRUTH.to_json()) == TRUTH
    assert Law.from_dict({**TRUTH.to_dict(), "n_points": 42, "warnings": []}) == TRUTH


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"form": "E + magic"}, "form = 'E + magic'"),
        ({"form": ["list"]}, "form = ['list']"),
        ({"parameters": {"E": 1.0}}, "parameters.A = None"),
        ({"parameters": {**TRUTH.parameters(), "beta": "steep"}}, "parameters.beta = 'steep'"),
    ],
)
def test_a_damaged_law_is_one_clear_error(change, names):
    with pytest.raises(UserError, match=re.escape(names)):
        Law.from_json(json.dumps({**TRUTH.to_dict(), **change}))


def test_text_that_is_not_a_law_is_one_clear_error():
    for text in ("{", "[1, 2]"):
        with pytest.raises(UserError, match="law: "):
            Law.from_json(text)
