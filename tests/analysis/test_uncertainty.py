import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.study import analyse
from analysis.isoflop import fit_budget, group_budgets
from analysis.table import build_table
from analysis.uncertainty import Bootstrap, draw, isoflop_intervals


def test_strata_keep_their_size_and_no_run_is_forgotten():
    groups = [np.array([0, 1, 2, 3]), np.array([4, 5, 6])]
    counts = draw(9, groups, 50, 0.9, 0).counts
    for rows, size in ((slice(0, 4), 4), (slice(4, 7), 3), (slice(7, 9), 2)):
        assert (counts[:, rows].sum(1) == size).all()
    assert (counts.sum(0) > 0).all()
    loose = draw(9, None, 50, 0.9, 0).counts
    assert (loose.sum(1) == 9).all() and len(np.unique(loose[:, :4].sum(1))) > 1


def test_the_seed_decides_the_draw():
    same, again, other = (draw(20, None, 30, 0.9, seed).counts for seed in (3, 3, 4))
    assert (same == again).all() and (same != other).any()


def test_percentiles_leave_out_what_is_undefined_and_keep_what_is_infinite():
    bootstrap = Bootstrap(np.ones((101, 1)), "", level=0.5)
    samples = np.arange(101.0)
    assert bootstrap.interval(samples) == (25, 75)
    assert bootstrap.interval(np.where(samples > 70, np.inf, samples)) == (25, np.inf)
    assert bootstrap.interval(np.where(samples > 80, np.nan, samples)) == (20, 60)
    assert np.isnan(bootstrap.interval(np.where(samples > 40, np.nan, samples))).all()


def test_nominal_ninety_per_cent_covers_the_truth_about_that_often():
    target = 3e13
    covered = {"a": 0, "isoflop a": 0, "params": 0, "loss": 0}
    studies = 30
    for seed in range(studies):
        law = analyse(isoflop_study(noise=0.01, seed=seed, width=4.0), resamples=100, seed=seed)
        last = law["optimum"][-1]
        assert last["flops"] == pytest.approx(target)
        truth = TRUTH.optimum(target)
        for name, (low, high), value in (
            ("a", law["intervals"]["a"], TRUTH.a),
            ("isoflop a", law["isoflop"]["intervals"]["a"], TRUTH.a),
            ("params", (last["params"]["low"], last["params"]["high"]), truth.params),
            ("loss", (last["loss"]["low"], last["loss"]["high"]), truth.loss),
        ):
            covered[name] += low <= value <= high
    # 23 or fewer of 30 has a probability of 3 % at a true coverage of 90 %.
    assert min(covered.values()) >= 23, covered


def test_less_noise_means_narrower_intervals():
    def width(noise):
        intervals = analyse(isoflop_study(noise=noise), resamples=100)["intervals"]
        return intervals["a"][1] - intervals["a"][0]

    assert 2 * width(0.002) < width(0.01)


def test_interval_of_each_minimum_holds_its_vertex():
    table = build_table(isoflop_study(noise=0.003))
    groups = group_budgets(table)
    budgets = [fit_budget(table, flops, rows) for flops, rows in groups]
    intervals = isoflop_intervals(table, budgets, draw(len(table), [rows for _, rows in groups], 200, 0.9, 0))
    assert len(intervals.params_opt) == len(budgets)
    for budget, (low, high) in zip(budgets, intervals.params_opt):
        assert low < budget.params_opt < high < 2 * low
