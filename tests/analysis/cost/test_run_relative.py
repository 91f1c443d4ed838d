"""What a run costs against published ones: what its user has set moves it the way it should."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from setups import setup

import analysis.cost.run_relative as run_relative
from analysis.cost.run_relative import relative_gpu_seconds, usual_gpus

FLOPS = 6 * 8e9 * 1e12
USUAL = setup("llama3-8b", num_gpus=256, tensor_parallel_size=1, pipeline_parallel_size=1, seq_length=4096)


def test_a_usual_run_costs_what_published_ones_do():
    assert relative_gpu_seconds(USUAL, FLOPS) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({"precision": "fp8"}, 0.5, 0.9),
        ({"precision": "fp32"}, 1.3, 4.0),
        ({"flash_attention": False}, 1.1, 2.5),
        ({"stack": "untuned"}, 1.2, 4.0),
        ({"recompute_granularity": "full"}, 1.15, 1.4),
        ({"num_gpus": 1024, "global_batch_size": 1024}, 1.0, 1.0),  # four times the usual number is no news
    ],
)
def test_what_published_runs_did_not_do_costs_more_or_less(changes, least, most):
    assert least <= relative_gpu_seconds(replace(USUAL, **changes), FLOPS) <= most


def test_far_more_gpus_than_usual_cost_more_the_more_they_are():
    batch = {"global_batch_size": 8192}
    ratios = [relative_gpu_seconds(replace(USUAL, num_gpus=size, **batch), FLOPS) for size in (256, 4096, 8192)]
    assert ratios[0] == pytest.approx(1.0)
    assert ratios[0] < ratios[1] < ratios[2]


def test_the_usual_number_of_gpus_is_that_of_published_runs():
    table = Path(run_relative.__file__).with_name("published_runs.csv")
    with open(table, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["num_gpus"]]
    flops = np.log([6e-23 * float(row["active_params"]) * float(row["tokens"]) for row in rows])
    gpus = np.log([float(row["num_gpus"]) for row in rows])
    slope, offset = np.polyfit(flops, gpus, 1)
    assert usual_gpus(1e23) == pytest.approx(math.exp(offset), rel=0.01)
    assert math.log(usual_gpus(math.e * 1e23) / usual_gpus(1e23)) == pytest.approx(slope, abs=0.005)
    assert np.std(gpus - offset - slope * flops) == pytest.approx(math.log(2), abs=0.05)
