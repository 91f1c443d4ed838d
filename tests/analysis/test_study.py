import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from studies import TRUTH, isoflop_study

from analysis.laws import Law
from analysis.study import analyse, fit_table
from scaling.errors import UserError


def test_the_law_carries_everything_a_report_needs():
    law = analyse(isoflop_study(noise=0.003), resamples=100)
    assert set(law) == {
        *("form", "n_points", "objective", "r_squared_log_loss", "parameters", "exponents", "intervals", "isoflop"),
        *("method", "predictions", "forms", "choice", "optimum", "conventions", "warnings", "excluded", "diagnostics"),
        *("settings", "held_out"),
    }
    assert set(law["parameters"]) == {"E", "A", "B", "alpha", "beta"}
    assert set(law["intervals"]) == {"level", "method", "resamples", "E", "A", "B", "alpha", "beta", "a", "b"}
    assert law["n_points"] == 42 and law["form"] == "E + A/N^alpha + B/D^beta"
    for name in ("a", "b"):
        low, high = law["intervals"][name]
        assert low < law["exponents"][name] < high
    assert len(law["isoflop"]["budgets"]) == 6
    for budget in law["isoflop"]["budgets"]:
        assert budget["interior"] and len(budget["coefficients"]) == 3 and len(budget["params_interval"]) == 2
    assert Law.from_dict(json.loads(json.dumps(law, allow_nan=False))).E == law["parameters"]["E"]


def test_optimum_reaches_ten_times_beyond_the_data_with_widening_bands():
    law = analyse(isoflop_study(noise=0.005), resamples=100)
    first, last = law["optimum"][0], law["optimum"][-1]
    assert first["flops"] == pytest.approx(5e10) and last["flops"] == pytest.approx(3e13)
    assert last["decades_beyond_data"] == pytest.approx(1) and first["decades_beyond_data"] == 0
    for point in law["optimum"]:
        for name in ("params", "tokens", "loss"):
            assert point[name]["low"] < point[name]["value"] < point[name]["high"]
        assert 6 * point["params"]["value"] * point["tokens"]["value"] == pytest.approx(point["flops"])
    assert last["loss"]["high"] / last["loss"]["low"] > first["loss"]["high"] / first["loss"]["low"]
    assert last["params"]["value"] == pytest.approx(TRUTH.optimum(3e13).params, rel=0.15)


def test_the_same_seed_gives_the_same_law_and_another_seed_other_intervals():
    study = isoflop_study(noise=0.01)
    first, again, other = (analyse(study, resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["parameters"] == other["parameters"]
    assert first["intervals"]["a"] != other["intervals"]["a"]


def test_the_order_of_the_rows_does_not_matter_to_the_estimate():
    study = isoflop_study(noise=0.01)
    order = np.random.default_rng(0).permutation(42)
    shuffled = analyse({name: column[order] for name, column in study.items()}, resamples=20)
    assert shuffled["exponents"]["a"] == pytest.approx(analyse(study, resamples=20)["exponents"]["a"], abs=1e-5)


def test_delta_is_passed_on_and_reported():
    study = isoflop_study(noise=0.01)
    wide, narrow = (analyse(study, resamples=20, delta=delta) for delta in (0.1, 1e-4))
    assert wide["settings"]["delta"] == 0.1
    assert wide["objective"] > narrow["objective"]


def test_undefined_numbers_are_null_and_never_nan():
    study = isoflop_study(budgets=2, sizes=4, shift=20.0)
    law = analyse(study, resamples=30)
    json.dumps(law, allow_nan=False)
    assert law["isoflop"]["exponents"]["a"] is None


def test_fit_table_takes_a_file_and_the_text_of_the_option(tmp_path):
    frame = pd.DataFrame(isoflop_study(noise=0.003)).rename(columns={"params": "N", "loss": "val loss"})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    frame.to_parquet(tmp_path / "runs.parquet")
    text = "params=N,tokens=tokens,loss=val loss,budget=flops_budget"
    from_csv = fit_table(tmp_path / "runs.csv", text, resamples=20)
    mapping = {"params": "N", "tokens": "tokens", "loss": "val loss"}
    from_parquet = fit_table(tmp_path / "runs.parquet", mapping, resamples=20)
    assert from_csv["parameters"] == from_parquet["parameters"]
    assert from_csv["intervals"] == from_parquet["intervals"]
    assert from_csv["conventions"]["params"].startswith("column 'N' of")
    assert from_csv["settings"]["columns"]["loss"] == "val loss"


@pytest.mark.parametrize("form", ["gamma", "tied", "kaplan", "kaplan_floor"])
def test_every_surface_makes_a_whole_law(form):
    law = analyse(isoflop_study(noise=0.003), form=form, resamples=30, at_flops=[1e13])
    assert law["settings"]["form"] == form and set(law["intervals"]) > {*law["parameters"], "a", "b"}
    (point,) = law["predictions"]
    assert point["flops"] == 1e13 and point["params"]["low"] <= point["params"]["value"] <= point["params"]["high"]
    assert Law.from_dict(law).optimum(1e13).loss == pytest.approx(point["loss"]["value"])


def test_a_form_that_is_no_surface_has_parameters_and_no_optimum():
    study = isoflop_study(noise=0.002)
    law = analyse({"flops": study["flops_budget"], "loss": study["loss"]}, form="compute", resamples=30)
    assert law["optimum"] == [] and law["isoflop"] is None and set(law["parameters"]) == {"E", "k", "gamma"}
    low, high = law["intervals"]["gamma"]
    assert low <= law["parameters"]["gamma"] <= high
    json.dumps(law, allow_nan=False)


def test_predictions_are_the_optimum_at_the_asked_compute():
    law = analyse(isoflop_study(noise=0.003), resamples=50, at_flops=[1e13, 1e14])
    assert [point["flops"] for point in law["predictions"]] == [1e13, 1e14]
    assert law["predictions"][0]["tokens"]["value"] == pytest.approx(TRUTH.optimum(1e13).tokens, rel=0.15)
    assert law["predictions"][1]["decades_beyond_data"] == pytest.approx(np.log10(1e14 / 3e12), abs=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"delta": 0.0}, "delta = 0.0"),
        ({"resamples": 0}, "resamples = 0"),
        ({"level": 90}, "level = 90"),
        ({"seed": -1}, "seed = -1"),
        ({"scheme": "wild"}, "scheme = 'wild'"),
        ({"extrapolation": 0.5}, "extrapolation = 0.5"),
        ({"at_flops": [-1.0]}, "at_flops = -1.0"),
        ({"form": "nonsense"}, "form = 'nonsense'"),
        ({"form": "compute", "at_flops": [1e12]}, "compute has no optimum"),
    ],
)
def test_a_bad_setting_is_one_clear_error(setting, message):
    with pytest.raises(UserError, match=message):
        analyse(isoflop_study(), **setting)


def test_the_scheme_of_resampling_is_asked_for_or_chosen():
    study = isoflop_study(noise=0.005)
    usual, pairs, stratified = (analyse(study, resamples=40, scheme=name) for name in (None, "pairs", "stratified"))
    assert usual["settings"]["scheme"] == "weights" and "Bayesian" in usual["intervals"]["method"]
    assert pairs["intervals"]["method"] == usual["isoflop"]["intervals"]["method"] == "percentile, pairs bootstrap"
    assert "stratified" in stratified["intervals"]["method"] == stratified["isoflop"]["intervals"]["method"]
    assert stratified["intervals"]["a"] != pairs["intervals"]["a"]
    grouped = analyse(study | {"group": [f"g{i // 3}" for i in range(42)]}, resamples=40)
    assert grouped["settings"]["scheme"] == "clustered"
    with pytest.raises(UserError, match="name the column of clusters"):
        analyse(study, scheme="clustered", resamples=20)


def test_import_pulls_in_nothing_heavy():
    heavy = "{'torch', 'pandas', 'scipy', 'matplotlib', 'submitit'}"
    code = f"import sys, analysis.study; from analysis import fit; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
