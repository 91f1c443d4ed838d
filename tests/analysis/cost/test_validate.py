"""Blind comparison with measured runs, and the verb."""

import pytest
from measured_rows import row

from analysis.cost.measured import PUBLISHED, UNSEEN, read_rows
from analysis.cost.measured_hours import predicted_hours
from analysis.cost.validate import compare, validate


def test_scores_are_those_of_the_rows():
    predicted = compare([row()])[0][0].predicted.value
    rows = [row(id="a", step_time_s=str(predicted / 1.1)), row(id="b", step_time_s=str(predicted / 0.85))]
    found = validate(rows)["groups"]["mine"]["step_time"]
    assert found["n"] == 2
    assert found["mape"] == pytest.approx(12.5) and found["median_error"] == pytest.approx(12.5)
    assert found["bias"] == pytest.approx(-2.5)
    assert found["coverage"] == 1.0
    far = validate([row(step_time_s=str(predicted / 3))])["overall"]["step_time"]
    assert far["coverage"] == 0.0


def test_rows_without_a_prediction_are_listed_with_the_reason_and_not_scored():
    found = validate([row(), row(id="tpu", gpu="TPU-v4"), row(id="empty", step_time_s="")])
    assert found["overall"]["step_time"]["n"] == 1
    assert {item["id"] for item in found["not_expressible"]} == {"tpu", "empty"}


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


def test_parameters_of_experts_times_a_model_are_read_as_the_model_that_is_meant():
    facts = {"tokens_T": "1", "gpu": "H100", "date": "2024-05", "n_gpus": "", "tp": "", "pp": "", "dp": ""}
    hours = [
        predicted_hours(row(**facts, model="Mixtral 8x7B", params_total_B=total)).value
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
