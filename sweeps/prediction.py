"""What a run of our own trainer will need, before it runs: time, memory and energy, each with its 90 % interval.

The step of a GPU is the cost model's (analysis.cost.step), that of a CPU analysis.cost.cpu_throughput's, measured on
the spot; both are refitted to what the device has finished in the user's other sweeps. Bytes are scaling.memory's. A
run's time is its start, its steps and its evaluations; failures and waiting in a queue are not in it. Imports no torch.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from analysis.cost import cpu_throughput
from analysis.cost.calibration import PRIOR, Calibration, calibrate, constants_for, step_interval
from analysis.cost.cpu_throughput import CpuThroughput, measure_cpu
from analysis.cost.devices import Device, find_device, require_device
from analysis.cost.energy import board_joules, energy_kwh
from analysis.cost.interval import Interval, log_normal, product
from analysis.cost.measured_bounds import implausible
from analysis.cost.run_records import setup_of_run
from analysis.cost.setup import Setup
from analysis.cost.step import busy_share, step_time
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.memory import memory_estimate
from scaling.record import RunRecord, read_record
from sweeps.plan import Prediction, Workers

#: The latest so many runs tell how fast a device is; of these so many, evenly over their step times, refit a GPU's
#: model, which takes 0.2 s for each.
_LATEST_RUNS, _GPU_RUNS = 200, 16
#: Seconds before the first step, in a process that has torch loaded.
_CPU_START, _GPU_START = 0.3, 5.0
#: A process on a CPU with torch loaded; what Linux maps of a file around a byte that is read; growth of both in a
#: worker that trains many cells; and the peak beyond that for each byte of the estimate. 255 runs of 1k to 10M
#: parameters on AMD EPYC, with 0.3 to 1.3 GiB, were 17 % (root mean square of ln) off this.
_CPU_PROCESS, _READ_AROUND, _CPU_GROWTH, _CPU_BYTES_EACH = 285 * 2**20, 64 * 2**10, 1.3, 4.0
_CPU_MEMORY_SPREAD = 0.2
#: cuBLAS's workspace; and the bounds of torch's peak over the estimate, a judgement until GPUs have been measured: the
#: estimate leaves out what a layer's backward pass needs at once, and buffers of collectives.
_GPU_WORKSPACE, _GPU_MEMORY_BOUNDS = 32 * 2**20, (0.9, 1.35)
#: A GPU that is not in the table counts as the slowest data-centre GPU that is.
_UNKNOWN_GPU = "L4"


class Predictor(Protocol):
    """Predicts runs on one kind of device."""

    #: What the predicted times rest on, for people; and what they are to be careful about.
    source: str
    warnings: list[str]

    def step_seconds(self, config: RunConfig) -> float:
        """Of one optimizer step under the layout in config.parallel."""
        ...

    def predict(self, config: RunConfig) -> Prediction:
        """The whole run."""
        ...


@dataclass(frozen=True)
class CpuPredictor:
    """Runs on this machine's CPU. Its power is not known, so neither is the energy."""

    throughput: CpuThroughput
    #: Of the corpus, which is mapped into memory.
    corpus_bytes: int
    warnings: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """What the predicted times rest on."""
        return self.throughput.source

    def step_seconds(self, config: RunConfig) -> float:
        """Of one optimizer step under the layout in config.parallel."""
        return cpu_throughput.step_interval(config, self.throughput).value

    def predict(self, config: RunConfig) -> Prediction:
        """The whole run."""
        step = cpu_throughput.step_interval(config, self.throughput)
        evaluation = cpu_throughput.evaluation_seconds(config, self.throughput)
        training, whole = _run_seconds(config, step, evaluation, _CPU_START)
        read = min(self.corpus_bytes, config.train_steps * config.global_batch_size * _READ_AROUND)
        need = _CPU_GROWTH * (_CPU_PROCESS + read) + _CPU_BYTES_EACH * memory_estimate(config).total
        return Prediction(
            training_seconds=training, seconds=whole, peak_memory_bytes=log_normal(need, _CPU_MEMORY_SPREAD)
        )


@dataclass(frozen=True)
class GpuPredictor:
    """Runs on GPUs of one kind, with the constants of the stack or those calibrated to finished runs."""

    device: Device
    calibration: Calibration | None
    source: str
    warnings: list[str] = field(default_factory=list)

    def step_seconds(self, config: RunConfig) -> float:
        """Of one optimizer step under the layout in config.parallel."""
        return step_interval(setup_of_run(config, self.device), self.calibration).value

    def predict(self, config: RunConfig) -> Prediction:
        """The whole run."""
        setup = setup_of_run(config, self.device)
        step = step_time(setup, constants_for(setup, self.calibration))
        seconds = step_interval(setup, self.calibration)
        if self.calibration is None:  # what the host does differs between trainers more than what the GPU does
            waiting = (step.launch + step.host) / step.total
            seconds = product(seconds, log_normal(1.0, PRIOR["step_seconds"] * waiting))
        once = step.optimizer + step.data_communication + step.host  # of what remains a third is the forward pass
        share = config.data.validation_sequences / config.global_batch_size
        training, whole = _run_seconds(config, seconds, (step.total - once) / 3 * share, _GPU_START)
        need, (low, high) = memory_estimate(config).total + _GPU_WORKSPACE, _GPU_MEMORY_BOUNDS
        gpus = config.parallel.world_size
        return Prediction(
            training_seconds=training,
            seconds=whole,
            peak_memory_bytes=Interval(need, low * need, high * need),
            energy_kwh=energy_kwh(self.device, whole.scaled(gpus / 3600), busy_share(step)),
            energy_joules=board_joules(self.device, training.scaled(gpus / 3600), busy_share(step)),
        )


def make_predictor(
    workers: Workers, device_name: str, corpus_dir: Path, runs_dir: Path, blind_to: set[str]
) -> Predictor:
    """What predicts runs on `device_name`, refitted to the runs that it has finished in the sweeps under `runs_dir`.

    The runs in `blind_to` (run ids) are left out: a plan's prediction must not know its own results.
    """
    records = [record for record in _latest_records(runs_dir, blind_to) if record.speed.device == device_name]
    if workers.device == "cpu":
        corpus_bytes = sum(path.stat().st_size for path in corpus_dir.glob("*.bin"))
        return CpuPredictor(cpu_throughput.calibrate(measure_cpu(device_name), records), corpus_bytes)
    device, warnings = find_device(device_name), []
    if device is None:
        device = require_device(_UNKNOWN_GPU)
        warnings.append(f"{device_name} is not in the table of GPUs: its times and energy are those of {device.name}")
    elif device.note:
        warnings.append(device.note)
    timed = [
        (setup_of_run(record.config, device), record.speed.seconds / record.config.train_steps)
        for record in records
        if record.status == "finished" and record.speed.seconds > 0
    ]
    problems = [implausible(*run) for run in timed]
    said = [problem for problem in problems if problem]
    if said:
        warnings.append(f"{len(said)} of {len(timed)} finished runs not used: {said[0]}")
        timed = [run for run, problem in zip(timed, problems, strict=True) if not problem]
    source = f"the cost model's operators on {device.name}"
    if not timed:
        return GpuPredictor(device, None, f"{source} with constants of published runs, none of this trainer", warnings)
    timed = _spread_out(timed)
    calibration = calibrate(timed, str(runs_dir))
    if calibration.warning:
        warnings.append(calibration.warning)
    runs = "1 run" if len(timed) == 1 else f"{len(timed)} runs"
    return GpuPredictor(device, calibration, f"{source} with constants refitted to {runs} finished here", warnings)


def _run_seconds(config: RunConfig, step: Interval, evaluation: float, start: float) -> tuple[Interval, Interval]:
    """(in the training loop, with start and last evaluation), which all err as the step does."""
    interval = config.execution.evaluation_interval
    between = (config.train_steps - 1) // interval if interval else 0
    training = config.train_steps * step.value + between * evaluation
    return step.scaled(training / step.value), step.scaled((training + evaluation + start) / step.value)


def _latest_records(runs_dir: Path, blind_to: set[str]) -> list[RunRecord]:
    records = []
    paths = [path for path in runs_dir.glob("*/*/result.json") if path.parent.name not in blind_to]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime)[-_LATEST_RUNS:]:
        with suppress(UserError):  # a damaged result is named where its own sweep is collected
            if (record := read_record(path.parent)) is not None:
                records.append(record)
    return records


def _spread_out(runs: list[tuple[Setup, float]]) -> list[tuple[Setup, float]]:
    """As many as refit a GPU's model, evenly over their step times, the shortest and the longest among them."""
    if len(runs) <= _GPU_RUNS:
        return runs
    ordered = sorted(runs, key=lambda run: run[1])
    return [ordered[round(index * (len(runs) - 1) / (_GPU_RUNS - 1))] for index in range(_GPU_RUNS)]
