import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.law_json import answered, form_errors, optimum_at
from analysis.laws import Law
from analysis.study import analyse

STUDY = isoflop_study(noise=0.003)


@pytest.fixture(scope="module")
def chosen():
    return analyse(STUDY, form="auto", resamples=50, at_flops=[1e13, 1e14])


@pytest.fixture(scope="module")
def asked():
    return analyse(STUDY, resamples=50, at_flops=[1e13, 1e14])


def test_a_form_of_ones_own_choice_has_both_intervals(asked):
    assert [point["of"] for point in asked["predictions"]] == ["chinchilla"] * 2
    for point in asked["predictions"]:
        for name in ("params", "tokens", "loss"):
            low, high = point["with_form_error"][name]
            assert low <= point[name]["low"] < point[name]["value"] < point[name]["high"] <= high
    near, far = (np.ptp(np.log(point["with_form_error"]["loss"])) for point in asked["predictions"])
    assert far > near > 0.01  # error grows with the distance, and public tables are believed before one's own
    assert all("average" not in point for point in asked["optimum"])


def test_the_average_stands_beside_the_surface_at_every_compute(chosen):
    assert [point["of"] for point in chosen["predictions"]] == ["average"] * 2
    law = Law.from_dict(chosen)
    for point in chosen["optimum"]:
        assert point["loss"]["value"] == pytest.approx(law.optimum(point["flops"]).loss)
        assert point["average"]["loss"]["value"] == pytest.approx(TRUTH.optimum(point["flops"]).loss, rel=0.02)
    at = optimum_at(chosen, 1e13)
    assert answered(at)["params"]["value"] == pytest.approx(chosen["predictions"][0]["params"]["value"], rel=1e-2)
    assert answered(at)["params"]["value"] != pytest.approx(at["params"]["value"], rel=1e-6)


def test_compute_is_that_of_the_table():
    study = STUDY | {"flops": 1.25 * STUDY["flops_budget"]}
    (point,) = analyse(study, resamples=20, at_flops=[1e13])["predictions"]
    assert point["flops_6nd"] == pytest.approx(0.8e13)
    assert 6 * point["params"]["value"] * point["tokens"]["value"] == pytest.approx(0.8e13)
    assert point["decades_beyond_data"] == pytest.approx(np.log10(1e13 / 3.75e12))
    (average,) = analyse(study, form="auto", resamples=20, at_flops=[1e13])["predictions"]
    assert average["params"]["value"] == pytest.approx(point["params"]["value"], rel=0.2)


def test_scattered_runs_have_intervals_with_form_error_too():
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(8, 15, 60)), np.exp(rng.uniform(13, 16, 60))
    loss = TRUTH.loss(params, tokens) * np.exp(0.003 * rng.standard_normal(60))
    law = analyse({"params": params, "tokens": tokens, "loss": loss}, form="auto", resamples=20, at_flops=[1e14])
    (point,) = law["predictions"]
    assert point["of"] == law["choice"]["surface"]
    low, high = point["with_form_error"]["params"]
    assert low < point["params"]["low"] and point["params"]["high"] < high


def test_form_errors_are_root_mean_squares_of_the_next_budget(chosen, asked):
    rows = {row["form"]: row for row in form_errors(chosen)}
    own = [score for score in chosen["forms"] if score["form"] == "gamma" and score["steps"] == 1]
    assert rows["gamma"]["n"] == len(own)
    assert rows["gamma"]["loss_error"] == pytest.approx(np.sqrt(np.mean([s["loss_error"] ** 2 for s in own])))
    assert list(rows) == sorted(rows, key=lambda form: rows[form]["loss_error"])
    assert sum(row["loss_weight"] or 0 for row in rows.values()) == pytest.approx(1)
    assert "average" in rows and rows["average"]["loss_weight"] is None
    assert all(row["loss_weight"] is None for row in form_errors(asked))
    assert form_errors(None) == [] == form_errors({"forms": []})
