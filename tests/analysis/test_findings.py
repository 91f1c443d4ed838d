import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.estimator import Estimator, fit_law
from analysis.findings import Code, agreement_findings, form_findings
from analysis.study import analyse
from analysis.laws import ChinchillaLaw
from analysis.table import build_table


def warnings(study, **settings):
    found = analyse(study, **{"resamples": 20, **settings})["warnings"]
    for warning in found:
        assert warning["message"] and set(warning) >= {"code", "message"}
    return {warning["code"]: warning for warning in found}


def test_a_good_study_has_no_findings():
    assert warnings(isoflop_study(noise=0.003)) == {}


def test_at_edge_names_the_end_and_leaves_the_budget_out():
    study = isoflop_study(noise=0.001)
    too_small = (study["flops_budget"] == study["flops_budget"][-1]) & (study["params"] > TRUTH.optimum(3e12).params)
    study = {name: column[~too_small] for name, column in study.items()}
    law = analyse(study, resamples=20)
    assert [b["interior"] for b in law["isoflop"]["budgets"]] == [True] * 5 + [False]
    (edge,) = [w for w in law["warnings"] if w["code"] == "AT_EDGE"]
    assert edge["edge"] == "largest" and edge["flops"] == pytest.approx(3e12) and "above" in edge["message"]
    assert law["isoflop"]["exponents"]["a"] == pytest.approx(TRUTH.a, abs=0.03)
    shifted = warnings(isoflop_study(noise=0.001, shift=6.0))["AT_EDGE"]
    assert shifted["edge"] == "smallest" and "below" in shifted["message"]


def test_lowest_loss_at_an_end_is_not_interior_even_if_the_parabola_turns():
    study = isoflop_study()
    study["loss"][0] = study["loss"][:7].min() - 0.01
    assert warnings(study)["AT_EDGE"]["edge"] == "smallest"


def test_non_positive_curvature():
    study = isoflop_study()
    first = study["flops_budget"] == study["flops_budget"][0]
    study["loss"][first] = 2 * study["loss"][first].max() - study["loss"][first]
    found = warnings(study)["NON_POSITIVE_CURVATURE"]
    assert found["flops"] == pytest.approx(5e10) and found["curvature"] < 0


def test_too_few_budgets():
    assert warnings(isoflop_study(budgets=3))["TOO_FEW_BUDGETS"]["n_budgets"] == 3
    study = isoflop_study()
    two_sizes = (study["flops_budget"] > 5e10) & (np.arange(42) % 7 > 1)  # one curve and a few scattered runs
    study = {name: column[~two_sizes] for name, column in study.items()}
    law = analyse(study, resamples=20)
    assert law["isoflop"]["exponents"] == {"a": None, "b": None}
    assert "TOO_FEW_BUDGETS" in [w["code"] for w in law["warnings"]]


def test_too_few_points_in_all_and_in_a_budget():
    assert warnings(isoflop_study(budgets=4, sizes=3))["TOO_FEW_POINTS"]["recommended"]
    study = isoflop_study()
    thin = np.ones(42, bool)
    thin[[0, 1, 3, 5, 6, 8, 9, 11, 12]] = False  # leaves two sizes at the first budget and three at the second
    found = warnings({name: column[thin] for name, column in study.items()})["TOO_FEW_POINTS"]
    assert found["budgets_left_out"] == pytest.approx([5e10]) and len(found["budgets"]) == 2


def test_no_budgets():
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(8, 15, 60)), np.exp(rng.uniform(13, 16, 60))
    law = analyse({"params": params, "tokens": tokens, "loss": TRUTH.loss(params, tokens)}, resamples=20)
    assert law["isoflop"] is None
    assert "NO_BUDGETS" in [w["code"] for w in law["warnings"]]
    assert "stratified" not in law["intervals"]["method"]


def test_at_bound_when_the_data_show_no_floor():
    no_floor = ChinchillaLaw(E=1e-9, A=20.0, B=20.0, alpha=0.3, beta=0.25)
    found = warnings(isoflop_study(law=no_floor))["AT_BOUND"]
    assert "E" in found["at_bound"]


def test_not_converged():
    table = build_table(isoflop_study(noise=0.01))
    fit = fit_law((table.params, table.tokens), table.loss, Estimator(max_iterations=1))
    assert [f.code for f in form_findings(fit, (table.params, table.tokens))] == [Code.NOT_CONVERGED]


def test_low_r_squared():
    found = warnings(isoflop_study(noise=0.08))["LOW_R_SQUARED"]
    assert 0 < found["r_squared_log_loss"] < 0.98


def test_extrapolation_of_the_range_and_of_the_sizes():
    found = warnings(isoflop_study(noise=0.001), extrapolation=1000.0)["EXTRAPOLATION"]
    assert found["decades"] == pytest.approx(3) and found["quantity"] == "flops"
    outside = warnings(isoflop_study(budgets=2, sizes=20, shift=300.0))["EXTRAPOLATION"]
    assert outside["quantity"] in ("params", "tokens") and outside["decades"] > 0.1


def test_approaches_disagree():
    assert agreement_findings((0.4, 0.5), (0.45, 0.6)) == []
    assert agreement_findings((0.4, 0.5), (np.nan, np.nan)) == []
    (found,) = agreement_findings((0.4, 0.5), (0.51, 0.6))
    assert found.code == Code.APPROACHES_DISAGREE and found.to_dict()["surface"] == [0.4, 0.5]


def test_duplicate_points():
    study = {name: np.append(column, column[:2]) for name, column in isoflop_study().items()}
    assert warnings(study)["DUPLICATE_POINTS"]["n_duplicates"] == 2


def test_flops_of_another_convention():
    study = isoflop_study()
    study["flops"] = study["flops_budget"] * 1.3
    found = warnings(study)["FLOPS_NOT_6ND"]
    assert found["ratio_min"] == pytest.approx(1.3) and found["ratio_max"] == pytest.approx(1.3)


def test_excluded_runs_by_reason():
    study = isoflop_study()
    study["status"] = ["diverged", "diverged", "failed"] + ["finished"] * 39
    study["run_id"] = [f"run{i}" for i in range(42)]
    found = warnings(study)
    assert found["DIVERGED_RUNS_EXCLUDED"]["run_ids"] == ["run0", "run1"]
    assert found["UNFINISHED_RUNS_EXCLUDED"]["n_runs"] == 1
