"""A run against the published ones that its GPU-hours are learnt from: what is set otherwise costs more or less.

run_utilisation.py knows parameters, tokens and GPU. Published runs were made in 16 bits with fused attention and tuned
software, on about so many GPUs: 406 (6 N D / 1e23)^0.54, the least-squares line of published_runs.csv, within a factor
of 2 (one standard deviation). Seconds of a step, which know all of that, say what another choice is worth.
"""

from dataclasses import replace

from analysis.cost.feasibility import precisions_of
from analysis.cost.memory import fits, memory
from analysis.cost.setup import Setup
from analysis.cost.step import step_time

_GPUS, _EXPONENT = 406.0, 0.54
#: More than so many times the usual number of GPUs is what published runs were not made on.
_MANY = 4.0


def relative_gpu_seconds(setup: Setup, flops: float) -> float:
    """GPU-seconds of a step of `setup` over those of the same step as published runs of `flops` (6ND) were made."""
    usual = _as_published(setup, flops)
    return step_time(setup).total * setup.num_gpus / (step_time(usual).total * usual.num_gpus)


def usual_gpus(flops: float) -> float:
    """GPUs of a published run of so many FLOPs (6ND)."""
    return _GPUS * (flops / 1e23) ** _EXPONENT


def _as_published(setup: Setup, flops: float) -> Setup:
    data = setup.data_parallel_size
    most = max(1.0, setup.num_gpus / (_MANY * usual_gpus(flops)))
    fewer = max(size for size in range(1, min(data, int(most)) + 1) if data % size == 0)
    usual = replace(
        setup,
        num_gpus=setup.num_gpus // fewer,
        precision=precisions_of(setup.device)[0],
        flash_attention=True,
        stack="megatron",
    )
    # who recomputes everything where one sequence would fit without did not have to
    least = replace(setup, recompute_granularity="none", micro_batch_size=1)
    wanted = setup.recompute_granularity == "full" and setup.recompute_share == 1.0
    return replace(usual, recompute_granularity="none") if wanted and fits(memory(least), setup.device) else usual
