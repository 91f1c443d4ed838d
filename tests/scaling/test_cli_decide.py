"""`scaling decide`: tables, laws and speeds in, one decision out, and one line for each mistake."""

import csv
import json

import numpy as np
import pytest

from analysis.laws import ChinchillaLaw
from scaling.cli import main

TRUTH = ChinchillaLaw(E=1.7, A=400.0, B=1500.0, alpha=0.34, beta=0.36)


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run the command line in a directory with a table of runs and their speeds; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 7)
    params = TRUTH.optimum(flops).params * np.tile(np.geomspace(0.2, 5, 7), 5)
    loss = TRUTH.loss(params, flops / 6 / params) * np.exp(0.002 * rng.standard_normal(35))
    hours = flops / (2e14 * (params / 1e9) ** 0.24) / 3600
    with open("runs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss", "flops", "device_hours", "device"])
        writer.writerows([*row, "NVIDIA H100 80GB HBM3"] for row in zip(params, flops / 6 / params, loss, flops, hours))

    def call(*arguments):
        code = main(["decide", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def decided(run, *arguments):
    code, out, err = run(*arguments, "--bootstrap", 50, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_table_and_its_speeds_give_three_models_with_intervals(run):
    found = decided(run, "runs.csv", "--speeds", "runs.csv", "--flops", "1e20")
    models = found["models"]
    assert list(models) == ["loss_optimal", "time_optimal", "dollar_optimal"]
    best = models["loss_optimal"]["params"]
    assert best["low"] < best["value"] < best["high"]
    assert best["value"] == pytest.approx(TRUTH.optimum(1e20).params, rel=0.15)
    assert models["time_optimal"]["device_hours"]["value"] < models["loss_optimal"]["device_hours"]["value"]
    assert found["speed"]["exponent_of_params"] == pytest.approx(0.24, abs=1e-6)
    assert found["price"]["date"] >= "2026-01-01" and found["price"]["usd_per_device_hour"]["mid"] > 0
    assert found["decades_beyond_data"] == pytest.approx(0, abs=1e-9) and not found["warnings"]
    assert found["conventions"]["flops"] == "6 x params x tokens"
    assert [row["size"] for row in found["sizes"]] == [0.125, 0.25, 0.5, 2.0]


def test_the_backtest_may_choose_the_form(run):
    found = decided(run, "runs.csv", "--form", "auto", "--flops", "1e20")
    assert found["form"].startswith(("E + ", "(("))
    assert found["loss"]["value"] == pytest.approx(TRUTH.optimum(1e20).loss, rel=0.01)


def test_people_read_a_few_lines(run):
    code, out, _ = run("runs.csv", "--speeds", "runs.csv", "--usd", "5000", "--bootstrap", 50, "--price", 2)
    assert code == 0 and len(out.splitlines()) < 16
    for said in ("loss-optimal: N", "time- and dollar-optimal: N", "0.25 x N", "wasted", "$2.00 per", "decades beyond"):
        assert said in out, out


def test_serving_makes_the_dollar_optimal_model_smaller(run):
    options = ("runs.csv", "--device", "H100", "--mfu", 0.4, "--loss", 2.2)
    without, served = (decided(run, *options, "--serve-tokens", tokens) for tokens in (0, 1e13))
    size = [found["models"]["dollar_optimal"]["params"]["value"] for found in (without, served)]
    assert size[1] < 0.8 * size[0]
    assert without["models"]["time_optimal"] == served["models"]["time_optimal"] | {
        "usd_lifetime": without["models"]["time_optimal"]["usd_lifetime"]
    }


def test_the_error_of_the_form_stands_beside_the_bootstrap(run):
    one, auto = (decided(run, "runs.csv", "--form", form, "--flops", "1e21") for form in ("chinchilla", "auto"))
    formed, best = one["with_form_error"], one["models"]["loss_optimal"]["params"]
    assert formed["of"] == "chinchilla" and formed["flops"] == pytest.approx(1e21)
    assert formed["params"]["value"] == best["value"]
    assert formed["params"]["low"] < best["low"] < best["high"] < formed["params"]["high"]
    assert formed["loss"]["low"] < one["loss"]["low"] and one["loss"]["high"] < formed["loss"]["high"]
    assert auto["with_form_error"]["of"] == "average"
    assert auto["with_form_error"]["loss"]["value"] == pytest.approx(TRUTH.optimum(1e21).loss, rel=0.02)
    shown = run("runs.csv", "--form", "auto", "--flops", "1e21", "--bootstrap", 50)[1]
    assert "average of all forms, with the error of the form as its backtest shows it" in shown


def test_a_form_that_fails_its_backtest_is_named(run, tmp_path):
    rows = list(csv.reader(open("runs.csv")))
    for row in rows[1:]:
        row[2] = 1.7 + 2.0 * (float(row[2]) - 1.7) ** 3  # no sum of powers of N and D
    with open(tmp_path / "bent.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert "FORM_FAILS_BACKTEST" in [w["code"] for w in decided(run, "bent.csv", "--flops", "1e20")["warnings"]]
    auto = decided(run, "bent.csv", "--flops", "1e20", "--form", "auto")
    assert "FORM_FAILS_BACKTEST" not in [w["code"] for w in auto["warnings"]]


def test_a_law_by_auto_is_averaged_again_and_an_old_law_says_so(run, tmp_path):
    from analysis.study import fit_table

    law = fit_table("runs.csv", form="auto", resamples=20)
    (tmp_path / "law.json").write_text(json.dumps(law))
    assert decided(run, "law.json", "--flops", "1e21")["with_form_error"]["of"] == "average"
    (tmp_path / "law.json").write_text(json.dumps({**law, "settings": {"loss": "huber on log loss"}}))
    code, out, err = run("law.json", "--flops", "1e21")
    assert code == 2 and "another version" in err and "make it again" in err and len(err.strip().splitlines()) == 1


def test_far_beyond_the_data_it_says_so(run):
    found = decided(run, "runs.csv", "--speeds", "runs.csv", "--flops", "1e24")
    assert found["decades_beyond_data"] == pytest.approx(4)
    assert [warning["code"] for warning in found["warnings"]] == ["EXTRAPOLATION", "EXTRAPOLATION"]
    assert [warning["numbers"]["quantity"] for warning in found["warnings"]] == ["flops", "speed"]
    assert found["warnings"][0]["numbers"]["decades"] == pytest.approx(4) and found["warnings"][0]["remedy"]


def test_a_law_file_is_fitted_again_while_its_table_is_there(run, tmp_path):
    assert main(["fit", "runs.csv", "--form", "tied", "--bootstrap", "20", "--json"]) == 0
    run("runs.csv", "--flops", 1e20)  # empties the captured output
    from analysis.study import fit_table

    law = fit_table("runs.csv", form="tied", outliers="lowest:0.8", resamples=20)
    (tmp_path / "law.json").write_text(json.dumps(law))
    found = decided(run, "law.json", "--flops", "1e20")
    assert found["form"] == law["form"] and found["parameters"] == pytest.approx(law["parameters"])
    assert found["intervals"]["resamples"] == 50
    (tmp_path / "runs.csv").unlink()
    alone = decided(run, "law.json", "--flops", "1e21")
    assert alone["intervals"] is None and alone["models"]["loss_optimal"]["params"]["low"] is None
    # the 20 % of rows with the highest loss were left out, none of them the largest
    assert alone["decades_beyond_data"] == pytest.approx(1)
    assert "no intervals" in run("law.json", "--flops", "1e21")[1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("runs.csv",), "no budget given: give one of --flops, --gpu-hours, --usd, --loss"),
        (("runs.csv", "--flops", "1e20", "--usd", "5"), "--flops and --usd given"),
        (("runs.csv", "--flops", "0"), "above zero"),
        (("runs.csv", "--gpu-hours", "5"), "how fast"),
        (("runs.csv", "--loss", "1.0"), "never falls below"),
        (("runs.csv", "--flops", "1e20", "--mfu", "0.4"), "--device"),
        (("runs.csv", "--flops", "1e20", "--mfu", "1.4", "--device", "H100"), "between 0 and 1"),
        (("runs.csv", "--flops", "1e20", "--mfu", "0.4", "--device", "abacus"), "abacus"),
        (("runs.csv", "--flops", "1e20", "--speeds", "none.csv"), "none.csv"),
        (("runs.csv", "--flops", "1e20", "--form", "compute"), "use a surface"),
        (("runs.csv", "--flops", "1e20", "--bootstrap", "2"), "at least 10"),
        (("none.csv", "--flops", "1e20"), "none.csv"),
        (("none.json", "--flops", "1e20"), "none.json"),
        ((".", "--flops", "1e20"), "plan.json"),
        ((".", "--flops", "1e20", "--form", "tied"), "leave it out"),
    ],
)
def test_mistakes(run, arguments, said):
    code, out, err = run(*arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, out + err


def test_a_sweep_has_its_own_law_speeds_and_dated_price(run, trained, monkeypatch):
    monkeypatch.chdir(trained.directory)
    found = decided(run, "--flops", "8e8")
    law = json.loads((trained.directory / "runs/tiny/law.json").read_text())
    assert found["parameters"] == pytest.approx(law["parameters"], rel=1e-5)
    assert found["speed"]["source"] == "runs of runs/tiny" and found["price"]["device"] == "CPU core"
    assert found["models"]["time_optimal"]["usd_training"]["value"] > 0
    assert found["decades_beyond_data"] == pytest.approx(0, abs=0.1)
    same = decided(run, "runs/tiny/law.json", "--flops", "8e8")
    assert same["models"] == found["models"]


def test_a_budget_far_below_the_runs_is_an_extrapolation_too(run):
    below = decided(run, "runs.csv", "--flops", "1e14")["warnings"]
    assert [w["code"] for w in below] == ["EXTRAPOLATION"] and "below the smallest run" in below[0]["message"]
    assert "EXTRAPOLATION" not in [w["code"] for w in decided(run, "runs.csv", "--flops", "1e19")["warnings"]]
