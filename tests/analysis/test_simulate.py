import numpy as np
import pytest

from analysis.published import SURFACES
from analysis.simulate import simulate_isoflops

LAW = SURFACES["Hoffmann et al. 2022"]


def test_each_budget_has_its_sizes_around_the_laws_own_optimum_and_spends_all_its_compute():
    study = simulate_isoflops(LAW, [1e18, 1e20], sizes=5, span=4.0, noise=0.0)
    assert np.allclose(6 * study["params"] * study["tokens"], study["flops_budget"])
    assert study["flops_budget"].tolist() == [1e18] * 5 + [1e20] * 5
    for flops, rows in ((1e18, slice(0, 5)), (1e20, slice(5, 10))):
        around = study["params"][rows] / LAW.optimum(flops).params
        assert around == pytest.approx([0.25, 0.5, 1, 2, 4])
    assert np.array_equal(study["loss"], LAW.loss(study["params"], study["tokens"]))


def test_noise_is_relative_and_the_same_for_the_same_seed():
    study = simulate_isoflops(LAW, [1e18, 1e20], sizes=500, noise=0.01, seed=3)
    error = np.log(study["loss"] / LAW.loss(study["params"], study["tokens"]))
    assert error.std() == pytest.approx(0.01, rel=0.1) and abs(error.mean()) < 0.002
    again, other = (simulate_isoflops(LAW, [1e18, 1e20], sizes=500, noise=0.01, seed=seed) for seed in (3, 4))
    assert np.array_equal(again["loss"], study["loss"]) and not np.array_equal(other["loss"], study["loss"])
