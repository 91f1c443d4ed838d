"""How long a training step takes on a CPU: from a core's speed, measured on the spot, and finished runs. No torch.

The time of a step is a launch floor, matrix products at a rate that grows with the model's width, and the optimizer's
memory traffic:

    step = step_seconds + micro_batches x num_layers x layer_seconds
         + FLOPs / (cores^scaling_exponent x rate x utilisation x h / (h + half_width))
         + 36 bytes x params / bandwidth

with h = hidden_size and FLOPs with full attention. h / (h + half_width) is the share of a layer's time spent in matrix
products when the rest of its work (norms, activations, attention at a fixed sequence length) grows as h while the
products grow as h^2. The step of a GPU is that of analysis.cost.step, whose rooflines say nothing of models that live in
a CPU's caches.

Before a machine has finished any run, expect a factor of two. `calibrate` refits the constants to its finished runs. No
measured speed of the run in question is ever an input.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.cost.calibration import remaining_spread
from analysis.cost.interval import Interval, log_normal
from analysis.cost.matmul_rate import core_matmul_rate
from scaling.accounting import flops_per_token, parameter_count
from scaling.config import RunConfig
from scaling.record import RunRecord

#: AdamW in float32 reads weight, gradient and both moments, writes three of them back, and gradients are
#: read once more for clipping and written once to clear them: 9 passes of 4 bytes.
_OPTIMIZER_BYTES_PER_PARAMETER = 36
#: Bytes/s of one core; the laptop's models live in its caches.
_CORE_BANDWIDTH = 10e9


@dataclass(frozen=True)
class Constants:
    """What depends on the trainer and the class of processor. `calibrate` refits the first four."""

    #: Seconds of a step that no size changes: batch, optimizer launch, logging.
    step_seconds: float
    #: Seconds to launch one layer's forward and backward pass on one micro-batch.
    layer_seconds: float
    #: Share of the measured rate that an infinitely wide model would reach; it can pass 1, since the trainer may choose
    #: a faster backend or bfloat16.
    utilisation: float
    #: hidden_size at which half of that is reached.
    half_width: float
    #: n cores are as fast as n to this power.
    scaling_exponent: float


#: Fitted to the 35 cells of the laptop grid, trained two at a time on the two cores of an AMD EPYC (Zen 5), widths of 8 to
#: 128, with the utilisation held at what oneDNN gains there over the measured product: 16 % root mean square error.
CPU_CONSTANTS = Constants(
    step_seconds=8e-4,
    layer_seconds=2.1e-4,
    utilisation=1.6,
    half_width=97.0,
    scaling_exponent=0.7,
)

#: Standard deviations of ln(step time): from one machine, or one load of it, to the next (a judgement: a factor of two
#: in all), and between the runs of one sweep (that fit).
_BETWEEN, _WITHIN = 0.39, 0.16


@dataclass(frozen=True)
class CpuThroughput:
    """One core as the prediction sees it."""

    #: As in `Speed.device` of the run records.
    device_name: str
    #: FLOP/s of a float32 matrix product, measured.
    matmul_flops: float
    constants: Constants
    #: Where the numbers come from, for people.
    source: str
    #: Standard deviation of ln(measured / predicted step time).
    spread: float = math.hypot(_BETWEEN, _WITHIN)


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
    model, constants = config.model, throughput.constants
    cores = config.parallel.world_size * (config.execution.num_threads or 1)
    rows = config.micro_batch_size * config.parallel.data_parallel_size
    micro_batches = math.ceil(config.global_batch_size / rows)

    share = constants.utilisation * model.hidden_size / (model.hidden_size + constants.half_width)
    rate = throughput.matmul_flops * share * cores**constants.scaling_exponent
    flops = flops_per_token(model, config.data.seq_length, "full") * config.tokens_per_step
    compute = micro_batches * model.num_layers * constants.layer_seconds
    compute += flops / rate
    optimizer = _OPTIMIZER_BYTES_PER_PARAMETER * parameter_count(model).total / _CORE_BANDWIDTH
    return constants.step_seconds + compute + optimizer, compute


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
    count = "1 finished run" if len(runs) == 1 else f"{len(runs)} finished runs"
    return dataclasses.replace(
        with_constants(start + fit.x * width),
        source=throughput.source.replace("typical constants", f"constants refitted to {count} here"),
        spread=remaining_spread(errors(fit.x).tolist(), between=_BETWEEN, within=_WITHIN),
    )


def _as_run(record: RunRecord) -> RunConfig:
    """The record's config with the threads it really had."""
    execution = record.config.execution.model_copy(update={"num_threads": record.speed.num_threads})
    return record.config.model_copy(update={"execution": execution})
