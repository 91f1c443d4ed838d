"""Noise: what replicates say, what residuals say, and what is said when neither is there."""

import numpy as np
import pytest

from analysis.noise import TYPICAL_NOISE, estimate_noise


def runs(cells, seeds, noise, seed=0):
    rng = np.random.default_rng(seed)
    params = np.repeat(np.geomspace(1e6, 1e9, cells), seeds)
    tokens = 20 * params
    clean = 2.0 + 400.0 / params**0.34
    return params, tokens, clean * np.exp(noise * rng.standard_normal(cells * seeds))


def test_replicates_tell_the_noise_whatever_the_law_gets_wrong():
    table = runs(20, 3, 0.004)
    found = estimate_noise(*table, residuals=np.full(60, 0.5), coordinates=5)
    assert found.value == pytest.approx(0.004, rel=0.25)
    assert "60 replicates of 20 cells" in found.source


def test_a_run_that_is_listed_twice_is_no_replicate():
    once = runs(20, 1, 0.004)
    twice = tuple(np.concatenate([column, column]) for column in once)
    residuals = 0.01 * np.random.default_rng(0).standard_normal(40)
    found = estimate_noise(*twice, residuals=residuals, coordinates=5)
    assert "around the law" in found.source and found.value == pytest.approx(0.01, rel=0.35)


def test_without_replicates_residuals_tell_and_a_few_bad_runs_hardly_matter():
    rng = np.random.default_rng(1)
    table, residuals = runs(200, 1, 0.0), 0.005 * rng.standard_normal(200)
    clean = estimate_noise(*table, residuals=residuals, coordinates=5).value
    residuals[:10] = 0.5
    assert clean == pytest.approx(0.005, rel=0.2)
    assert estimate_noise(*table, residuals=residuals, coordinates=5).value == pytest.approx(clean, rel=0.15)


def test_coordinates_that_the_fit_used_up_are_counted():
    table, residuals = runs(10, 1, 0.0), np.tile([0.01, -0.01], 5)
    free, fitted = (estimate_noise(*table, residuals=residuals, coordinates=k).value for k in (0, 5))
    assert fitted == pytest.approx(free * np.sqrt(2))


@pytest.mark.parametrize("count", [0, 1, 6])
def test_too_few_runs_say_so(count):
    found = estimate_noise(*runs(count, 1, 0.01), residuals=np.zeros(count), coordinates=5)
    assert found.value == TYPICAL_NOISE and "too few" in found.source


def test_no_table_is_believed_to_have_no_noise():
    found = estimate_noise(*runs(10, 1, 0.0), residuals=np.zeros(10), coordinates=5)
    assert 0 < found.value <= 1e-4
