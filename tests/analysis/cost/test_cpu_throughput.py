import dataclasses
import math
import subprocess
import sys

import pytest
from made_records import config, record

from analysis.cost.cpu_matmul import core_matmul_rate
from analysis.cost.cpu_throughput import (
    CPU_CONSTANTS,
    CpuThroughput,
    calibrate,
    evaluation_seconds,
    measure_cpu,
    step_interval,
)
from scaling.config import RunConfig

CPU = CpuThroughput("AMD EPYC", 1e11, CPU_CONSTANTS, "measured, typical constants")


def training_seconds(run: RunConfig, throughput: CpuThroughput) -> float:
    """Predicted time of all steps."""
    return run.train_steps * step_interval(run, throughput).value


def test_threads_of_a_cpu_help_but_not_in_full():
    one, four = config(hidden_size=512), config(hidden_size=512, num_threads=4)
    assert 1.5 < training_seconds(one, CPU) / training_seconds(four, CPU) < 4


def test_smaller_micro_batches_cost_launches():
    whole, split = config(global_batch_size=8), config(global_batch_size=8, micro_batch_size=2)
    extra = 3 * whole.model.num_layers * CPU_CONSTANTS.layer_seconds * whole.train_steps
    assert training_seconds(split, CPU) - training_seconds(whole, CPU) == pytest.approx(extra)


def test_an_evaluation_is_forward_work_alone():
    run = config(global_batch_size=64)
    assert 0.2 < evaluation_seconds(run, CPU) / step_interval(run, CPU).value < 1 / 3


SIZES = [(8, 1), (16, 1), (16, 2), (32, 2), (48, 3), (64, 4), (128, 4)]


def slower_machine() -> CpuThroughput:
    """A machine whose launches take three times and whose products twice as long as the constants say."""
    constants = dataclasses.replace(
        CPU_CONSTANTS,
        step_seconds=3 * CPU_CONSTANTS.step_seconds,
        layer_seconds=3 * CPU_CONSTANTS.layer_seconds,
        utilisation=CPU_CONSTANTS.utilisation / 2,
    )
    return dataclasses.replace(CPU, constants=constants)


def test_calibration_learns_a_machine_from_a_few_runs():
    truth = slower_machine()
    runs = [config(hidden_size=width, num_layers=layers) for width, layers in SIZES]
    fitted = calibrate(CPU, [record(run, training_seconds(run, truth)) for run in runs])
    for width, layers in [(12, 1), (40, 2), (96, 4), (192, 4)]:
        run = config(hidden_size=width, num_layers=layers)
        assert training_seconds(run, CPU) < 0.6 * training_seconds(run, truth)
        assert training_seconds(run, fitted) == pytest.approx(training_seconds(run, truth), rel=0.1)
    assert fitted.source == "measured, constants refitted to 7 finished runs here"


def test_one_run_moves_the_prediction_of_its_like():
    run = config()
    fitted = calibrate(CPU, [record(run, 2 * training_seconds(run, CPU))])
    assert training_seconds(run, fitted) == pytest.approx(2 * training_seconds(run, CPU), rel=0.15)


def test_the_interval_is_a_factor_of_two_until_runs_narrow_it():
    run = config()
    before = step_interval(run, CPU)
    assert before.high / before.value == pytest.approx(2, rel=0.02)
    assert before.value / before.low == pytest.approx(2, rel=0.02)
    runs = [config(hidden_size=width, num_layers=layers) for width, layers in SIZES]
    exact = calibrate(CPU, [record(run, training_seconds(run, CPU)) for run in runs])
    noisy = calibrate(CPU, [record(r, (1.5 if i % 2 else 0.7) * training_seconds(r, CPU)) for i, r in enumerate(runs)])
    assert exact.spread < 0.6 * CPU.spread
    assert exact.spread < noisy.spread and math.exp(1.645 * noisy.spread) > 1.5


def test_one_disturbed_run_does_not_spoil_the_rest():
    runs = [config(hidden_size=width, num_layers=layers) for width, layers in SIZES]
    records = [record(run, training_seconds(run, CPU)) for run in runs]
    records[3] = record(runs[3], 20 * training_seconds(runs[3], CPU))
    fitted = calibrate(CPU, records)
    for run in runs[:3] + runs[4:]:
        assert training_seconds(run, fitted) == pytest.approx(training_seconds(run, CPU), rel=0.25)


def test_other_devices_and_failed_runs_do_not_count():
    run = config()
    others = [record(run, 1000.0, device="AMD Ryzen"), record(run, 1000.0, status="diverged")]
    assert calibrate(CPU, others) == CPU
    assert calibrate(CPU, []) == CPU


def test_threads_that_a_run_really_had_are_used():
    run = config(hidden_size=256)  # leaves num_threads open; the record says 4
    seconds = training_seconds(config(hidden_size=256, num_threads=4), CPU)
    had_four = record(run, seconds)
    had_four = had_four.model_copy(update={"speed": had_four.speed.model_copy(update={"num_threads": 4})})
    fitted = calibrate(CPU, [had_four])
    assert training_seconds(run, fitted) == pytest.approx(training_seconds(run, CPU), rel=0.01)


def test_a_core_is_measured_on_the_spot():
    rate = core_matmul_rate()
    assert 1e8 < rate < 1e13
    measured = measure_cpu("AMD EPYC")
    assert measured.device_name == "AMD EPYC"
    assert "measured at" in measured.source and "GFLOP/s" in measured.source
    assert 0.1 < measured.matmul_flops / rate < 10


def test_importing_it_does_not_import_torch():
    script = "import sys, analysis.cost.cpu_throughput; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
