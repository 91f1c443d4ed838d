from dataclasses import asdict

import numpy as np
import pytest
from references import numbers, published, rows_of
from scipy.interpolate import Akima1DInterpolator
from studies import TRUTH, isoflop_study

from analysis.akima import akima_minima
from analysis.frontier import Minimum, envelope_minima, fit_frontier, parabola_minima, spline_minima
from analysis.table import build_table
from scaling.errors import UserError


def test_akima_minima_are_those_of_the_spline():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 5, 8))
    curves = (x - 2.5) ** 2 + rng.normal(size=(50, 8))
    position, value = akima_minima(x, curves)
    fine = np.union1d(np.linspace(x[0], x[-1], 20_001), x)
    for i, curve in enumerate(curves):
        dense = Akima1DInterpolator(x, curve)(fine)
        assert value[i] == pytest.approx(dense.min(), abs=1e-5) and value[i] <= dense.min() + 1e-12
        assert position[i] == pytest.approx(fine[dense.argmin()], abs=1e-3)


def test_akima_of_straight_lines_is_at_the_end():
    x = np.array([0.0, 1.0, 3.0])
    position, value = akima_minima(x, np.stack([x, -x]))
    assert list(position) == [0, 3] and list(value) == [0, -3]


@pytest.mark.parametrize("find", [parabola_minima, spline_minima])
def test_approach_2_gives_back_the_frontier(find):
    table = build_table(isoflop_study(width=3.0, sizes=9))
    frontier = fit_frontier([minimum for minimum in find(table) if minimum.interior])
    assert frontier.a == pytest.approx(TRUTH.a, abs=0.01) and frontier.b == pytest.approx(TRUTH.b, abs=0.01)
    ahead, truth = frontier.optimum(3e13), TRUTH.optimum(3e13)
    assert ahead.params == pytest.approx(truth.params, rel=0.06)
    assert ahead.loss == pytest.approx(truth.loss, rel=0.003)


def test_approach_1_follows_the_envelope_of_training_curves():
    params = np.repeat(np.geomspace(1e3, 1e6, 40), 60)
    tokens = np.tile(np.geomspace(1e4, 1e8, 60), 40)
    minima = envelope_minima(params.round().astype(str), params, tokens, TRUTH.loss(params, tokens))
    inside = [minimum for minimum in minima if minimum.interior and 1e9 < minimum.flops < 1e13]
    frontier = fit_frontier(inside)
    assert frontier.a == pytest.approx(TRUTH.a, abs=0.02)
    assert frontier.optimum(1e12).loss == pytest.approx(TRUTH.optimum(1e12).loss, rel=0.003)


def test_curves_that_do_not_overlap_are_one_clear_error():
    with pytest.raises(UserError, match="no compute is covered by two sizes"):
        envelope_minima(["a", "a", "b", "b"], [1e3, 1e3, 1e6, 1e6], [1e3, 1e4, 1e8, 1e9], [3.0, 2.9, 2.0, 1.9])


def test_a_spline_edge_is_not_interior_and_repeats_of_a_size_are_averaged():
    table = build_table(isoflop_study(shift=6.0, width=3.0))
    assert not any(minimum.interior for minimum in spline_minima(table))
    study = isoflop_study()
    twice = {name: np.concatenate([column, column]) for name, column in study.items()}
    for double, single in zip(spline_minima(build_table(twice)), spline_minima(build_table(study)), strict=True):
        assert asdict(double) == pytest.approx(asdict(single))


def test_a_spline_that_plunges_between_two_sizes_that_nearly_agree_is_no_minimum():
    study = isoflop_study(budgets=3)
    smooth = spline_minima(build_table(study))
    twin = {name: np.append(column, column[1]) for name, column in study.items()}
    twin["params"][-1] *= 1.001
    twin["loss"][-1] *= 1.01
    kept = spline_minima(build_table(twin))
    assert [minimum.flops for minimum in kept] == [minimum.flops for minimum in smooth[1:]]


def test_too_few_minima_and_no_budgets_are_clear_errors():
    with pytest.raises(UserError, match="1 usable minima"):
        fit_frontier([Minimum(1e18, 1e7, 1e10, 3.0, True)])
    two = fit_frontier([Minimum(1e18, 1e7, 1e10, 3.0, True), Minimum(1e20, 1e8, 1e11, 2.0, True)])
    assert two.E == 0 and two.a == pytest.approx(0.5) and two.optimum(1e20).loss == pytest.approx(2.0)
    rng = np.random.default_rng(0)
    scattered = {name: rng.uniform(1, 1e3, 20) for name in ("params", "tokens", "loss")}
    with pytest.raises(UserError, match="no budgets of equal FLOPs"):
        spline_minima(build_table(scattered))


@pytest.mark.parametrize("experiment", published("porian_exponents_a"))
def test_published_exponents_of_akima_minima(experiment):
    name, (exponent, *_) = experiment
    rows = rows_of("porian_isoflops.csv", experiment=f"porian_{name}")
    runs = numbers(rows, "params_N", "tokens_D", "loss", "flops_C")
    table = build_table(dict(zip(("params", "tokens", "loss", "flops_budget"), runs, strict=True)))
    optima = numbers(rows_of("porian_optima.csv", experiment=f"porian_{name}"), "flops_C", "n_star_logstd")
    spread = dict(zip(*optima, strict=True))
    minima = [minimum for minimum in spline_minima(table) if minimum.interior and minimum.flops in spread]
    frontier = fit_frontier(minima, [spread[minimum.flops] ** -2 for minimum in minima])
    assert frontier.a == pytest.approx(exponent, abs=0.003)
