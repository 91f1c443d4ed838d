"""Seconds of one training step on the cores of a CPU, from the speed of one of them.

The time of a step is a launch floor, matrix products at a rate that grows with the model's width, and the optimizer's
memory traffic:

    step = step_seconds + micro_batches x num_layers x layer_seconds
         + FLOPs / (cores^scaling_exponent x rate x utilisation x h / (h + half_width))
         + 36 bytes x params / bandwidth

with h = hidden_size and FLOPs with full attention. h / (h + half_width) is the share of a layer's time spent in matrix
products when the rest of its work (norms, activations, attention at a fixed sequence length) grows as h while the
products grow as h^2. The step of a GPU is that of analysis.cost.step, whose rooflines say nothing of models that live
in a CPU's caches.
"""

import math
from dataclasses import dataclass, fields

from analysis.cost.step import StepTime

#: AdamW in float32 reads weight, gradient and both moments, writes three of them back, and gradients are
#: read once more for clipping and written once to clear them: 9 passes of 4 bytes.
_OPTIMIZER_BYTES_PER_PARAMETER = 36
#: Bytes/s of one core; the laptop's models live in its caches.
_CORE_BANDWIDTH = 10e9


@dataclass(frozen=True)
class CpuConstants:
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


#: Fitted to the 35 cells of the laptop grid, trained two at a time on the two cores of an AMD EPYC (Zen 5), widths of 8
#: to 128, with the utilisation held at what oneDNN gains there over the measured product: 16 % root mean square error.
CPU_CONSTANTS = CpuConstants(
    step_seconds=8e-4,
    layer_seconds=2.1e-4,
    utilisation=1.6,
    half_width=97.0,
    scaling_exponent=0.7,
)

#: Standard deviations of ln(step time): from one kind of processor to the next (a judgement: a factor of two in all);
#: between the runs of one sweep (that fit); and from one sweep to another on the same machine, which may do other work
#: (means of six laptop sweeps): no number of finished runs takes that away.
BETWEEN, WITHIN, ANOTHER_DAY = 0.33, 0.16, 0.20
CPU_SPREAD = math.hypot(BETWEEN, WITHIN, ANOTHER_DAY)


def cpu_step_time(
    constants: CpuConstants,
    matmul_flops: float,
    *,
    num_cores: int,
    hidden_size: int,
    num_layers: int,
    num_micro_batches: int,
    flops: float,
    num_parameters: int,
) -> StepTime:
    """The step on `num_cores` cores of `matmul_flops` FLOP/s each.

    flops: of all tokens of the step, with full attention and what is computed again. `linear` stands for everything
    that grows with the tokens.
    """
    share = constants.utilisation * hidden_size / (hidden_size + constants.half_width)
    parts = {
        "linear": flops / (matmul_flops * share * num_cores**constants.scaling_exponent),
        "launch": num_micro_batches * num_layers * constants.layer_seconds,
        "optimizer": _OPTIMIZER_BYTES_PER_PARAMETER * num_parameters / _CORE_BANDWIDTH,
        "host": constants.step_seconds,
    }
    return StepTime(**dict.fromkeys((field.name for field in fields(StepTime)), 0.0) | parts)
