import dataclasses
import subprocess
import sys

import pytest

from analysis.cost.matmul_rate import core_matmul_rate
from analysis.cost.throughput import (
    CPU_CONSTANTS,
    Throughput,
    calibrate,
    cpu_throughput,
    gpu_throughput,
    predict_seconds,
)
from scaling.accounting import parameter_count, training_flops
from scaling.config import RunConfig
from scaling.record import RunRecord

CPU = Throughput("AMD EPYC", 1e11, 1e10, CPU_CONSTANTS, "measured, typical constants", is_core=True)


def config(hidden_size=64, num_layers=2, train_steps=500, global_batch_size=4, seq_length=128, **execution):
    return RunConfig.model_validate(
        {
            "model": {"num_layers": num_layers, "hidden_size": hidden_size, "num_attention_heads": 1},
            "data": {"name": "text", "fingerprint": "0", "seq_length": seq_length, "validation_sequences": 64},
            "optimizer": {"learning_rate": 0.01},
            "global_batch_size": global_batch_size,
            "train_steps": train_steps,
            "execution": execution,
        }
    )


def record(run: RunConfig, seconds: float, device="AMD EPYC", status="finished") -> RunRecord:
    count = parameter_count(run.model)
    return RunRecord.model_validate(
        {
            "run_id": run.run_id,
            "status": status,
            "schedule_finished": True,
            "config": run,
            "parameters": count.total,
            "parameters_non_embedding": count.non_embedding,
            "parameters_active": count.active,
            "tokens": run.tokens,
            "flops": training_flops(run),
            "train_loss": 2.0,
            "evaluation": None,
            "speed": {
                "device": device, "dtype": "float32", "dtype_reason": "", "num_threads": 1, "seconds": seconds,
                "tokens_per_second": run.tokens / seconds, "mfu_causal": None, "mfu_full": None, "peak_flops": None,
                "peak_flops_source": None, "peak_memory_bytes": None, "energy_joules": None, "energy_source": None,
                "device_hours": seconds / 3600,
            },
            "host": "host",
            "started_at": "2026-11-21T00:00:00+00:00",
            "finished_at": "2026-11-21T00:01:00+00:00",
        }
    )  # fmt: skip


def training_seconds(run: RunConfig, throughput: Throughput) -> float:
    """Prediction of the training loop alone: what 1,000 more steps add."""
    longer = run.model_copy(update={"train_steps": run.train_steps + 1000})
    added = predict_seconds(longer, throughput) - predict_seconds(run, throughput)
    return added / 1000 * run.train_steps


def test_a_wide_model_runs_at_its_share_of_the_peak():
    run = config(hidden_size=4096, num_layers=8, seq_length=2048, global_batch_size=8)
    h100 = gpu_throughput("NVIDIA H100 80GB HBM3")
    achieved = training_flops(run).full / training_seconds(run, h100)
    assert 0.3 * 989e12 < achieved < 0.4 * 989e12


def test_a_small_model_is_bound_by_its_launches():
    h100 = gpu_throughput("NVIDIA H100 80GB HBM3")
    small, smaller = config(hidden_size=64, num_layers=8), config(hidden_size=32, num_layers=8)
    assert training_seconds(small, h100) == pytest.approx(training_seconds(smaller, h100), rel=0.1)
    assert training_seconds(small, h100) > 2 * training_seconds(config(num_layers=1), h100)


def test_a_faster_gpu_is_faster_and_two_are_faster_than_one():
    run = config(hidden_size=2048, num_layers=8, seq_length=1024, global_batch_size=32)
    two = run.model_copy(update={"parallel": run.parallel.model_copy(update={"data_parallel_size": 2})})
    a100, h100 = gpu_throughput("A100"), gpu_throughput("H100")
    assert training_seconds(run, h100) < training_seconds(run, a100)
    assert 0.5 < training_seconds(two, a100) / training_seconds(run, a100) < 0.6


def test_threads_of_a_cpu_help_but_not_in_full():
    one, four = config(hidden_size=512), config(hidden_size=512, num_threads=4)
    assert 1.5 < training_seconds(one, CPU) / training_seconds(four, CPU) < 4


def test_smaller_micro_batches_cost_launches():
    whole, split = config(global_batch_size=8), config(global_batch_size=8, micro_batch_size=2)
    extra = 3 * whole.model.num_layers * CPU_CONSTANTS.layer_seconds * whole.train_steps
    assert training_seconds(split, CPU) - training_seconds(whole, CPU) == pytest.approx(extra)


def test_every_evaluation_is_counted():
    once, twice, often = config(), config(evaluation_interval=499), config(evaluation_interval=100)
    one_evaluation = predict_seconds(twice, CPU) - predict_seconds(once, CPU)
    assert one_evaluation > 0
    assert predict_seconds(often, CPU) - predict_seconds(once, CPU) == pytest.approx(4 * one_evaluation)


def test_a_gpu_that_is_not_in_the_table_says_so():
    unknown = gpu_throughput("NVIDIA Quadro X")
    assert "NVIDIA Quadro X is not in the table" in unknown.source
    assert unknown.peak_flops == gpu_throughput("L4").peak_flops


SIZES = [(8, 1), (16, 1), (16, 2), (32, 2), (48, 3), (64, 4), (128, 4)]


def slower_machine() -> Throughput:
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
    measured = cpu_throughput("AMD EPYC")
    assert measured.device_name == "AMD EPYC"
    assert "measured at" in measured.source and "GFLOP/s" in measured.source
    assert 0.1 < measured.peak_flops / rate < 10


def test_importing_it_does_not_import_torch():
    script = "import sys, analysis.cost.throughput; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_the_host_threads_of_a_gpu_run_are_no_devices():
    gpu = gpu_throughput("H100")
    assert predict_seconds(config(num_threads=16), gpu) == predict_seconds(config(), gpu)
