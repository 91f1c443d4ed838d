"""Blind comparison with measured runs, and the verb."""

import pytest
from measured_rows import row

from analysis.cost.calibration import calibrate
from analysis.cost.measured import PUBLISHED, UNSEEN, describe, read_rows
from analysis.cost.measured_bounds import seconds_at_peak
from analysis.cost.measured_hours import predicted_hours
from analysis.cost.validate import baseline_seconds, compare, validate


def test_scores_are_those_of_the_rows():
    predicted = compare([row()])[0][0].predicted.value
    rows = [row(id="a", step_time_s=str(predicted / 1.1)), row(id="b", step_time_s=str(predicted / 0.85))]
    found = validate(rows)["groups"]["mine"]["step_time"]
    assert found["n"] == 2
    assert found["mape"] == pytest.approx(12.5) and found["median_error"] == pytest.approx(12.5)
    assert found["bias"] == pytest.approx(-2.5)
    assert found["coverage"] == 1.0
    far = validate([row(step_time_s=str(3 * predicted))])["overall"]["step_time"]
    assert far["coverage"] == 0.0


def test_rows_without_a_prediction_are_listed_with_the_reason_and_not_scored():
    found = validate([row(), row(id="tpu", gpu="TPU-v4"), row(id="empty", step_time_s="")])
    assert found["overall"]["step_time"]["n"] == 1
    assert {item["id"] for item in found["not_expressible"]} == {"tpu", "empty"}


@pytest.mark.parametrize("text", ["abc", "-1", "4.1s"])
def test_a_measurement_that_cannot_be_read_is_named_with_its_value(text):
    (refused,) = validate([row(step_time_s=text)])["not_expressible"]
    assert refused == {"id": "a", "reason": f"step_time_s = {text}: is not a number above 0"}
    (refused,) = validate([row(tokens_T="-15", gpu_hours="100", step_time_s="")])["not_expressible"]
    assert refused["reason"] == "GPU-hours: tokens_T = -15: is not a number above 0"


def test_steps_faster_than_the_peak_are_refused():
    run = describe(row()).setup
    for factor, number in ((0.99, 0), (1.01, 1)):
        comparisons, refused, _ = compare([row(step_time_s=repr(factor * seconds_at_peak(run)))])
        assert len(comparisons) == number and len(refused) == 1 - number
    reason = validate([row(step_time_s="1e-9")])["not_expressible"][0]["reason"]
    assert "a step of 1e-09 s is faster than" in reason and "dense bf16 peak of 64 A100" in reason
    assert baseline_seconds(run, 1.0) == seconds_at_peak(run)


def test_peaks_that_cannot_be_or_cannot_be_known_are_refused_and_the_step_is_not():
    for changes, why in (
        ({"peak_mem_GiB": "81"}, "a peak of 81 GiB is more than the 80 GiB of A100 SXM 80GB: correct its unit"),
        ({"peak_mem_GiB": "40", "micro_batch": ""}, "peak memory: micro_batch is not given"),
    ):
        found = validate([row(**changes)])
        assert found["overall"]["memory"] is None and found["overall"]["step_time"]["n"] == 1
        (refused,) = found["not_expressible"]
        assert refused["reason"].startswith(why)
    assert validate([row(peak_mem_GiB="80")])["overall"]["memory"]["n"] == 1


def test_a_speed_without_what_makes_a_step_of_it_says_what_is_missing():
    found = validate([row(step_time_s="", tokens_per_s_per_gpu="1000", seq_len="")])
    assert found["not_expressible"][0]["reason"] == "seq_len is not given"


def test_a_calibration_of_another_stack_is_not_ignored_in_silence():
    mine = calibrate([(describe(row()).setup, 13.0)], "mine")
    assert mine.stack == "megatron" and validate([row(step_time_s="13")], mine)["warnings"] == []
    found = validate([row(), row(framework="FSDP"), row(framework="FSDP")], mine)
    assert found["warnings"] == [
        "the calibration is of the stack megatron: not used for 2 prediction(s) of fsdp_eager",
    ]


def test_memory_is_compared_with_what_was_read():
    rows = [row(peak_mem_GiB="30", mem_metric=metric) for metric in ("torch peak allocated", "nvidia-smi")]
    allocated, device = (one.predicted.value for one in compare(rows)[0] if one.quantity == "memory")
    assert device > allocated


def test_gpu_hours_come_from_the_layout_or_from_published_runs():
    facts = {"model": "Llama 2 7B", "params_total_B": "6.738", "tokens_T": "2"}
    facts |= {"gpu": "A100-80GB", "gpu_hours": "184320"}
    bare = {**facts, "id": "b", "n_gpus": "", "date": "2023-07"}
    found = validate([row(**facts, id="a"), bare])["overall"]["gpu_hours"]
    assert found["n"] == 2
    assert found["mape"] < 40 and found["baseline_mape"] == pytest.approx(2.4, abs=1.0)


def test_hours_that_are_not_of_the_layout_say_why():
    facts = {"tokens_T": "2", "gpu_hours": "184320", "step_time_s": "", "tp": "64", "pp": "1", "dp": "1"}
    (assumed,) = validate([row(**facts)])["assumed"]
    assert "GPU-hours are those of published runs, since tensor_parallel_size = 64" in assumed["assumptions"][0]


def test_parameters_of_experts_times_a_model_are_read_as_the_model_that_is_meant():
    facts = {"tokens_T": "1", "gpu": "H100", "date": "2024-05", "n_gpus": "", "tp": "", "pp": "", "dp": ""}
    hours = [
        predicted_hours(row(**facts, model="Mixtral 8x7B", params_total_B=total)).hours.value
        for total in ("46.7", "56", "90")
    ]
    assert hours[0] == hours[1] < hours[2] / 5  # 90e9 parameters are another model's, taken as dense


def test_a_row_of_absurd_numbers_does_not_stop_the_others():
    absurd = [
        row(id="tokens", tokens_T="1e300", gpu_hours="1", step_time_s=""),
        row(id="size", params_total_B="1e300", tokens_T="1", gpu_hours="1", step_time_s=""),
        row(id="layers", layers="1e300"),
        row(id="batch", global_batch="1e300"),
    ]
    found = validate([*absurd, row()])
    assert found["overall"]["step_time"]["n"] == 1
    assert [item["id"] for item in found["not_expressible"]] == ["tokens", "size", "layers", "batch"]


def test_shipped_runs_are_better_predicted_than_by_the_rule():
    found = validate(read_rows(PUBLISHED))
    step = found["overall"]["step_time"]
    assert step["mape"] < 0.6 * step["baseline_mape"]
    assert 0.85 <= step["coverage"] <= 0.97
    assert found["not_expressible"] == []


def test_runs_of_sources_that_nothing_was_fitted_to():
    rows = read_rows(UNSEEN)
    step = validate(rows)["overall"]["step_time"]
    assert step["n"] > 350
    assert step["mape"] < 0.55 * step["baseline_mape"]
    assert 0.85 <= step["coverage"] <= 0.95
    dense = [row for row in rows if row["group"].startswith(TUNED) and row["ep"] in ("", "1")]
    tuned = validate(dense)
    assert tuned["overall"]["step_time"]["n"] > 120
    assert tuned["overall"]["step_time"]["mape"] < 8.0
    large = {name: scores["step_time"] for name, scores in tuned["groups"].items() if scores["step_time"]["n"] >= 12}
    assert all(scores["mape"] < scores["baseline_mape"] for scores in large.values())


#: Sources of tuned Megatron-Core and NeMo; dense models.
TUNED = (
    "dgxc_h100_gpt3",
    "dgxc_h100_llama31",
    "dgxc_h100_nemotron4",
    "dgxc_gb200_nemotron4",
    "nemo_2407_h100",
    "mlperf",
)
