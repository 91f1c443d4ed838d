"""Constants from one's own runs: known truth is found, a bad fit says so."""

import json
import math
import random
import statistics
from dataclasses import replace

import pytest
from setups import setup

from analysis.cost.calibration import Calibration, calibrate, remaining_spread, step_interval
from analysis.cost.measured import UNSEEN, describe, measurements, read_rows
from analysis.cost.measured_bounds import seconds_at_peak
from analysis.cost.stacks import constants_of
from analysis.cost.step import step_time
from scaling.errors import UserError

LAYOUTS = [
    {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline, "micro_batch_size": micro}
    for tensor, pipeline, micro in ((1, 8, 1), (2, 4, 1), (4, 2, 2), (8, 1, 4), (4, 4, 1), (8, 2, 1), (2, 8, 2))
]


def machine(**changes):
    """Times of seven layouts on a machine whose truth differs from the shipped constants."""
    truth = replace(constants_of("megatron"), **changes)
    return [(run, step_time(run, truth).total) for run in (setup(**layout) for layout in LAYOUTS)]


def test_five_runs_bring_an_odd_machine_within_five_percent():
    runs = machine(matmul_efficiency=0.7, elementwise=4.0, network_efficiency=0.5)
    found = calibrate(runs[:5], "mine")
    for run, seconds in runs[5:]:
        assert abs(math.log(step_time(run).total / seconds)) > 0.15
        assert abs(math.log(step_time(run, found.constants).total / seconds)) < 0.05
    assert found.before > 0.2 > 0.03 > found.after
    assert found.warning is None


def test_low_precision_and_experts_are_calibrated_where_runs_tell_of_them():
    changes = {"low_precision": 0.8, "half_expert": 900.0}
    truth = replace(constants_of("megatron"), **changes)
    moe = {"model": "qwen3-30b-a3b", "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "expert_parallel_size": 8}
    runs = [
        setup(**kind, micro_batch_size=size, precision=precision)
        for kind in ({}, moe)
        for precision in ("bf16", "fp8")
        for size in (1, 2)
    ]
    found = calibrate([(run, step_time(run, truth).total) for run in runs], "mine")
    shipped = constants_of("megatron")
    assert found.changes["low_precision"] < (0.8 + shipped.low_precision) / 2
    assert found.changes["half_expert"] > shipped.half_expert

    def worst(constants):
        return max(abs(math.log(step_time(run, constants).total / step_time(run, truth).total)) for run in runs)

    assert worst(found.constants) < 0.06 < 0.2 < worst(shipped)


@pytest.mark.parametrize("group", ["dgxc_h100_llama31_405b", "dgxc_h100_llama31_8b", "dgxc_h100_nemotron4_15b"])
def test_five_published_runs_bring_the_others_of_their_source_within_five_percent(group):
    rows = [row for row in read_rows(UNSEEN) if row["group"] == group]
    runs = [(describe(row).setup, measurements(row).step_seconds) for row in rows]
    random.Random(1).shuffle(runs)
    found = calibrate(runs[:5], group)
    errors = [abs(step_time(run, found.constants).total / seconds - 1) for run, seconds in runs[5:]]
    assert statistics.fmean(errors) < 0.05


def test_the_interval_shrinks_with_runs_and_covers_them():
    runs = machine(matmul_efficiency=0.75)
    found = calibrate(runs, "mine")
    shipped = step_interval(runs[0][0])
    fitted = step_interval(runs[0][0], found)
    assert fitted.high / fitted.low < 0.8 * shipped.high / shipped.low
    assert all(step_interval(run, found).low < seconds < step_interval(run, found).high for run, seconds in runs)


def test_the_interval_is_as_wide_as_runs_err_that_the_fit_does_not_know():
    noise = random.Random(3)
    runs = [(run, seconds * math.exp(noise.gauss(0, 0.15))) for run, seconds in machine()[:5]]
    found, shipped = calibrate(runs, "mine"), constants_of("megatron")
    residuals = [math.log(step_time(run, found.constants).total / seconds) for run, seconds in runs]
    in_sample = remaining_spread(residuals, between=shipped.between, within=shipped.within)
    assert found.left_out > 1.3 * found.after and found.spread > 1.2 * in_sample


def test_runs_without_experts_say_little_of_those_with_them():
    found = calibrate(machine(), "mine")
    experts = setup("mixtral-8x7b", tensor_parallel_size=1, pipeline_parallel_size=1, expert_parallel_size=8)
    blind, fitted = step_interval(experts), step_interval(experts, found)
    assert fitted.high / fitted.low > 0.8 * blind.high / blind.low
    known = calibrate([*machine(), *((experts, step_time(experts).total) for _ in range(8))], "mine")
    assert known.expert_spread < 0.6 * found.expert_spread


def test_a_calibration_leaves_other_stacks_alone():
    found = calibrate(machine(matmul_efficiency=0.6), "mine")
    other = setup(stack="fsdp_eager")
    assert step_interval(other, found) == step_interval(other)


def test_times_that_no_constant_explains_are_called_a_bad_fit():
    noise = random.Random(0)
    runs = [(run, seconds * math.exp(noise.gauss(0, 0.5))) for run, seconds in machine()]
    found = calibrate(runs, "mine")
    assert found.warning is not None and "bad" in found.warning
    assert found.spread > 0.2


def test_file_and_back(tmp_path):
    found = calibrate(machine(matmul_efficiency=0.7), "mine")
    path = tmp_path / "calibration.json"
    path.write_text(found.to_json())
    assert Calibration.from_file(path).constants == found.constants
    path.write_text('{"stack": "megatron"}')
    with pytest.raises(UserError, match="scaling cost calibrate"):
        Calibration.from_file(path)


def test_nothing_to_calibrate_by_and_mixed_stacks_are_errors():
    with pytest.raises(UserError, match="nothing to calibrate"):
        calibrate([], "mine")
    with pytest.raises(UserError, match="2 stacks"):
        calibrate([(setup(), 1.0), (setup(stack="fsdp_eager"), 1.0)], "mine")


@pytest.mark.parametrize("factor", [1e3, 21, 1 / 21])
def test_a_step_out_of_all_proportion_is_named(factor):
    runs = machine()
    slow = (runs[0][0], factor * step_time(runs[0][0]).total)
    with pytest.raises(UserError, match=f"mine, run 8: a step of {slow[1]:g} s".replace("+", r"\+")):
        calibrate([*runs, slow], "mine")


def test_a_step_faster_than_the_peak_is_named_though_not_far_from_the_estimate():
    run = setup()
    with pytest.raises(UserError, match="run 1: a step of .* model FLOPs at the dense bf16 peak of 64 H100"):
        calibrate([(run, 0.99 * seconds_at_peak(run))], "mine")
    assert calibrate([(run, 1.01 * seconds_at_peak(run))], "mine").num_runs == 1


def test_clusters_ten_times_as_slow_can_be_fitted_and_their_constants_are_called_unlikely():
    runs = [(run, 10 * seconds) for run, seconds in machine()]
    found = calibrate(runs, "mine")
    assert found.after < 0.5 * found.before
    assert "unlikely constants" in found.warning and "matmul_efficiency" in found.warning
    assert calibrate(machine(matmul_efficiency=0.7), "mine").warning is None


def test_an_overlap_far_from_the_shipped_one_is_called_unlikely():
    found = replace(calibrate(machine(), "mine"), changes={"data_overlap": 0.01})
    assert "data_overlap = 0.01" in found.warning


def test_many_runs_are_held_out_by_tenths(monkeypatch):
    fits = []
    from analysis.cost import calibration

    fit = calibration._fit
    monkeypatch.setattr(calibration, "_fit", lambda runs: fits.append(len(runs)) or fit(runs[:2]))
    found = calibrate(machine() * 3, "mine")
    assert len(fits) == 11 and max(fits[1:]) < 21 and 0 <= found.left_out < 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"spread": -1},
        {"spread": math.nan},
        {"after": "low"},
        {"stack": "mine"},
        {"changes": {"matmul_efficiency": -1}},
        {"changes": {"data_overlap": 2}},
        {"expert_spread": 0},
        {"stack": "fsdp_eager", "changes": {"tensor_overlap": 0.5}},
        {"changes": {"between": 1}},
        {"changes": None},
    ],
)
def test_a_file_that_was_tampered_with_is_refused(tmp_path, changes):
    path = tmp_path / "mine.json"
    written = json.loads(calibrate(machine()[:2], "mine").to_json())
    assert written["left_out"] is None  # strict JSON has no NaN
    path.write_text(json.dumps(written | changes))
    with pytest.raises(UserError, match="is not one"):
        Calibration.from_file(path)
