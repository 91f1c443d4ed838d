"""Decisions: the optima of each budget agree with brute force and with each other, and every price adds up."""

import numpy as np
import pytest
from studies import TRUTH, isoflop_study

from analysis.cost.speed_curve import SpeedCurve, constant_speed, fit_speed
from analysis.decide import Costs, decide
from analysis.laws import FORMS, ChinchillaLaw
from analysis.sampled import sample_law
from scaling.errors import UserError

LAW = ChinchillaLaw(E=1.8172, A=477.8, B=2143.4, alpha=0.3473, beta=0.3672)
GROWING = SpeedCurve(4e14, 0.24, 1e8, 1e13, "H100", "measured")
BUDGET = 5.76e23


def values(found, model, *names):
    return [found["models"][model][name]["value"] for name in names]


def test_without_a_speed_the_loss_optimal_model_is_the_optimum_of_the_law():
    found = decide(LAW, "flops", BUDGET)
    best = LAW.optimum(BUDGET)
    np.testing.assert_allclose(values(found, "loss_optimal", "params", "tokens"), [best.params, best.tokens], rtol=1e-9)
    assert found["loss"]["value"] == pytest.approx(best.loss)
    assert list(found["models"]) == ["loss_optimal"] and found["models"]["loss_optimal"]["device_hours"] is None


@pytest.mark.parametrize("slope", [0.0, 0.24, -0.1])
def test_where_utilisation_is_a_power_of_size_the_time_optimum_has_a_closed_form(slope):
    found = decide(LAW, "flops", BUDGET, Costs(SpeedCurve(4e14, slope, 1e8, 1e13, "H100", "")))
    # least of (1 - s) ln N + ln D: the share (1-s) beta / ((1-s) beta + alpha) of the reducible loss falls to size
    ratio = (LAW.beta / (LAW.alpha + LAW.beta)) / ((1 - slope) * LAW.beta / ((1 - slope) * LAW.beta + LAW.alpha))
    expected = ratio ** (1 / LAW.alpha)
    assert found["models"]["time_optimal"]["params_ratio"]["value"] == pytest.approx(expected, rel=1e-6)


def test_every_kind_of_budget_leads_back_to_the_same_models():
    costs = Costs(GROWING, 2.0, inference_tokens=1e13)
    by_flops = decide(LAW, "flops", BUDGET, costs)
    hours = by_flops["models"]["time_optimal"]["device_hours"]["value"]
    dollars = by_flops["models"]["dollar_optimal"]["usd_lifetime"]["value"]
    for kind, amount in (("gpu_hours", hours), ("usd", dollars), ("loss", by_flops["loss"]["value"])):
        found = decide(LAW, kind, amount, costs)
        assert found["loss"]["value"] == pytest.approx(by_flops["loss"]["value"], rel=1e-9)
        for model in by_flops["models"]:
            assert values(found, model, "params") == pytest.approx(values(by_flops, model, "params"), rel=1e-4)


@pytest.mark.parametrize("served", [0.0, 1e12, 1e14])
@pytest.mark.parametrize("form", ["chinchilla", "gamma", "kaplan"])
def test_no_other_size_is_cheaper(form, served):
    law = {
        "chinchilla": LAW,
        "gamma": FORMS["gamma"](E=1.5, A=300.0, B=900.0, alpha=0.4, beta=0.35, gamma=0.7),
        "kaplan": FORMS["kaplan"](N_c=8.8e13, D_c=5.4e13, alpha_N=0.076, alpha_D=0.095),
    }[form]
    # the speed stops growing inside the range that is searched
    costs = Costs(SpeedCurve(4e14, 0.24, 1e8, 3e10, "H100", ""), 2.0, served)
    found = decide(law, "flops", BUDGET, costs)
    sizes = values(found, "loss_optimal", "params")[0] * np.geomspace(1e-2, 1e2, 4001)
    with np.errstate(all="ignore"):
        # tokens that reach the same loss, by bisection on the law itself
        low, high = np.full(len(sizes), 0.0), np.full(len(sizes), 60.0)
        for _ in range(80):
            middle = (low + high) / 2
            above = law.loss(sizes, np.exp(middle)) > found["loss"]["value"]
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    tokens = np.where(high < 59.9, np.exp(high), np.inf)
    for model, cost in (("time_optimal", costs.hours), ("dollar_optimal", costs.lifetime_hours)):
        least = cost(*values(found, model, "params", "tokens"))
        assert least <= np.nanmin(cost(sizes, tokens)) * (1 + 1e-9)
        assert least == pytest.approx(np.nanmin(cost(sizes, tokens)), rel=1e-4)


def test_serving_moves_the_dollar_optimum_to_smaller_models_and_growing_utilisation_the_time_optimum_to_larger_ones():
    ratios = [
        decide(LAW, "flops", BUDGET, Costs(GROWING, 2.0, served))["models"]["dollar_optimal"]["params_ratio"]["value"]
        for served in (0, 1e12, 1e13, 1e14)
    ]
    assert ratios[0] > 1.3 and ratios == sorted(ratios, reverse=True) and ratios[-1] < 0.7


def test_what_four_times_fewer_parameters_cost():
    costs = Costs(constant_speed("H100", 0.4), 2.0)
    found = decide(LAW, "flops", BUDGET, costs, sizes=(0.25, 0.01))
    quarter, hundredth = found["sizes"]
    params, tokens = values(found, "loss_optimal", "params", "tokens")
    assert quarter["params"] == pytest.approx(params / 4)
    assert LAW.loss(quarter["params"], quarter["tokens"]["value"]) == pytest.approx(found["loss"]["value"])
    spent = 6 * quarter["params"] * quarter["tokens"]["value"]
    assert quarter["flops_ratio"]["value"] == pytest.approx(spent / BUDGET) and 4 < quarter["flops_ratio"]["value"] < 5
    assert quarter["usd_training"]["value"] == pytest.approx(spent / (0.4 * 989e12) / 3600 * 2, rel=1e-2)
    # after so many tokens served both have cost the same
    served = quarter["pays_back_after"]["value"]
    assert spent + 2 * quarter["params"] * served == pytest.approx(BUDGET + 2 * params * served)
    at_same = LAW.loss(params / 4, 4 * tokens) - found["loss"]["value"]
    assert quarter["loss_excess_at_same_flops"]["value"] == pytest.approx(at_same)
    assert not hundredth["reachable"] and hundredth["flops_ratio"]["value"] is None


def test_intervals_hold_the_truth_and_widen_beyond_the_data():
    known = sample_law(isoflop_study(noise=0.003, seed=1), None, {}, 200, 0)
    assert known.largest_flops == pytest.approx(3e12)
    widths = []
    for flops in (1e12, 1e14):
        found = decide(known.law, "flops", flops, samples=known.samples)
        best = found["models"]["loss_optimal"]["params"]
        assert best["low"] < TRUTH.optimum(flops).params < best["high"]
        assert best["low"] < best["value"] < best["high"]
        assert 0 <= found["wasted"]["share_mean"] <= found["wasted"]["share_high"] < 0.2
        widths.append(best["high"] / best["low"])
    assert widths[1] > widths[0]


def test_resamples_of_speed_and_law_are_both_in_the_hours():
    known = sample_law(isoflop_study(noise=0.003, seed=1), None, {}, 100, 0)
    rng = np.random.default_rng(0)
    params = np.geomspace(1e4, 1e6, 12)
    rows = [{"params": n, "flops": 3.6e15, "device_hours": 1e3 * n**-0.3 * np.exp(rng.normal(0, 0.2))} for n in params]
    speed = fit_speed(rows, "runs", 100, 0)
    assert speed.slope[0] == pytest.approx(0.3, abs=0.15)
    hours = decide(known.law, "flops", 1e12, Costs(speed), known.samples)["models"]["time_optimal"]["device_hours"]
    assert hours["low"] < hours["value"] < hours["high"]


def test_a_speed_is_held_beyond_the_largest_size_measured():
    rows = [{"params": n, "tokens_per_second": 1e6 * n**-0.8} for n in (1e6, 1e7, 1e8)]
    speed = fit_speed(rows, "runs", 0, 0)
    assert speed.slope[0] == pytest.approx(0.2)
    assert speed.flops_per_second(1e7)[0] == pytest.approx(6e6 * 1e7**0.2)
    assert speed.flops_per_second(1e11)[0] == pytest.approx(speed.flops_per_second(1e8)[0])


def test_speeds_of_two_devices_are_not_mixed():
    rows = [{"params": n, "tokens_per_second": 1e3, "device": d} for n in (1e6, 1e7) for d in ("A100", "H100")]
    with pytest.raises(UserError, match="2 devices.*--device"):
        fit_speed(rows, "runs.csv", 0, 0)
    assert fit_speed(rows, "runs.csv", 0, 0, "H100").device == "H100"
    with pytest.raises(UserError, match="L4.*A100, H100"):
        fit_speed(rows, "runs.csv", 0, 0, "L4")
    assert fit_speed([{"params": 1e6}], "runs.csv", 0, 0) is None


@pytest.mark.parametrize(
    "kind, amount, costs, said",
    [
        ("flops", -1.0, Costs(), "above zero"),
        ("flops", float("nan"), Costs(), "above zero"),
        ("loss", 1.5, Costs(), "never falls below E = 1.817"),
        ("gpu_hours", 1.0, Costs(), "how fast"),
        ("usd", 1.0, Costs(GROWING), "--price"),
        ("flops", 1e20, Costs(inference_tokens=1e9), "device-hours"),
    ],
)
def test_what_cannot_be_decided_is_said_in_one_line(kind, amount, costs, said):
    with pytest.raises(UserError, match=said):
        decide(LAW, kind, amount, costs)


def test_a_law_of_compute_alone_cannot_decide():
    law = FORMS["compute"](1.7, 20.0, 0.1)
    with pytest.raises(UserError, match="fit a surface"):
        decide(law, "flops", 1e20)
