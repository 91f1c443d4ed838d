import numpy as np
import pytest
from studies import TRUTH, isoflop_study, ladder_study

from analysis.estimator import Estimator, fit_law
from analysis.findings import Code
from analysis.fit_findings import form_findings
from analysis.isoflop_findings import agreement_findings
from analysis.laws import ChinchillaLaw
from analysis.study import analyse
from analysis.table import build_table


def warnings(study, **settings):
    """Code -> numbers of each finding."""
    found = analyse(study, **{"resamples": 20, **settings})["warnings"]
    for warning in found:
        assert set(warning) == {"code", "message", "remedy", "numbers"} and warning["message"] and warning["remedy"]
        assert warning["code"] in Code.__members__
    return {warning["code"]: warning["numbers"] for warning in found}


def test_a_good_study_has_no_findings():
    assert warnings(isoflop_study(noise=0.003)) == {}


def test_at_edge_names_the_end_and_leaves_the_budget_out():
    study = isoflop_study(noise=0.001)
    too_small = (study["flops_budget"] == study["flops_budget"][-1]) & (study["params"] > TRUTH.optimum(3e12).params)
    study = {name: column[~too_small] for name, column in study.items()}
    law = analyse(study, resamples=20)
    assert [b["interior"] for b in law["isoflop"]["budgets"]] == [True] * 5 + [False]
    (edge,) = [w for w in law["warnings"] if w["code"] == "AT_EDGE"]
    assert edge["numbers"]["edge"] == "largest" and edge["numbers"]["flops"] == pytest.approx(3e12)
    assert "add sizes above" in edge["remedy"]
    assert law["isoflop"]["exponents"]["a"] == pytest.approx(TRUTH.a, abs=0.03)
    shifted = warnings(isoflop_study(noise=0.001, shift=6.0))["AT_EDGE"]
    assert shifted["edge"] == "smallest"


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
    assert found.code == Code.APPROACHES_DISAGREE and found.to_dict()["numbers"]["surface"] == [0.4, 0.5]


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
    study["status"] = ["finished"] * 42
    study["schedule_finished"] = ["False"] * 2 + ["True"] * 40
    assert warnings(study)["UNFINISHED_SCHEDULE"] == {"n_runs": 2, "run_ids": ["run0", "run1"]}


def shifted_sizes(factors):
    """A study whose sizes at each budget are moved by these factors."""
    parts = [isoflop_study(noise=0.001, shift=factor) for factor in factors]
    chosen = [part["flops_budget"] == np.unique(part["flops_budget"])[i] for i, part in enumerate(parts)]
    return {name: np.concatenate([part[name][rows] for part, rows in zip(parts, chosen)]) for name in parts[0]}


def test_off_centre_names_the_budgets_and_the_side():
    assert "OFF_CENTRE" not in warnings(shifted_sizes([1.5] * 6))
    found = warnings(shifted_sizes([1, 1, 1, 1, 3, 3]))["OFF_CENTRE"]
    assert [item["flops"] for item in found["budgets"]] == pytest.approx([1.3228e12, 3e12], rel=1e-3)
    assert all(item["params_middle"] > 1.5 * item["params_opt"] for item in found["budgets"])


def test_columns_that_name_conventions_must_agree():
    study = isoflop_study(noise=0.002)
    study["tokenizer"] = ["bpe"] * 42
    study["experiment"] = [f"run {i}" for i in range(42)]  # a name for each run is no convention
    assert "MIXED_CONVENTIONS" not in warnings(study)
    study["tokenizer"][:10] = ["bytes"] * 10
    found = warnings(study)["MIXED_CONVENTIONS"]
    assert found == {"column": "tokenizer", "values": {"bpe": 32, "bytes": 10}}


def test_flops_of_two_conventions_are_told_from_one_that_changes_with_size():
    study = isoflop_study(noise=0.002)
    attention = 1 + 0.5 * (study["params"].min() / study["params"]) ** 0.3
    study["flops"] = study["flops_budget"] * attention
    assert not {"MIXED_CONVENTIONS"} & warnings(study).keys() and "FLOPS_NOT_6ND" in warnings(study)
    study["flops"] = study["flops_budget"] * np.where(np.arange(42) % 3, 1.0, attention)
    found = warnings(study)
    assert found["MIXED_CONVENTIONS"]["n_runs"] == [28, 14] and "FLOPS_NOT_6ND" not in found


def test_a_convention_that_jumps_from_size_to_size_is_one():
    study = ladder_study(0.002)
    study["flops"] = 6 * study["params"] * study["tokens"] * (1 + 0.5 * (study["params"] / 1e4) ** -0.3)
    found = warnings(study)
    assert "MIXED_CONVENTIONS" not in found and found["FLOPS_NOT_6ND"]["ratio_max"] == pytest.approx(1.5)


def test_losses_in_two_units():
    study = isoflop_study(noise=0.003)
    study["loss"] = np.where(np.arange(42) % 3, 1.0, 1 / np.log(2)) * study["loss"]
    found = warnings(study)["MIXED_CONVENTIONS"]
    assert found["ratio"] == pytest.approx(1.44, abs=0.03) and found["n_runs"] == [28, 14]
    noisy = isoflop_study(noise=0.003)
    noisy["loss"][[3, 20]] *= 1.3  # two bad runs are no unit
    assert "MIXED_CONVENTIONS" not in warnings(noisy)


def test_checkpoints_of_one_run_stand_in_the_middle_of_its_schedule():
    study = isoflop_study(noise=0.003)
    study["run"] = [f"run {i}" for i in range(42)]
    assert "UNFINISHED_SCHEDULE" not in warnings(study)
    early = {name: column[:5] for name, column in study.items()}
    early |= {"tokens": early["tokens"] / 2, "loss": early["loss"] * 1.05}
    both = {name: [*column, *early[name]] for name, column in study.items()}
    assert warnings(both)["UNFINISHED_SCHEDULE"] == {"n_rows": 5, "n_runs": 5, "column": "run"}
    both["schedule_finished"] = [True] * 47
    assert "UNFINISHED_SCHEDULE" not in warnings(both)


@pytest.mark.parametrize("form", ["chinchilla", "gamma"])
def test_a_study_that_determines_its_law_is_neither_flat_nor_multimodal(form):
    for seed in range(3):
        assert not {"UNIDENTIFIED", "MULTIMODAL"} & warnings(isoflop_study(noise=0.01, seed=seed), form=form).keys()


def test_unidentified_names_the_parameters_and_how_far_they_are_flat():
    found = warnings(ladder_study(0.01, seed=1))["UNIDENTIFIED"]
    assert list(found["parameters"]) == ["E"] and found["level"] == 0.9
    flat = found["parameters"]["E"]
    assert flat["low"] == 0 and flat["decades"] is None  # open: no floor at all fits as well
    wide = warnings(ladder_study(0.005, seed=4), form="gamma")["UNIDENTIFIED"]["parameters"]
    decades = [ends["decades"] for ends in wide.values() if ends["decades"] is not None]
    assert decades and min(decades) >= 1


def test_what_is_held_is_not_called_unidentified():
    assert "UNIDENTIFIED" not in warnings(ladder_study(0.01, seed=1), held={"E": 1.2})


def test_few_noisy_runs_under_many_parameters_have_several_optima():
    found = warnings(ladder_study(0.01), form="gamma")["MULTIMODAL"]
    assert found["params_high"] > 1.2 * found["params_low"] and found["flops"] == pytest.approx(6e12)


def test_optima_that_agree_on_the_size_are_one():
    table = build_table(isoflop_study(noise=0.01))
    fit = fit_law((table.params, table.tokens), table.loss, Estimator())
    assert len(fit.optima) > 1 and fit.optima == pytest.approx(np.tile(fit.coordinates, (len(fit.optima), 1)), abs=1e-3)


def test_tokens_that_hardly_vary_leave_their_exponent_unidentified():
    params = np.repeat(np.geomspace(1e7, 1e9, 8), 4)
    tokens = 1.3e11 * (1 + 0.01 * np.tile(np.arange(4), 8))
    law = ChinchillaLaw(E=1.8, A=400.0, B=1500.0, alpha=0.34, beta=0.36)
    loss = law.loss(params, tokens) * np.exp(0.002 * np.random.default_rng(0).standard_normal(32))
    flat = warnings({"params": params, "tokens": tokens, "loss": loss})["UNIDENTIFIED"]["parameters"]
    assert {"E", "beta", "N*"} <= flat.keys() and "alpha" not in flat


def test_forms_of_other_inputs_have_their_rows_looked_at_too():
    study = isoflop_study(noise=0.002)
    study = {"flops": study["flops_budget"], "loss": study["loss"], "status": ["diverged"] + ["finished"] * 41}
    found = warnings(study | {"dataset": ["a", "b"] * 21}, form="compute")
    assert found["DIVERGED_RUNS_EXCLUDED"]["n_runs"] == 1
    assert found["MIXED_CONVENTIONS"] == {"column": "dataset", "values": {"b": 21, "a": 20}}
