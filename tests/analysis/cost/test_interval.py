"""Intervals of products: errors of logarithms add up in quadrature, each side for itself."""

import math

import numpy as np
import pytest

from analysis.cost.interval import Interval, known, log_normal, product, quotient


def test_a_product_covers_as_often_as_its_factors():
    rng = np.random.default_rng(0)
    first, second = log_normal(3.0, 0.2), log_normal(5.0, 0.4)
    found = product(first, second)
    draws = 15 * np.exp(rng.normal(0, 0.2, 100_000) + rng.normal(0, 0.4, 100_000))
    assert found.value == 15 and np.mean((draws > found.low) & (draws < found.high)) == pytest.approx(0.9, abs=0.01)


def test_each_side_is_its_own():
    found = product(Interval(2.0, 1.0, 2.0), Interval(3.0, 3.0, 12.0))
    assert (found.value, found.low, found.high) == (6.0, pytest.approx(3.0), pytest.approx(24.0))
    both = product(Interval(1.0, 0.5, 4.0), Interval(1.0, 0.5, 4.0))
    assert math.log(both.low) == pytest.approx(-math.sqrt(2) * math.log(2))
    assert math.log(both.high) == pytest.approx(math.sqrt(2) * math.log(4))


def test_what_is_known_only_scales_and_nothing_costs_nothing():
    assert product(Interval(2.0, 1.0, 3.0), known(2.0)) == Interval(4.0, pytest.approx(2.0), pytest.approx(6.0))
    assert product(Interval(2.0, 1.0, 3.0), known(0.0)) == known(0.0)


def test_a_quotient_turns_the_bounds_around():
    assert quotient(6.0, Interval(2.0, 1.0, 3.0)) == Interval(3.0, 2.0, 6.0)
