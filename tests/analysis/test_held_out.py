"""A held-out run: in no fit, predicted by the law of the others, and told apart from a run that failed."""

import numpy as np
import pytest

from analysis.laws import ChinchillaLaw
from analysis.study import analyse
from scaling.errors import UserError

LAW = ChinchillaLaw(E=1.7, A=400.0, B=1500.0, alpha=0.34, beta=0.36)


def columns(loss_of_last=None, **changed):
    flops = np.append(np.repeat(np.geomspace(1e18, 1e20, 4), 5), 1e21)
    params = LAW.optimum(flops).params * np.append(np.tile(np.geomspace(0.3, 3, 5), 4), 1.0)
    loss = LAW.loss(params, flops / 6 / params) * np.exp(0.001 * np.random.default_rng(0).standard_normal(21))
    if loss_of_last is not None:
        loss[-1] = loss_of_last
    table = {"params": params, "tokens": flops / 6 / params, "loss": loss}
    table |= {"run_id": [f"run{i}" for i in range(21)], "role": ["grid"] * 20 + ["held-out"]}
    return {**table, "status": ["finished"] * 21, **changed}


def test_it_is_predicted_by_the_law_of_the_others_with_an_interval():
    found = analyse(columns(), resamples=200)
    (run,) = found["held_out"]
    truth = float(LAW.loss(run["params"], run["tokens"]))
    assert found["n_points"] == 20 and run["run_id"] == "run20"
    assert run["predicted"]["low"] < run["predicted"]["value"] < run["predicted"]["high"]
    assert run["predicted"]["value"] == pytest.approx(truth, rel=0.005)
    assert run["error"] == pytest.approx(np.log(run["predicted"]["value"] / run["measured"]))


def test_its_loss_changes_nothing_but_the_error():
    found, worse = analyse(columns(), resamples=20), analyse(columns(loss_of_last=3.0), resamples=20)
    assert worse["parameters"] == found["parameters"] and worse["intervals"] == found["intervals"]
    assert worse["held_out"][0]["measured"] == 3.0 and worse["held_out"][0]["error"] < -0.1


def test_it_is_listed_as_left_out_and_no_warning_calls_it_unfinished():
    found = analyse(columns(), resamples=20)
    assert [(run["run_id"], "held out" in run["reason"]) for run in found["excluded"]] == [("run20", True)]
    assert not {"UNFINISHED_RUNS_EXCLUDED", "UNFINISHED_SCHEDULE"} & {w["code"] for w in found["warnings"]}


def test_a_held_out_run_that_failed_is_one_that_failed():
    table = columns(status=["finished"] * 20 + ["diverged"])
    found = analyse(table, resamples=20)
    assert found["held_out"] == [] and found["excluded"][0]["reason"] == "status diverged"


def test_a_loss_that_is_none_is_named():
    with pytest.raises(UserError, match="held-out run run20: loss"):
        analyse(columns(loss_of_last=np.nan), resamples=20)
