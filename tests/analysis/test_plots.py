import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import simulated_sweep

from analysis import figure_style, plots, published
from analysis.axes import figure_of
from analysis.backtest import Score
from analysis.estimator import fit_law
from analysis.laws import Law
from analysis.profile import Profile, profile
from analysis.quantity import optimum_params
from analysis.runs import finished_runs, thinned_curve, tidy_records
from analysis.simulate import simulate_isoflops
from analysis.study import analyse
from analysis.table import build_table
from scaling.errors import UserError


@pytest.fixture(scope="module")
def rows():
    return simulated_sweep.records()


@pytest.fixture(scope="module")
def law(rows):
    return simulated_sweep.law(rows)


@pytest.fixture(scope="module")
def curves(rows):
    return simulated_sweep.curves(rows, lines=100)


def diamonds(figure):
    """(x, y, whether it is filled) of every diamond drawn at data."""
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "D"]
    return sorted(
        (float(x), float(y), line.get_markerfacecolor() != "none") for line in lines for x, y in zip(*line.get_data())
    )


def line_called(figure, start):
    return next(line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith(start))


def slope(line):
    x, y = (np.log(np.asarray(values, float)) for values in line.get_data())
    return (y[-1] - y[0]) / (x[-1] - x[0])


def test_each_isoflop_minimum_is_marked_where_the_fit_puts_it(rows, law):
    marked = diamonds(figure_of(plots.isoflop_curves, rows, law))
    expected = sorted((fit["params_opt"], fit["loss_opt"], True) for fit in law["isoflop"]["budgets"])
    assert [mark[:2] for mark in marked] == [pytest.approx(mark[:2]) for mark in expected]
    assert all(filled for *_, filled in marked)


def test_a_minimum_at_the_edge_of_the_grid_is_hollow_and_named(rows, law):
    budgets = law["isoflop"]["budgets"]
    at_edge = {**law, "isoflop": {**law["isoflop"], "budgets": [*budgets[:-1], {**budgets[-1], "interior": False}]}}
    for figure in (figure_of(plots.isoflop_curves, rows, at_edge), figure_of(plots.optimum, at_edge, "params")):
        assert sum(not filled for *_, filled in diamonds(figure)) == 1
        assert any("not inside the grid" in text.get_text() for text in figure.axes[0].get_legend().get_texts())


def test_the_optimum_is_drawn_with_published_slopes_beside_it(rows, law):
    for quantity, ours, hoffmann, epoch in (
        ("params", law["exponents"]["a"], 0.28 / 0.62, 0.3658 / 0.7136),
        ("tokens", law["exponents"]["b"], 0.34 / 0.62, 0.3478 / 0.7136),
    ):
        figure = figure_of(plots.optimum, law, quantity, rows)
        assert slope(line_called(figure, "fitted surface")) == pytest.approx(ours, abs=1e-6)
        assert slope(line_called(figure, "Hoffmann")) == pytest.approx(hoffmann, abs=1e-6)
        assert slope(line_called(figure, "Epoch")) == pytest.approx(epoch, abs=1e-6)
        assert len(figure.axes[0].collections) >= 2  # the band, and error bars of the minima


def test_the_envelope_lies_below_every_training_curve(rows, law, curves):
    figure = figure_of(plots.frontier, rows, law, curves)
    x, y = (np.asarray(values) for values in line_called(figure, "envelope").get_data())
    best = np.minimum.accumulate(y)
    for row in finished_runs(rows):
        tokens, loss = np.array(thinned_curve(curves[row["run_id"]])).T
        place = np.searchsorted(x, 6 * row["params"] * tokens, side="right")
        assert np.all(loss[place < len(x)] >= best[place[place < len(x)]] - 1e-12)


def test_a_diverged_run_is_no_point_and_its_curve_is_dashed(rows, law, curves):
    lost = next(row for row in rows if row["status"] == "diverged")
    for figure in (figure_of(plots.isoflop_curves, rows, law), figure_of(plots.residuals, rows, law)):
        x = np.concatenate([line.get_xdata() for line in figure.axes[0].get_lines()])
        assert lost["params"] not in x
    panels = plots.training_curves(rows, curves).axes
    dashed = [line for panel in panels for line in panel.get_lines() if line.get_linestyle() == "--"]
    assert len(panels) == len({row["flops_budget"] for row in rows}) and len(dashed) == 1


def test_only_finished_runs_are_points_even_when_others_have_a_loss(rows):
    failed = {**rows[0], "status": "failed", "reason": "timeout"}
    assert finished_runs([failed, rows[1]]) == [rows[1]]
    lines = figure_of(plots.isoflop_curves, [failed, rows[1]], None).axes[0].get_lines()
    x = [size for line in lines for size in line.get_xdata()]
    assert x == [rows[1]["params"]]


def test_residuals_are_measured_over_predicted_in_percent(rows, law):
    figure = figure_of(plots.residuals, rows, law)
    drawn = {x: y for line in figure.axes[0].get_lines() if line.get_marker() == "o" for x, y in zip(*line.get_data())}
    for row in finished_runs(rows):
        predicted = float(Law.from_dict(law).loss(row["params"], row["tokens"]))
        assert drawn[row["params"]] == pytest.approx(100 * (row["loss"] - predicted) / predicted)


def test_predicted_and_measured_time_are_compared_run_by_run(rows):
    figure = figure_of(plots.training_times, rows)
    drawn = {tuple(point) for line in figure.axes[0].get_lines() for point in zip(*line.get_data())}
    assert {(row["predicted_seconds"], row["seconds"]) for row in finished_runs(rows)} <= drawn


def test_there_is_no_figure_where_there_is_nothing_to_show(rows, law):
    unfinished = [{**row, "status": "pending", "loss": None, "seconds": None} for row in rows]
    assert plots.draw_figures([], None, {}) == {}
    assert plots.draw_figures(unfinished, None, {}) == {}
    assert set(plots.draw_figures(rows, None, {})) == {"isoflop", "compute", "time"}
    assert "optimal-params" in plots.draw_figures(rows, {**law, "isoflop": None}, {})


def test_runs_without_budgets_are_drawn_too(rows, law, curves):
    rows = [{**row, "flops_budget": None} for row in rows]
    assert set(plots.draw_figures(rows, law, curves)) == set(plots.draw_figures(simulated_sweep.records(), law, curves))


def test_figures_are_saved_as_files_and_settings_of_the_user_stay(rows, law, curves, tmp_path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 17
    paths = plots.save_figures(tmp_path / "figures", records=rows[:14], law=law, curves=curves)
    assert matplotlib.rcParams["font.size"] == 17
    matplotlib.rcdefaults()
    names = {path.name for path in paths}
    assert {"isoflop.svg", "isoflop.png", "compute.svg", "optimal-params.png", "training.svg"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths if path.suffix == ".png")
    assert all(path.stat().st_size < 400_000 for path in paths if path.suffix == ".svg")
    assert "<text" not in (tmp_path / "figures" / "isoflop.svg").read_text()  # outlines: the same on every machine


def test_a_long_curve_is_thinned_to_means_that_keep_its_ends():
    lines = [{"tokens": 128 * step, "loss": 5.0 / step**0.1} for step in range(1, 20_001)]
    thin = thinned_curve([*lines, {"tokens": 128 * 20_000, "validation_loss": 1.9}, {"tokens": 5, "loss": math.nan}])
    assert 20 <= len(thin) <= 48
    assert thin[0] == (128, 5.0)
    assert thin[-1][1] == pytest.approx(lines[-1]["loss"], rel=0.05)
    assert [tokens for tokens, _ in thin] == sorted(tokens for tokens, _ in thin)
    assert thinned_curve([]) == [] and thinned_curve(lines[:3]) == [
        (line["tokens"], line["loss"]) for line in lines[:3]
    ]


def test_a_data_frame_and_a_list_of_rows_are_the_same_table(rows):
    import pandas

    assert tidy_records(pandas.DataFrame(rows)) == tidy_records(rows)


def test_inline_svg_follows_the_page_and_holds_no_address(rows, law):
    with figure_style.style():
        svg = figure_style.inline_svg(figure_of(plots.isoflop_curves, rows, law), "isoflop")
    assert svg.startswith("<svg viewBox=") and "http" not in svg and "<style" not in svg
    assert "#" + figure_style.INK[1:] not in svg and "var(--ink)" in svg and "var(--series-0)" in svg


@pytest.mark.parametrize("module", ["analysis.plots", "analysis.report"])
def test_importing_draws_in_no_heavy_library(module):
    heavy = {"matplotlib", "pandas", "scipy", "torch", "jinja2", "submitit"}
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def simulated():
    return build_table(simulate_isoflops(published.SURFACES["Hoffmann et al. 2022"], np.geomspace(1e18, 1e20, 5)))


def test_given_axes_are_drawn_in_and_returned_and_new_ones_are_pyplots():
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    table = simulated()
    left, right = Figure().subplots(1, 2)
    assert plots.isoflop_curves(table, ax=left) is left and not right.get_lines()
    ax = plots.isoflop_curves(table)
    assert pyplot.gcf() is ax.figure
    pyplot.close(ax.figure)


def test_a_table_without_a_column_of_budgets_is_coloured_by_its_flops():
    table = simulated()
    columns = {name: column for name, column in table.values.items() if name != "flops_budget"}
    for known in (table, build_table(columns)):
        labels = figure_of(plots.isoflop_curves, known).axes[0].get_legend_handles_labels()[1]
        assert labels == [
            f"{power} FLOPs" for power in ("10\u00b9\u2078", "3.2\u00d710\u00b9\u2078", "10\u00b9\u2079")
        ] + [
            "3.2\u00d710\u00b9\u2079 FLOPs",
            "10\u00b2\u2070 FLOPs",
        ]


def test_an_axis_names_the_column_where_only_its_owner_knows_the_convention():
    table = simulated()
    own = {"N": table.params, "tokens": table.tokens, "bpb": table.loss}
    mapped = build_table(own, {"params": "N", "tokens": "tokens", "loss": "bpb"})
    ax = figure_of(plots.isoflop_curves, mapped, analyse(mapped, resamples=10)).axes[0]
    assert ax.get_xlabel() == "Parameters N (column 'N')" and ax.get_ylabel() == "Loss (column 'bpb')"
    assert figure_of(plots.isoflop_curves, table).axes[0].get_ylabel() == "Loss (nats per token)"


def test_residuals_of_a_published_law_are_drawn_as_well():
    truth = published.SURFACES["Hoffmann et al. 2022"]
    table = build_table(simulate_isoflops(truth, [1e18, 1e19, 1e20], noise=0.0))
    lines = figure_of(plots.residuals, table, truth).axes[0].get_lines()
    assert max(abs(y) for line in lines for y in line.get_ydata()) < 1e-9


def score(form, flops, steps, loss, params):
    return Score(form, 1, flops / 3, flops, params, 1.0, loss, 1e9, 2.0, steps)


def test_forms_are_ordered_by_their_backtest_and_errors_are_in_percent():
    scores = [score("worse", 1e20, 1, 2.2, 2e9), score("better", 1e20, 1, 2.02, 1.1e9), score("worse", 3e20, 2, 1, 9e9)]
    ax = figure_of(plots.backtest_errors, scores).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["worse", "better"]
    drawn = sorted((y, x) for line in ax.get_lines() if line.get_marker() == "o" for x, y in zip(*line.get_data()))
    assert drawn == [(0, pytest.approx(-50)), (0, pytest.approx(10)), (1, pytest.approx(1))]
    as_json = figure_of(plots.backtest_errors, [one.to_dict() for one in scores], "params").axes[0]
    assert {round(x) for line in as_json.get_lines() for x in line.get_xdata()} >= {10, 100, 800}
    with pytest.raises(UserError, match="no budget was predicted"):
        plots.backtest_errors([])


def test_a_profile_shades_its_interval_and_an_open_end_says_so():
    table = simulated()
    inputs = (table.params, table.tokens)
    found = profile(inputs, table.loss, fit_law(inputs, table.loss), optimum_params(1e21))
    ax = figure_of(plots.profile_likelihood, found).axes[0]
    (shaded,) = ax.patches
    assert (shaded.get_x(), shaded.get_x() + shaded.get_width()) == pytest.approx((found.low, found.high))
    curve = max(ax.get_lines(), key=lambda line: len(line.get_xdata()))
    assert curve.get_ydata().min() == 0
    assert "open" not in ax.get_legend_handles_labels()[1][-1]
    unknown = Profile(found.quantity, found.values, found.deviance, found.threshold, found.low, math.inf)
    ax = figure_of(plots.profile_likelihood, unknown).axes[0]
    assert ax.get_legend_handles_labels()[1][-1].endswith("to open")


def test_proposed_runs_are_marked_by_role_and_each_dollar_by_what_it_leaves():
    params, tokens = np.array([1e9, 1e8, 2e8]), np.array([2e10, 2e9, 4e9])
    deviations = np.array([[0.2, 0.02], [0.2, 0.02], [0.15, 0.01], [0.1, 0.005]])
    found = SimpleNamespace(
        params=params,
        tokens=tokens,
        cost=np.array([50.0, 10.0, 20.0]),
        role=("held-out", "top", "chosen"),
        deviations=deviations,
    )
    ax = figure_of(plots.next_runs, found, simulated()).axes[0]
    stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
    assert [line.get_xydata().tolist() for line in stars] == [[[6 * 1e9 * 2e10, 1e9]]]
    size, loss = figure_of(plots.what_it_buys, found).axes[0].get_lines()
    assert size.get_xdata().tolist() == [0, 50, 60, 80] and loss.get_ydata().tolist() == [2, 2, 1, 0.5]


def test_the_price_of_a_size_that_reaches_no_such_loss_is_left_out():
    ratio = {"value": 1.5, "low": 1.2, "high": 2.0}
    sizes = [{"size": 0.5, "reachable": True, "flops_ratio": ratio}, {"size": 0.1, "reachable": False}]
    (line,) = figure_of(plots.price_of_sizes, {"sizes": sizes}).axes[0].get_lines()
    assert line.get_xydata().tolist() == [[0.5, 1.5], [1.0, 1.0]]
