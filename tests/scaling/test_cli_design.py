"""`scaling design`: records or a prior law in, the next runs and what they buy out, one line for each mistake."""

import csv
import json

import numpy as np
import pytest

from analysis.laws import ChinchillaLaw
from scaling.cli import main

TRUTH = ChinchillaLaw(E=1.7, A=400.0, B=1500.0, alpha=0.34, beta=0.36)


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run the command line in a directory with a table of runs and a law; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e19, 3), 5)
    params = TRUTH.optimum(flops).params * np.tile(np.geomspace(0.3, 3, 5), 3)
    loss = TRUTH.loss(params, flops / 6 / params) * np.exp(0.002 * rng.standard_normal(15))
    with open("runs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("params", "tokens", "loss"), *zip(params, flops / 6 / params, loss)])
    (tmp_path / "law.json").write_text(TRUTH.to_json())

    def call(*arguments):
        code = main(["design", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def designed(run, *arguments):
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_records_and_a_budget_give_the_next_runs_and_what_they_buy(run):
    found = designed(run, "runs.csv", "--target", 1e22, "--flops", 1e21)
    cells = found["cells"]
    spent = sum(cell["seeds"] * cell["cost_each"] for cell in cells)
    assert found["runs_known"] == 15 and spent == pytest.approx(found["budget"]["spent"]) and spent <= 1e21 * (1 + 1e-9)
    roles = [cell["role"] for cell in cells]
    assert roles.count("held-out") == 1 and roles.count("top") == 5 and roles.count("chosen") > 5
    assert min(cell["flops"] for cell in cells) >= 1e18 * 0.999
    for cell in cells:
        assert cell["flops"] == pytest.approx(6 * cell["params"] * cell["tokens"])
        assert cell["expected_loss"] == pytest.approx(TRUTH.loss(cell["params"], cell["tokens"]), rel=0.05)
    first, last = found["buys"][0], found["buys"][-1]
    assert first["spent"] == 0 and last["spent"] == pytest.approx(spent)
    assert last["sd_ln_params"] < 0.8 * first["sd_ln_params"] and last["sd_ln_loss"] < first["sd_ln_loss"]


def test_a_prior_law_is_enough(run):
    found = designed(run, "law.json", "--target", 1e22, "--flops", 1e21, "--smallest", 1e18)
    assert found["runs_known"] == 0 and found["buys"][-1]["sd_ln_params"] < 0.3 * found["buys"][0]["sd_ln_params"]


def test_dollars_are_hours_at_a_dated_price(run):
    found = designed(run, "runs.csv", "--target", 1e22, "--usd", 1000, "--device", "H100", "--mfu", 0.4)
    each = found["price"]["usd_per_device_hour"] / 3600 / (0.4 * 989.4e12)
    assert found["price"]["date"] >= "2026-01-01" and found["budget"]["spent"] <= 1000
    for cell in found["cells"]:
        assert cell["cost_each"] == pytest.approx(cell["flops"] * each, rel=1e-2)


def test_people_read_the_cells_and_what_each_part_buys(run):
    code, out, _ = run("runs.csv", "--target", 1e22, "--usd", 1000, "--device", "H100", "--mfu", 0.4)
    assert code == 0 and len(out.splitlines()) < 45
    for said in ("held-out", "top", "chosen", "what it buys", "of N*", "form error", "C = 6ND"):
        assert said in out, out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("runs.csv", "--flops", 1e20), "--target"),
        (("runs.csv", "--target", "inf", "--flops", 1e20), "--target"),
        (("runs.csv", "--target", 1e15, "--flops", 1e20), "smallest run, of 1e+18"),
        (("runs.csv", "--target", 1e22, "--flops", 0), "--flops 0: must be above zero"),
        (("runs.csv", "--target", 1e22, "--usd", -3), "--usd -3: must be above zero"),
        (("runs.csv", "--target", 1e22), "no budget given"),
        (("runs.csv", "--target", 1e22, "--flops", 1e15), "raise it"),
        (("runs.csv", "--target", 1e22, "--flops", 1e20, "--noise", 0), "--noise"),
        (("runs.csv", "--target", 1e22, "--flops", 1e20, "--form-error", -1), "--form-error"),
        (("runs.csv", "--target", 1e22, "--flops", 1e20, "--smallest", -1), "--smallest"),
        (("runs.csv", "--target", 1e22, "--usd", 10), "--mfu"),
        (("law.json", "--target", 1e22, "--flops", 1e20), "--smallest"),
        (("none.csv", "--target", 1e22, "--flops", 1e20), "none.csv"),
    ],
)
def test_mistakes(run, arguments, said):
    check_mistake(run, arguments, said)


FORM = "E + A/N^alpha + B/D^beta"
PARAMETERS = {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.36}


@pytest.mark.parametrize(
    "content, said",
    [
        ("hello", "cannot be read as a law"),
        ([1], "must be a JSON object"),
        ({}, "holds no law"),
        (PARAMETERS, "form = None: holds no law"),
        ({"form": FORM, "parameters": {**PARAMETERS, "beta": None}}, "parameters.beta"),
        ({"form": FORM, "parameters": PARAMETERS, "settings": [1]}, "another version"),
        ({"form": FORM, "parameters": PARAMETERS, "settings": {"loss": "Huber (1e-3)"}}, "another version"),
    ],
)
def test_a_law_of_an_older_format_is_named(run, tmp_path, content, said):
    (tmp_path / "old.json").write_text(content if isinstance(content, str) else json.dumps(content))
    check_mistake(run, ("old.json", "--target", 1e22, "--flops", 1e20, "--smallest", 1e18), said)


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "0 finished runs"),
        ([(1e6, 2e7, 3.0, "finished")], "1 finished runs"),
        ([(1e6 * i, 2e7, "nan", "diverged") for i in range(1, 9)], "8 more are left out: status diverged"),
    ],
)
def test_too_few_records_are_counted(run, tmp_path, rows, said):
    with open(tmp_path / "few.csv", "w", newline="") as file:
        csv.writer(file).writerows([("params", "tokens", "loss", "status"), *rows])
    check_mistake(run, ("few.csv", "--target", 1e22, "--flops", 1e20), said)


def test_a_budget_without_end_ends(run):
    found = designed(run, "runs.csv", "--target", 1e22, "--flops", 1e60)
    assert sum(cell["seeds"] for cell in found["cells"]) < 2000 and "is not spent" in " ".join(found["notes"])


def test_noise_is_read_from_the_records_unless_it_is_given(run):
    budget = ("runs.csv", "--target", 1e22, "--flops", 1e21)
    found, given = (designed(run, *budget, *more) for more in ((), ("--noise", 1e-3)))
    assert found["assumed"]["noise"] == pytest.approx(0.002, rel=0.8) and "15 runs" in found["assumed"]["noise_source"]
    assert (given["assumed"]["noise"], given["assumed"]["noise_source"]) == (1e-3, "as given")


def check_mistake(run, arguments, said):
    code, out, err = run(*arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, out + err
