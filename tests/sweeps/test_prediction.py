"""What a run is predicted to need, on a CPU and on GPUs, and what finished runs change about it."""

import subprocess
import sys

import pytest
from made_records import config, record

from analysis.cost.cpu_throughput import CPU_CONSTANTS, CpuThroughput
from analysis.cost.devices import require_device
from scaling.config import RunConfig
from scaling.memory import memory_estimate
from scaling.record import write_record
from sweeps.plan import Workers
from sweeps.prediction import CpuPredictor, GpuPredictor, make_predictor

CORE = CpuThroughput("AMD EPYC", 1e11, CPU_CONSTANTS, "a test")
H100_NAME = "NVIDIA H100 80GB HBM3"
H100, A100 = (GpuPredictor(require_device(name), None, "a test") for name in ("H100", "A100"))
ON_CPU = CpuPredictor(CORE, corpus_bytes=10**6)
GPUS = Workers(executor="local", count=1, num_threads=1, device="cuda", reason="test")


def wide(**execution) -> RunConfig:
    return config(hidden_size=2048, num_layers=8, seq_length=1024, global_batch_size=32, **execution)


def with_ranks(run: RunConfig, **sizes) -> RunConfig:
    return run.model_copy(update={"parallel": run.parallel.model_copy(update=sizes)})


@pytest.mark.parametrize(("predictor", "start"), [(ON_CPU, 0.3), (H100, 5.0)])
def test_start_and_last_evaluation_are_around_the_training_loop_and_others_in_it(predictor, start):
    once, often = (predictor.predict(config(evaluation_interval=interval)) for interval in (None, 100))
    steps = 500 * predictor.step_seconds(config())
    assert once.training_seconds.value == pytest.approx(steps)
    one_evaluation = (often.training_seconds.value - steps) / 4
    assert one_evaluation > 0
    assert once.seconds.value - once.training_seconds.value == pytest.approx(start + one_evaluation)
    assert once.seconds.low < once.seconds.value < once.seconds.high


def test_a_cpu_has_a_process_with_its_text_in_memory_and_no_known_energy():
    small, large = ON_CPU.predict(config()), ON_CPU.predict(wide())
    assert small.peak_memory_bytes.low < 350 * 2**20 < small.peak_memory_bytes.high, "torch itself"
    assert large.peak_memory_bytes.value > memory_estimate(wide()).total
    assert small.energy_kwh is None and small.energy_joules is None
    with_text = CpuPredictor(CORE, corpus_bytes=2 * 10**8).predict(config(train_steps=10**5)).peak_memory_bytes
    assert 1.5e8 < with_text.value - small.peak_memory_bytes.value < 3e8
    huge = CpuPredictor(CORE, corpus_bytes=10**15).predict(config())
    assert huge.peak_memory_bytes.value < 1e9, "only what it reads"


def test_a_faster_gpu_is_faster_and_two_are_faster_than_one():
    two = with_ranks(wide(), data_parallel_size=2)
    assert H100.step_seconds(wide()) < A100.step_seconds(wide())
    assert 0.45 < A100.step_seconds(two) / A100.step_seconds(wide()) < 0.65


def test_the_host_threads_of_a_gpu_run_are_no_devices():
    assert H100.predict(wide(num_threads=16)) == H100.predict(wide())


def test_energy_counts_every_gpu_with_its_share_of_the_node_and_counters_see_the_board_alone():
    one = H100.predict(wide())
    hours = one.seconds.value / 3600
    assert 0.5 * 0.7 * hours < one.energy_kwh.value < 1.6 * 0.7 * hours, "a TDP of 700 W"
    board = one.energy_joules.value / one.training_seconds.value
    assert 200 < board < 700
    two = with_ranks(wide(), data_parallel_size=2)
    assert H100.predict(two).energy_joules.value > 0.9 * one.energy_joules.value, "half the time, twice the GPUs"


def test_memory_on_a_gpu_is_the_estimate_of_the_rank_that_needs_most():
    need = H100.predict(wide(device="cuda")).peak_memory_bytes
    estimate = memory_estimate(wide(device="cuda")).total
    assert estimate < need.value < 1.05 * estimate + 2**26
    assert need.low < estimate < need.high


def test_small_models_wait_for_the_host_so_their_interval_is_wider():
    small, large = (H100.predict(run).seconds for run in (config(), wide()))
    assert small.high / small.value > 1.5 * large.high / large.value


def finished(runs_dir, runs, factor: float, device: str = H100_NAME) -> None:
    for run in runs:
        directory = runs_dir / "earlier" / run.run_id
        directory.mkdir(parents=True, exist_ok=True)
        seconds = factor * run.train_steps * H100.step_seconds(run)
        write_record(directory, record(run, seconds, device=device))


SIZES = [config(hidden_size=size, num_layers=4, seq_length=1024) for size in (256, 512, 1024)]


def test_finished_runs_of_the_device_refit_its_times_and_narrow_the_interval(tmp_path):
    finished(tmp_path, SIZES, 2.0)
    before, after = (make_predictor(GPUS, H100_NAME, tmp_path, tmp_path / name, set()) for name in ("none", "."))
    run = config(hidden_size=768, num_layers=4, seq_length=1024)
    assert after.step_seconds(run) == pytest.approx(2 * before.step_seconds(run), rel=0.25)
    one, other = (predictor.predict(run).seconds for predictor in (before, after))
    assert other.high / other.value < one.high / one.value
    assert "published runs, none of this trainer" in before.source and "refitted to 3 runs" in after.source


def test_a_run_that_something_else_held_up_is_not_learnt_from_and_that_is_said(tmp_path):
    finished(tmp_path, SIZES[:2], 2.0)
    finished(tmp_path, SIZES[2:], 200.0)
    found = make_predictor(GPUS, H100_NAME, tmp_path, tmp_path, set())
    assert found.calibration.num_runs == 2
    assert "1 of 3 finished runs not used: a step of" in found.warnings[0]


def test_what_is_planned_and_what_other_devices_did_is_not_learnt_from(tmp_path):
    finished(tmp_path, SIZES[:1], 3.0, device="NVIDIA A100-SXM4-80GB")
    finished(tmp_path, SIZES[1:], 3.0)
    blind = make_predictor(GPUS, H100_NAME, tmp_path, tmp_path, {run.run_id for run in SIZES[1:]})
    assert blind.calibration is None
    assert blind.step_seconds(SIZES[0]) == H100.step_seconds(SIZES[0])


def test_a_gpu_that_is_not_in_the_table_is_said_to_be_taken_for_another(tmp_path):
    unknown = make_predictor(GPUS, "NVIDIA Quadro X", tmp_path, tmp_path, set())
    assert "NVIDIA Quadro X is not in the table of GPUs" in unknown.warnings[0] and "L4" in unknown.warnings[0]
    assert unknown.device == require_device("L4")


def test_importing_it_does_not_import_torch():
    script = "import sys, sweeps.prediction; sys.exit(bool({'torch', 'scipy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
