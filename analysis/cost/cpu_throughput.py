"""How long a training step takes on a CPU: from a core's speed, measured on the spot, and finished runs. No torch.

The step is that of cpu_step.py. Before a machine has finished any run, expect a factor of two. `calibrate` refits the
constants to its finished runs. No measured speed of the run in question is ever an input.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.cost.calibration import remaining_spread
from analysis.cost.cpu_matmul import core_matmul_rate
from analysis.cost.cpu_step import ANOTHER_DAY, BETWEEN, CPU_CONSTANTS, CPU_SPREAD, WITHIN, CpuConstants, cpu_step_time
from analysis.cost.interval import Interval, log_normal
from scaling.accounting import flops_per_token, parameter_count
from scaling.config import RunConfig
from scaling.record import RunRecord


@dataclass(frozen=True)
class CpuThroughput:
    """One core as the prediction sees it."""

    #: As in `Speed.device` of the run records.
    device_name: str
    #: FLOP/s of a float32 matrix product, measured.
    matmul_flops: float
    constants: CpuConstants
    #: Where the numbers come from, for people.
    source: str
    #: Standard deviation of ln(measured / predicted step time).
    spread: float = CPU_SPREAD


def measure_cpu(device_name: str) -> CpuThroughput:
    """One core of this machine's CPU, measured on the spot (0.3 s)."""
    rate = core_matmul_rate()
    source = f"a core's float32 matrix product measured at {rate / 1e9:.0f} GFLOP/s, typical constants"
    return CpuThroughput(device_name, rate, CPU_CONSTANTS, source)


def step_interval(config: RunConfig, throughput: CpuThroughput) -> Interval:
    """Seconds of one optimizer step with their 90 % interval; a rank has `execution.num_threads` cores (1 if open)."""
    return log_normal(_step_and_compute_seconds(config, throughput)[0], throughput.spread)


def evaluation_seconds(config: RunConfig, throughput: CpuThroughput) -> float:
    """Seconds of one evaluation: a forward pass is a third of a training step's work."""
    compute = _step_and_compute_seconds(config, throughput)[1]
    return compute / 3 * config.data.validation_sequences / config.global_batch_size


def _step_and_compute_seconds(config: RunConfig, throughput: CpuThroughput) -> tuple[float, float]:
    """Seconds of one optimizer step, and of the part that grows with the batch."""
    step = cpu_step_time(
        throughput.constants,
        throughput.matmul_flops,
        num_cores=config.parallel.world_size * (config.execution.num_threads or 1),
        hidden_size=config.model.hidden_size,
        num_layers=config.model.num_layers,
        num_micro_batches=math.ceil(
            config.global_batch_size / (config.micro_batch_size * config.parallel.data_parallel_size)
        ),
        flops=flops_per_token(config.model, config.data.seq_length, "full") * config.tokens_per_step,
        num_parameters=parameter_count(config.model).total,
    )
    return step.total, step.linear + step.launch


#: Prior standard deviations of the logarithms of the constants that are refitted, and of a step time's noise.
_PRIOR = {"step_seconds": 1.0, "layer_seconds": 1.0, "utilisation": 0.7, "half_width": 0.7}
_NOISE = 0.15


def calibrate(throughput: CpuThroughput, records: Iterable[RunRecord]) -> CpuThroughput:
    """The same core with constants refitted to its finished runs; unchanged when there are none.

    Maximum a posteriori: log step times with normal noise of 15 %, softened against outliers, and a
    log-normal prior around the given constants, so one run moves them sensibly and many decide them.
    Runs of other devices are ignored.
    """
    runs = [
        record
        for record in records
        if record.status == "finished" and record.speed.device == throughput.device_name and record.speed.seconds > 0
    ]
    if not runs:
        return throughput

    import numpy as np
    from scipy.optimize import least_squares

    configs = [_as_run(record) for record in runs]
    measured = np.log([record.speed.seconds / record.config.train_steps for record in runs])
    start = np.log([getattr(throughput.constants, name) for name in _PRIOR])
    width = np.array(list(_PRIOR.values()))

    def with_constants(logs: np.ndarray) -> CpuThroughput:
        values = dict(zip(_PRIOR, np.exp(logs).tolist(), strict=True))
        return dataclasses.replace(throughput, constants=dataclasses.replace(throughput.constants, **values))

    def errors(shift: np.ndarray) -> np.ndarray:
        trial = with_constants(start + shift * width)
        return np.log([_step_and_compute_seconds(config, trial)[0] for config in configs]) - measured

    def residuals(shift: np.ndarray) -> np.ndarray:
        return np.concatenate([errors(shift) / _NOISE, shift])

    fit = least_squares(residuals, np.zeros(len(_PRIOR)), loss="soft_l1")
    left = remaining_spread(errors(fit.x).tolist(), between=BETWEEN, within=WITHIN)
    count = "1 finished run" if len(runs) == 1 else f"{len(runs)} finished runs"
    return dataclasses.replace(
        with_constants(start + fit.x * width),
        source=throughput.source.replace("typical constants", f"constants refitted to {count} here"),
        spread=math.hypot(left, ANOTHER_DAY),
    )


def _as_run(record: RunRecord) -> RunConfig:
    """The record's config with the threads it really had."""
    execution = record.config.execution.model_copy(update={"num_threads": record.speed.num_threads})
    return record.config.model_copy(update={"execution": execution})
