import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.estimator import Estimator, fit_law
from analysis.isoflop import fit_budget, group_budgets
from analysis.quantity import optimum_loss, optimum_params, optimum_tokens, parameter, tokens_per_param, wasted_usd
from analysis.study import analyse
from analysis.table import build_table
from analysis.uncertainty import METHODS, SCHEMES, Bootstrap, confidence_intervals, draw, isoflop_intervals
from scaling.errors import UserError


def test_strata_keep_their_size_and_no_run_is_forgotten():
    groups = [np.array([0, 1, 2, 3]), np.array([4, 5, 6])]
    counts = draw(9, groups, 50, 0.9, 0, "stratified").counts
    for rows, size in ((slice(0, 4), 4), (slice(4, 7), 3), (slice(7, 9), 2)):
        assert (counts[:, rows].sum(1) == size).all()
    assert (counts.sum(0) > 0).all()
    loose = draw(9, groups, 50, 0.9, 0, "pairs").counts
    assert (loose.sum(1) == 9).all() and len(np.unique(loose[:, :4].sum(1))) > 1


def test_clusters_come_whole_and_a_run_without_one_is_its_own():
    counts = draw(6, [np.array([0, 3]), np.array([1, 2])], 200, 0.9, 0, "clustered").counts
    assert (counts[:, 0] == counts[:, 3]).all() and (counts[:, 1] == counts[:, 2]).all()
    assert (counts[:, 4] != counts[:, 5]).any()
    assert (counts[:, [0, 1, 4, 5]].sum(1) == 4).all()


def test_random_weights_sum_to_the_number_of_runs_and_leave_none_out():
    counts = draw(20, None, 50, 0.9, 0, "weights").counts
    assert counts.sum(1) == pytest.approx(20) and (counts > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_decides_the_draw(scheme):
    groups = [np.array([i, i + 10]) for i in range(10)]
    same, again, other = (draw(20, groups, 30, 0.9, seed, scheme).counts for seed in (3, 3, 4))
    assert (same == again).all() and (same != other).any()


@pytest.mark.parametrize(
    "groups, scheme, remedy",
    [
        (None, "wild", "known are pairs, stratified, weights, clustered"),
        (None, "stratified", "name the column of budgets"),
        (None, "clustered", "group=COL"),
        ([np.arange(5)], "clustered", "all runs are one cluster"),
    ],
)
def test_a_scheme_that_cannot_be_drawn_is_an_error_with_a_remedy(groups, scheme, remedy):
    with pytest.raises(UserError, match=remedy):
        draw(5, groups, 20, 0.9, 0, scheme)


def test_runs_that_share_their_error_need_clusters():
    """Five checkpoints of each run, with one error: five times the rows, not five times the knowledge."""
    rng = np.random.default_rng(0)
    columns = isoflop_study(noise=0.0, width=4.0)
    params, tokens = (np.repeat(columns[name], 5) for name in ("params", "tokens"))
    loss = TRUTH.loss(params, tokens) * np.exp(0.005 * np.repeat(rng.standard_normal(len(params) // 5), 5))
    fit = fit_law((params, tokens), loss, Estimator(loss="log"))
    clusters = list(np.arange(len(params)).reshape(-1, 5))
    widths = {}
    for method in ("pairs", "clustered"):
        found = confidence_intervals(
            (params, tokens), loss, fit, [parameter("a")], method=method, groups=clusters, resamples=200
        )
        widths[method] = found["a"][1] - found["a"][0]
    assert 1.7 * widths["pairs"] < widths["clustered"]  # the square root of five is 2.24


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_gives_every_quantity_an_interval_about_the_estimate(method):
    columns = isoflop_study(noise=0.003, width=4.0)
    inputs, loss = (columns["params"], columns["tokens"]), columns["loss"]
    fit = fit_law(inputs, loss)
    at_target = (quantity(3e13) for quantity in (optimum_params, optimum_tokens, tokens_per_param, optimum_loss))
    quantities = [parameter("a"), *at_target]
    groups = [np.array([i, i + 1]) for i in range(0, len(loss), 2)]
    found = confidence_intervals(inputs, loss, fit, quantities, method=method, groups=groups, resamples=100)
    for quantity in quantities:
        low, high = found[quantity.name]
        assert low < quantity.of(fit.law) < high < 2.5 * low


def test_waste_is_resampled_and_nothing_at_its_lower_end():
    columns = isoflop_study(noise=0.003, width=4.0)
    inputs, loss = (columns["params"], columns["tokens"]), columns["loss"]
    fit = fit_law(inputs, loss)
    best = fit.law.optimum(3e13)
    found = confidence_intervals(inputs, loss, fit, [wasted_usd(best.params, best.tokens, 1e-9)], resamples=200)
    low, high = found["wasted USD"]
    assert 0 <= low < high < 0.2 * 3e4


def test_weights_of_the_rows_count_in_every_resample():
    columns = isoflop_study(noise=0.003, width=4.0)
    inputs, loss = (columns["params"], columns["tokens"]), columns["loss"].copy()
    loss[3] *= 2.0
    weights = np.ones(len(loss))
    weights[3] = 0.0
    kept = np.arange(len(loss)) != 3
    quantity = optimum_loss(3e13)
    spoiled = fit_law(inputs, loss, Estimator(loss="log"), weights)
    clean = fit_law([column[kept] for column in inputs], loss[kept], Estimator(loss="log"))
    with_it = confidence_intervals(inputs, loss, spoiled, [quantity], weights=weights, resamples=400)
    without = confidence_intervals([column[kept] for column in inputs], loss[kept], clean, [quantity], resamples=400)
    assert with_it[quantity.name] == pytest.approx(without[quantity.name], rel=2e-3)


def test_an_unknown_method():
    columns = isoflop_study(noise=0.003)
    inputs, loss = (columns["params"], columns["tokens"]), columns["loss"]
    with pytest.raises(UserError, match="method = 'wild': no such interval"):
        confidence_intervals(inputs, loss, fit_law(inputs, loss), [parameter("a")], method="wild")


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


def test_a_table_that_names_clusters_is_resampled_by_them():
    columns = isoflop_study(noise=0.01)
    count = len(columns["loss"])
    methods = {
        name: analyse({**columns, **extra}, resamples=20)["intervals"]["method"]
        for name, extra in {
            "runs": {},
            "clusters": {"group": [f"width {i % 7}" for i in range(count)]},
            "one": {"group": ["all"] * count},
        }.items()
    }
    assert "clusters" in methods["clusters"]
    assert methods["runs"] == methods["one"] == SCHEMES["weights"]
    assert analyse(columns, loss="log", resamples=20)["intervals"]["method"] == SCHEMES["pairs"]


def test_a_notebook_gets_intervals_of_any_quantity_from_the_package():
    from analysis import fit, optimum_params

    study = isoflop_study(noise=0.003)
    fitted, wanted = fit(study), optimum_params(1e13)
    for method in ("pairs", "delta", "profile"):
        found = confidence_intervals(
            (study["params"], study["tokens"]), study["loss"], fitted, [wanted], method=method, resamples=50
        )
        low, high = found[wanted.name]
        assert low < wanted.of(fitted.law) < high, method
