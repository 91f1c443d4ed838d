"""What no run can have had, or only a mistake in its row explains: a wrong unit, batch, layout or device."""

from analysis.cost.counts import flops_per_token
from analysis.cost.setup import Setup
from analysis.cost.stacks import constants_of
from analysis.cost.step import step_time

#: Clusters that nobody tuned are up to ten times as slow as the constants of tuned software say.
_MOST_TIMES = 20.0


def seconds_at_peak(setup: Setup) -> float:
    """Seconds of a step whose model FLOPs (causal attention) run at the dense peak of their precision on all GPUs."""
    flops = flops_per_token(setup.model, setup.seq_length, "causal") * setup.tokens_per_step
    return flops / (setup.device.dense_peak(setup.precision) * setup.num_gpus)


def too_fast(setup: Setup, seconds: float) -> str | None:
    """Why no step can have taken `seconds`; None where one can."""
    least = seconds_at_peak(setup)
    if seconds >= least:
        return None
    return (
        f"a step of {seconds:g} s is faster than the {least:.3g} s of its model FLOPs at the dense {setup.precision} "
        f"peak of {setup.num_gpus} {setup.device.name}: correct its unit, batch, precision or number of GPUs"
    )


def too_large(setup: Setup, gib: float) -> str | None:
    """Why no GPU can have had a peak of `gib`; None where it can."""
    device = setup.device
    if gib * 2**30 <= device.memory_bytes:
        return None
    return (
        f"a peak of {gib:g} GiB is more than the {device.memory_bytes / 2**30:.0f} GiB of {device.name}: "
        "correct its unit or the device"
    )


def implausible(setup: Setup, seconds: float) -> str | None:
    """Why a step of `seconds` is nothing to fit constants to: too fast, or out of proportion; None where it is."""
    problem = too_fast(setup, seconds)
    if problem is not None:
        return problem
    expected = step_time(setup, constants_of(setup.stack)).total
    if 1 / _MOST_TIMES <= seconds / expected <= _MOST_TIMES:
        return None
    return (
        f"a step of {seconds:g} s, where {expected:.3g} s are expected, is more than {_MOST_TIMES:g} times off: "
        "correct its unit, batch or layout"
    )
