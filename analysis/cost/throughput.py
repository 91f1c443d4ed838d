"""How long a run will take, roughly: seconds from a config and a device. Imports no torch.

The time of a step is a launch floor, matrix products at a rate that grows with the model's width,
and the optimizer's memory traffic:

    step = step_seconds + micro_batches x num_layers x layer_seconds
         + FLOPs / (devices^scaling_exponent x peak x utilisation x h / (h + half_width))
         + 36 bytes x params / bandwidth

with h = hidden_size and FLOPs with full attention. h / (h + half_width) is the share of a layer's
time spent in matrix products when the rest of its work (norms, activations, attention at a fixed
sequence length) grows as h while the products grow as h^2.

Before a device has finished any run, expect a factor of two. `calibrate` refits the constants to its
finished runs. No measured speed of the run in question is ever an input.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.cost.devices import find_device
from analysis.cost.matmul_rate import core_matmul_rate
from scaling.accounting import flops_per_token, parameter_count
from scaling.config import RunConfig
from scaling.record import RunRecord

#: AdamW in float32 reads weight, gradient and both moments, writes three of them back, and gradients are
#: read once more for clipping and written once to clear them: 9 passes of 4 bytes.
_OPTIMIZER_BYTES_PER_PARAMETER = 36


@dataclass(frozen=True)
class Constants:
    """What depends on the trainer and the class of device. `calibrate` refits the first four."""

    #: Seconds of a step that no size changes: batch, optimizer launch, logging.
    step_seconds: float
    #: Seconds to launch one layer's forward and backward pass on one micro-batch.
    layer_seconds: float
    #: Share of the peak that an infinitely wide model would reach; on a CPU it can pass 1, since the trainer may
    #: choose a faster backend or bfloat16.
    utilisation: float
    #: hidden_size at which half of that is reached.
    half_width: float
    #: Seconds before the first step, in a process that has torch loaded.
    setup_seconds: float
    #: n GPUs, or n threads, are as fast as n to this power.
    scaling_exponent: float


#: Fitted to the 35 cells of the laptop grid, trained two at a time on the two cores of an AMD EPYC (Zen 5), widths of 8 to
#: 128, with the utilisation held at what oneDNN gains there over the measured product: 16 % root mean square error.
CPU_CONSTANTS = Constants(
    step_seconds=8e-4,
    layer_seconds=2.1e-4,
    utilisation=1.6,
    half_width=97.0,
    setup_seconds=0.3,
    scaling_exponent=0.7,
)

#: Rough, for eager PyTorch on one node. Published single-node runs with fused kernels reach 0.45 to 0.6 of an A100's
#: peak and 0.36 to 0.46 of an H100's at widths of 1024 to 4096 (llm-foundry's benchmark tables, full attention).
GPU_CONSTANTS = Constants(
    step_seconds=3e-3,
    layer_seconds=1e-3,
    utilisation=0.4,
    half_width=400.0,
    setup_seconds=5.0,
    scaling_exponent=0.95,
)

#: For a GPU that is not in devices.yaml: an L4's, the slowest data-centre GPU there.
_UNKNOWN_GPU_FLOPS = 121e12
_UNKNOWN_GPU_BANDWIDTH = 300e9
#: Of one core, bytes/s; the laptop's models live in its caches.
_CORE_BANDWIDTH = 10e9


@dataclass(frozen=True)
class Throughput:
    """A device as the prediction sees it."""

    #: As in `Speed.device` of the run records.
    device_name: str
    #: FLOP/s of one GPU (dense bf16 peak) or of one core (measured float32 matrix product).
    peak_flops: float
    #: Bytes/s of one GPU or one core.
    bandwidth: float
    constants: Constants
    #: Where the numbers come from, for people.
    source: str
    #: Whether it is one core of a CPU: a rank then has `execution.num_threads` of them; of GPUs it has one.
    is_core: bool = False


def cpu_throughput(device_name: str) -> Throughput:
    """One core of this machine's CPU, measured on the spot (0.3 s)."""
    rate = core_matmul_rate()
    source = f"a core's float32 matrix product measured at {rate / 1e9:.0f} GFLOP/s, typical constants"
    return Throughput(device_name, rate, _CORE_BANDWIDTH, CPU_CONSTANTS, source, is_core=True)


def gpu_throughput(device_name: str) -> Throughput:
    """A GPU by the name its driver reports; one that is not in the table counts as an L4."""
    device = find_device(device_name)
    if device is None:
        source = f"{device_name} is not in the table of GPUs, taken for an L4, typical constants"
        return Throughput(device_name, _UNKNOWN_GPU_FLOPS, _UNKNOWN_GPU_BANDWIDTH, GPU_CONSTANTS, source)
    source = f"dense bf16 peak of {device.name} ({device.source}), typical constants"
    return Throughput(device_name, device.bf16_flops, device.memory_bandwidth, GPU_CONSTANTS, source)


def predict_seconds(config: RunConfig, throughput: Throughput) -> float:
    """Wall time of one run in seconds: set-up, training and evaluations, in a process that has torch loaded.

    A rank has one GPU, or `execution.num_threads` cores (1 when it is left open).
    """
    step, compute = _step_and_compute_seconds(config, throughput)
    constants = throughput.constants
    interval = config.execution.evaluation_interval
    evaluations = 1 + ((config.train_steps - 1) // interval if interval else 0)
    # a forward pass is a third of a training step's work
    evaluation = compute / 3 * config.data.validation_sequences / config.global_batch_size
    return constants.setup_seconds + config.train_steps * step + evaluations * evaluation


def _step_and_compute_seconds(config: RunConfig, throughput: Throughput) -> tuple[float, float]:
    """Seconds of one optimizer step, and of the part that grows with the batch."""
    model, constants = config.model, throughput.constants
    devices = config.parallel.world_size * ((config.execution.num_threads or 1) if throughput.is_core else 1)
    rows = config.micro_batch_size * config.parallel.data_parallel_size
    micro_batches = math.ceil(config.global_batch_size / rows)

    share = constants.utilisation * model.hidden_size / (model.hidden_size + constants.half_width)
    rate = throughput.peak_flops * share * devices**constants.scaling_exponent
    flops = flops_per_token(model, config.data.seq_length, "full") * config.tokens_per_step
    compute = micro_batches * model.num_layers * constants.layer_seconds
    compute += flops / rate
    optimizer = _OPTIMIZER_BYTES_PER_PARAMETER * parameter_count(model).total / throughput.bandwidth
    return constants.step_seconds + compute + optimizer, compute


#: Prior standard deviations of the logarithms of the constants that are refitted, and of a step time's noise.
_PRIOR = {"step_seconds": 1.0, "layer_seconds": 1.0, "utilisation": 0.7, "half_width": 0.7}
_NOISE = 0.15


def calibrate(throughput: Throughput, records: Iterable[RunRecord]) -> Throughput:
    """The same device with constants refitted to its finished runs; unchanged when there are none.

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

    def with_constants(logs: np.ndarray) -> Throughput:
        values = dict(zip(_PRIOR, np.exp(logs).tolist(), strict=True))
        return dataclasses.replace(throughput, constants=dataclasses.replace(throughput.constants, **values))

    def residuals(shift: np.ndarray) -> np.ndarray:
        trial = with_constants(start + shift * width)
        predicted = np.log([_step_and_compute_seconds(config, trial)[0] for config in configs])
        return np.concatenate([(predicted - measured) / _NOISE, shift])

    fit = least_squares(residuals, np.zeros(len(_PRIOR)), loss="soft_l1")
    count = "1 finished run" if len(runs) == 1 else f"{len(runs)} finished runs"
    source = throughput.source.replace("typical constants", f"constants refitted to {count} here")
    return dataclasses.replace(with_constants(start + fit.x * width), source=source)


def _as_run(record: RunRecord) -> RunConfig:
    """The record's config with the threads it really had."""
    execution = record.config.execution.model_copy(update={"num_threads": record.speed.num_threads})
    return record.config.model_copy(update={"execution": execution})
