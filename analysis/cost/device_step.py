"""The step on any device: a GPU's by the rooflines of step.py, a CPU core's by cpu_step.py.

Rooflines say nothing of models that live in a CPU's caches: there they would be 3 to 40 times too slow.
"""

from analysis.cost.calibration import Calibration, step_interval
from analysis.cost.counts import flops_per_token, parameters
from analysis.cost.cpu_step import CPU_CONSTANTS, CPU_SPREAD, cpu_step_time
from analysis.cost.interval import Interval, log_normal
from analysis.cost.setup import Setup
from analysis.cost.stacks import Constants
from analysis.cost.step import StepTime, step_time


def device_step_time(setup: Setup, constants: Constants | None = None) -> StepTime:
    """The predicted step; constants: of a GPU's stack, where calibrated ones are to be used."""
    if not setup.device.is_cpu_core:
        return step_time(setup, constants)
    flops = flops_per_token(setup.model, setup.seq_length, "hardware", setup.recompute_granularity)
    return cpu_step_time(
        CPU_CONSTANTS,
        setup.device.bf16_flops,
        num_cores=setup.num_gpus,
        hidden_size=setup.model.hidden_size,
        num_layers=setup.model.num_layers,
        num_micro_batches=setup.num_micro_batches,
        flops=flops * setup.tokens_per_step,
        num_parameters=parameters(setup.model).total,
    )


def device_step_interval(setup: Setup, calibration: Calibration | None = None) -> Interval:
    """Seconds of the step with their 90 % interval; a calibration is of a GPU's stack."""
    if not setup.device.is_cpu_core:
        return step_interval(setup, calibration)
    return log_normal(device_step_time(setup).total, CPU_SPREAD)
